// Element-wise and row-wise operations: the kernels of element_table.h, split over the threads.
// Shapes are the caller's word (bindings check them); `act` pointers hold what Context's ISA stores. Results do not
// depend on the number of threads.
#pragma once
#include <cstdint>

#include "context.h"

namespace localsft {

void rms_norm(Context& ctx, const float* h, const float* weight, float eps, void* saved, float* rstd, void* out,
              int64_t M, int64_t D);
void rms_norm_again(Context& ctx, const void* saved, const float* weight, const float* rstd, void* out, int64_t M,
                    int64_t D);
void rms_norm_backward(Context& ctx, const void* dy, const void* saved, const float* weight, const float* rstd,
                       float* dx, int64_t M, int64_t D);
void rms_norm_f32(Context& ctx, const float* h, const float* weight, float eps, float* out, int64_t M, int64_t D);
void rope(Context& ctx, void* x, const float* cos, const float* sin, int64_t M, int64_t heads, int64_t E, bool inverse);
void swiglu(Context& ctx, const void* gate, const void* up, void* out, int64_t n);
void swiglu_backward(Context& ctx, const void* dy, const void* gate, const void* up, void* d_gate, void* d_up,
                     int64_t n);

// DoRA: x act (M, D) -> out act (M, D) = x·c, or with `add` out float (M, D) += x·c.
void scale_columns(Context& ctx, const void* x, const float* c, void* out, bool add, int64_t M, int64_t D);
// out (D) += r·Σ over rows of x·y.
void column_dots(Context& ctx, const void* x, const void* y, const float* r, float* out, int64_t M, int64_t D);

void round_to_act(Context& ctx, const float* x, void* out, int64_t n);

// out[i] = x[rows[i]], rows of `bytes` bytes.
void gather_rows(Context& ctx, const void* x, const int32_t* rows, void* out, int64_t M, int64_t bytes);
// out[rows[i]] += x[i], in the order of i.
void scatter_add_rows(Context& ctx, const float* x, const int32_t* rows, float* out, int64_t M, int64_t D);

// p in [0, 1)
void dropout(Context& ctx, const void* x, double p, uint64_t seed, void* out, int64_t M, int64_t K);
void dropout_add(Context& ctx, const float* dx_lora, double p, uint64_t seed, void* dx, bool dx_is_act, int64_t M,
                 int64_t K);

// step counts from 1; g is zero afterwards
void adamw(Context& ctx, float* p, float* g, float* m, float* v, int64_t n, double lr, double beta1, double beta2,
           double eps, double weight_decay, int64_t step, double grad_scale);
double squared_norm(Context& ctx, const float* g, int64_t n);

}  // namespace localsft
