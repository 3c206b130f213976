// Attention over a forest of segments: the kernels of attention_table.h, split over the threads.
// Results do not depend on the number of threads. Shapes are the caller's word (bindings check them).
#pragma once
#include <cstdint>

#include "attention_plan.h"
#include "context.h"

namespace localsft {

// q act (Mq, H·E) of the tokens q_rows (Mq,) ascending; k, v act (T, K·E) -> out act (Mq, H·E), lse float (Mq, H).
void attention(Context& ctx, const kernels::AttentionShape& shape, const Segments& segments, const void* q,
               const void* k, const void* v, const int32_t* q_rows, int64_t Mq, void* out, float* lse);

// -> dq act (Mq, H·E), dk and dv act (T, K·E), all overwritten. What several chunks of queries add to one key is summed
// in float, in the order of the plan.
void attention_backward(Context& ctx, const kernels::AttentionShape& shape, const Segments& segments, const void* q,
                        const void* k, const void* v, const void* out, const float* lse, const void* d_out,
                        const int32_t* q_rows, int64_t Mq, void* dq, void* dk, void* dv);

// One token a row: q float (B, H·E) against the first lengths[b] >= 1 tokens of k[b], v[b] act (capacity, K·E)
// -> out float (B, H·E).
void attention_decode(Context& ctx, const kernels::AttentionShape& shape, const float* q, const void* const* k,
                      const void* const* v, const int32_t* lengths, int64_t B, float* out);

}  // namespace localsft
