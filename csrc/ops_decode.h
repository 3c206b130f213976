// One step of generation: a token a sequence through the whole model, in one call. A step is a few milliseconds of a
// few hundred small operations, so what an interpreter would add between them would be felt.
#pragma once
#include <vector>

#include "ops_attention.h"
#include "ops_linear.h"

namespace localsft {

struct DecodeLayer {
  const float* attention_norm;  // (D)
  std::vector<Member> qkv;
  Member o;
  const float* mlp_norm;  // (D)
  std::vector<Member> gate_up;
  Member down;
};

// Where a layer's keys and values are kept: act (slots, capacity, K·E).
struct KeyValues {
  void* k;
  void* v;
};

// A llama-like model as decoding reads it; owns its working arrays (B rows) and nothing else.
class Decoder {
 public:
  Matrix embedding, head;
  std::vector<DecodeLayer> layers;
  const float* final_norm;  // (D)
  float eps;
  kernels::AttentionShape shape;  // H, K, E, scale, window

  // tokens[b] follows the lengths[b] tokens that slots[b] of every cache holds; its keys and values are added there.
  // cos, sin (B, E/2) of the positions lengths[b]. logits (B, V). At most 16 rows.
  void step(Context& ctx, int64_t B, const int32_t* tokens, const int32_t* slots, const int32_t* lengths,
            const float* cos, const float* sin, const std::vector<KeyValues>& caches, int64_t capacity, float* logits);

 private:
  // h += y, if `add`; x = the norm of h. The others: from x to y.
  void norm(Context& ctx, int64_t B, bool add, const float* weight);
  void attend(Context& ctx, const DecodeLayer& layer, int64_t B, const int32_t* slots, const int32_t* lengths,
              const float* cos, const float* sin, const KeyValues& cache, int64_t capacity);
  void feed_forward(Context& ctx, const DecodeLayer& layer, int64_t B);

  std::vector<float> h_, x_, q_, k_, v_, o_, y_, gate_, up_;
  std::vector<int32_t> filled_;
  std::vector<const void*> k_rows_, v_rows_;
};

}  // namespace localsft
