// Element-wise and row-wise kernels of one ISA: norms, rotary embedding, SwiGLU, dropout, AdamW.
// `act` pointers hold bfloat16 bits or floats, as Table::act_bf16 says. A kernel works on the rows, or on the elements
// of a flat array, [begin, end).
#pragma once
#include <stdint.h>

namespace localsft {
namespace kernels {

// torch.optim.AdamW, with everything that does not differ between elements already computed.
struct AdamW {
  float grad_scale;  // g is multiplied by it first
  float decay;       // 1 - lr·weight_decay
  float beta2;
  float rest1, rest2;  // 1 - beta1, 1 - beta2
  float step_size;     // lr / (1 - beta1^step)
  float root_scale;    // 1 / sqrt(1 - beta2^step)
  float eps;
};

// Which elements dropout keeps: a function of (seed, row, column) only.
struct Dropout {
  uint64_t seed;
  uint32_t threshold;  // kept where the random 32 bits are >= threshold = p·2^32
  float scale;         // 1 / (1 - p)
};

struct ElementTable {
  // out = e^x for n floats; for tests of the polynomial.
  void (*exp)(const float* x, float* out, int64_t n);

  // h float (M, D), weight float (D,) -> saved act (M, D), rstd float (M,), out act (M, D).
  void (*rms_norm)(const float* h, const float* weight, float eps, void* saved, float* rstd, void* out, int64_t D,
                   int64_t begin, int64_t end);
  void (*rms_norm_again)(const void* saved, const float* weight, const float* rstd, void* out, int64_t D, int64_t begin,
                         int64_t end);
  // dx float (M, D) += the gradient with respect to saved.
  void (*rms_norm_backward)(const void* dy, const void* saved, const float* weight, const float* rstd, float* dx,
                            int64_t D, int64_t begin, int64_t end);
  void (*rms_norm_f32)(const float* h, const float* weight, float eps, float* out, int64_t D, int64_t begin,
                       int64_t end);

  // x act (M, heads·E) in place; cos, sin float (M, E/2); sign = 1, or -1 for the inverse rotation.
  void (*rope)(void* x, const float* cos, const float* sin, float sign, int64_t heads, int64_t E, int64_t begin,
               int64_t end);

  void (*swiglu)(const void* gate, const void* up, void* out, int64_t begin, int64_t end);
  void (*swiglu_backward)(const void* dy, const void* gate, const void* up, void* d_gate, void* d_up, int64_t begin,
                          int64_t end);

  // out += x
  void (*add)(const float* x, float* out, int64_t n);

  // x act (M, K) -> out act (M, K)
  void (*dropout)(const void* x, Dropout mask, void* out, int64_t K, int64_t begin, int64_t end);
  // dx_lora float (M, K) -> dx (M, K) += ..., float or act
  void (*dropout_add)(const float* dx_lora, Dropout mask, void* dx, bool dx_is_act, int64_t K, int64_t begin,
                      int64_t end);

  void (*adamw)(float* p, float* g, float* m, float* v, AdamW settings, int64_t begin, int64_t end);
  // Sum of squares in float64, in one fixed order on every ISA.
  double (*squared_norm)(const float* g, int64_t n);

  // out act = x rounded
  void (*round_to_act)(const float* x, void* out, int64_t begin, int64_t end);

  // Decoding works in float32: as rope and swiglu.
  void (*rope_f32)(float* x, const float* cos, const float* sin, int64_t heads, int64_t E, int64_t begin, int64_t end);
  void (*swiglu_f32)(const float* gate, const float* up, float* out, int64_t begin, int64_t end);

  // x act (M, D), c float (D,) -> out act (M, D) = x·c, which may be x; with `add` out float (M, D) += x·c.
  void (*scale_columns)(const void* x, const float* c, void* out, bool add, int64_t D, int64_t begin, int64_t end);
  // out (D,) += r·Σ over the M rows of x·y, for the columns [begin, end); x, y act (M, D), r, out float.
  void (*column_dots)(const void* x, const void* y, const float* r, float* out, int64_t M, int64_t D, int64_t begin,
                      int64_t end);
};

}  // namespace kernels
}  // namespace localsft
