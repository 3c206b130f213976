// Linear layers that read the same input (q/k/v, gate/up, or one alone), with their low-rank adapters, forward and
// backward.
#pragma once
#include <vector>

#include "gemm.h"

namespace localsft {

struct Adapter {
  const float* a = nullptr;  // (rank, K)
  const float* b = nullptr;  // (rank, N)
  int64_t rank = 0;          // 0: no adapter
  float scale = 0;
  float* d_a = nullptr;  // backward: gradients, added to
  float* d_b = nullptr;
};

struct Member {
  Matrix weight;  // (N, K)
  Adapter adapter;
  const float* factors = nullptr;  // (N), DoRA's; linear_decode alone applies them
};

// Columns of u: the members' side by side.
inline int64_t total_rank(const std::vector<Member>& members) {
  int64_t rank = 0;
  for (const Member& member : members) rank += member.adapter.rank;
  return rank;
}

// y_i = x·W_iᵀ + scale_i·u_i·b_i with u = x_lora·aᵀ (M, Σ rank), the members' side by side.
// x, x_lora: act (M, K). outs: (M, N_i).
void linear_forward(Context& ctx, int64_t m, const void* x, const void* x_lora, const std::vector<Member>& members,
                    float* u, const std::vector<Out>& outs);

// du_i = scale_i·dy_i·b_iᵀ; d_b_i += scale_i·u_iᵀ·dy_i; d_a_i += du_iᵀ·x; dx = Σ dy_i·W_i + Σ du_i·a_i, or when dx_lora
// is given, the second sum goes there. dys: act (M, N_i). dx.data may be null: not wanted. dx_lora: float (M, K) or
// null.
void linear_backward(Context& ctx, int64_t m, const std::vector<const void*>& dys, const std::vector<Member>& members,
                     const void* x, const float* u, Out dx, float* dx_lora);

// outs_i (M, N_i) = x·W_iᵀ + scale_i·(x·a_iᵀ)·b_i in float, times the factors where there are some, for at most 16
// rows; reads each packed weight once.
void linear_decode(Context& ctx, int64_t m, const float* x, const std::vector<Member>& members,
                   const std::vector<float*>& outs);

// out (count, K) = rows tokens[i] of w.
void embed(Context& ctx, const Matrix& w, int64_t count, const int32_t* tokens, float* out);

}  // namespace localsft
