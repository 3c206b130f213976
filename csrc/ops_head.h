// The output head: logits of a few rows at a time, their softmax cross-entropy and its gradient.
#pragma once
#include "gemm.h"

namespace localsft {

// out (M, V) = x·Wᵀ; x act (M, D).
void head_logits(Context& ctx, int64_t m, const void* x, const Matrix& w, float* out);

// Σ weight·CE over n rows x (n, D) act; dx (n, D) float = (softmax - onehot)·weight · W unless null.
double head_loss(Context& ctx, int64_t n, const void* x, const Matrix& w, const int32_t* targets, const float* weights,
                 float* dx);

// logprobs[i] = log softmax(x_i·Wᵀ)[targets[i]]; correct[i]: the target is the (first) largest logit.
void head_score(Context& ctx, int64_t n, const void* x, const Matrix& w, const int32_t* targets, float* logprobs,
                uint8_t* correct);

}  // namespace localsft
