#include "ops_decode.h"

#include <algorithm>

namespace localsft {

namespace {

// Calls fn(begin, end) over the rows. A few are done before another thread would have begun.
template <typename Fn>
void over_rows(Context& ctx, int64_t B, Fn fn) {
  constexpr int64_t kTaskRows = 4;
  if (B <= kTaskRows) return fn(int64_t{0}, B);
  ctx.pool.run((B + kTaskRows - 1) / kTaskRows,
               [&](int64_t task, int) { fn(task * kTaskRows, std::min(B, (task + 1) * kTaskRows)); });
}

}  // namespace

void Decoder::step(Context& ctx, int64_t B, const int32_t* tokens, const int32_t* slots, const int32_t* lengths,
                   const float* cos, const float* sin, const std::vector<KeyValues>& caches, int64_t capacity,
                   float* logits) {
  const int64_t D = embedding.columns, F = layers[0].gate_up[0].weight.rows;
  const int64_t attention = shape.heads * shape.E, keys = shape.kv_heads * shape.E;
  for (auto* x : {&h_, &x_, &y_}) x->resize(size_t(B * D));
  for (auto* x : {&q_, &o_}) x->resize(size_t(B * attention));
  for (auto* x : {&k_, &v_}) x->resize(size_t(B * keys));
  for (auto* x : {&gate_, &up_}) x->resize(size_t(B * F));
  filled_.assign(lengths, lengths + B);
  for (auto& length : filled_) ++length;
  k_rows_.resize(size_t(B));
  v_rows_.resize(size_t(B));

  embed(ctx, embedding, B, tokens, h_.data());
  for (size_t i = 0; i < layers.size(); ++i) {
    norm(ctx, B, i > 0, layers[i].attention_norm);
    attend(ctx, layers[i], B, slots, lengths, cos, sin, caches[i], capacity);
    norm(ctx, B, true, layers[i].mlp_norm);
    feed_forward(ctx, layers[i], B);
  }
  norm(ctx, B, true, final_norm);
  linear_decode(ctx, B, x_.data(), {Member{head, Adapter{}}}, {logits});
}

void Decoder::norm(Context& ctx, int64_t B, bool add, const float* weight) {
  const auto& element = ctx.kernels.element;
  const int64_t D = embedding.columns;
  over_rows(ctx, B, [&](int64_t begin, int64_t end) {
    if (add) element.add(y_.data() + begin * D, h_.data() + begin * D, (end - begin) * D);
    element.rms_norm_f32(h_.data(), weight, eps, x_.data(), D, begin, end);
  });
}

void Decoder::attend(Context& ctx, const DecodeLayer& layer, int64_t B, const int32_t* slots, const int32_t* lengths,
                     const float* cos, const float* sin, const KeyValues& cache, int64_t capacity) {
  const auto& element = ctx.kernels.element;
  const int64_t keys = shape.kv_heads * shape.E, row_bytes = keys * (ctx.kernels.act_bf16 ? 2 : 4);
  linear_decode(ctx, B, x_.data(), layer.qkv, {q_.data(), k_.data(), v_.data()});
  over_rows(ctx, B, [&](int64_t begin, int64_t end) {
    element.rope_f32(q_.data(), cos, sin, shape.heads, shape.E, begin, end);
    element.rope_f32(k_.data(), cos, sin, shape.kv_heads, shape.E, begin, end);
    for (int64_t b = begin; b < end; ++b) {
      char* k = static_cast<char*>(cache.k) + slots[b] * capacity * row_bytes;
      char* v = static_cast<char*>(cache.v) + slots[b] * capacity * row_bytes;
      element.round_to_act(k_.data() + b * keys, k + lengths[b] * row_bytes, 0, keys);
      element.round_to_act(v_.data() + b * keys, v + lengths[b] * row_bytes, 0, keys);
      k_rows_[size_t(b)] = k;
      v_rows_[size_t(b)] = v;
    }
  });
  attention_decode(ctx, shape, q_.data(), k_rows_.data(), v_rows_.data(), filled_.data(), B, o_.data());
  linear_decode(ctx, B, o_.data(), {layer.o}, {y_.data()});
}

void Decoder::feed_forward(Context& ctx, const DecodeLayer& layer, int64_t B) {
  const int64_t F = layer.gate_up[0].weight.rows;
  linear_decode(ctx, B, x_.data(), layer.gate_up, {gate_.data(), up_.data()});
  over_rows(ctx, B, [&](int64_t begin, int64_t end) {
    ctx.kernels.element.swiglu_f32(gate_.data(), up_.data(), gate_.data(), begin * F, end * F);
  });
  linear_decode(ctx, B, gate_.data(), {layer.down}, {y_.data()});
}

}  // namespace localsft
