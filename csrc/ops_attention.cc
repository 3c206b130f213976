#include "ops_attention.h"

#include <algorithm>
#include <atomic>
#include <cmath>
#include <cstring>
#include <new>
#include <thread>

namespace localsft {

namespace {

constexpr int kStateSlot = 0;       // of each thread
constexpr int kPackSlot = 1;        // of each thread: a block that only one chunk sees
constexpr int kSharedSlot = 2;      // of thread 0: the blocks that several chunks see
constexpr int kSumsSlot = 3;        // of each thread
constexpr int kSharedSumsSlot = 4;  // of thread 0
constexpr int kTurnsSlot = 5;       // of thread 0

constexpr int64_t kDecodeKeys = 256;  // keys of a decode task: a long cache is shared among the threads

kernels::AttentionChunk chunk_of_head(const QueryChunk& chunk, int64_t kv_head, const int32_t* q_rows) {
  return {kv_head, chunk.begin, chunk.end, q_rows, chunk.shift};
}

// Returns when the count reaches `ticket`. The one waited for has run or is running: tasks start in rising order.
void await_turn(const std::atomic<int32_t>& done, int32_t ticket) {
  for (int spin = 0; done.load(std::memory_order_acquire) != ticket; ++spin)
    if (spin > 1000) std::this_thread::yield();
}

// Blocks of keys in the layouts that the tiles read. What several chunks see is packed once, before them; what only one
// sees is packed by that one, so that it is still in its cache.
class PackedKeys {
 public:
  using Pack = void (*)(const kernels::AttentionShape&, int64_t, const kernels::AttentionKeys&, const void*,
                        const void*, void*);

  PackedKeys(Context& ctx, const kernels::AttentionShape& shape, const AttentionPlan& plan, Pack pack, size_t bytes,
             const void* k, const void* v)
      : ctx_(ctx), shape_(shape), pack_(pack), bytes_(bytes), k_(k), v_(v) {
    const int64_t K = shape.kv_heads;
    shared_ = ctx.scratch.array<char>(0, kSharedSlot, static_cast<size_t>(plan.shared_count * K) * bytes);
    if (plan.shared_count == 0) return;
    ctx.pool.run(plan.block_count * K, [&](int64_t task, int) {
      const KeyBlock& block = plan.blocks[task / K];
      if (block.shared >= 0) pack_(shape_, task % K, block.keys, k_, v_, place(block, task % K));
    });
  }

  const void* get(const KeyBlock& block, int64_t kv_head, int thread) const {
    if (block.shared >= 0) return place(block, kv_head);
    void* own = ctx_.scratch.get(thread, kPackSlot, bytes_);
    pack_(shape_, kv_head, block.keys, k_, v_, own);
    return own;
  }

 private:
  char* place(const KeyBlock& block, int64_t kv_head) const {
    return shared_ + static_cast<size_t>(block.shared * shape_.kv_heads + kv_head) * bytes_;
  }

  Context& ctx_;
  const kernels::AttentionShape& shape_;
  const Pack pack_;
  const size_t bytes_;
  const void *k_, *v_;
  char* shared_;
};

// The sums dk and dv of a block of one key/value head, float (ATTENTION_KEYS, width) each: with the thread where only
// one chunk adds to them, else shared.
class KeySums {
 public:
  KeySums(Context& ctx, const kernels::AttentionShape& shape, const AttentionPlan& plan)
      : ctx_(ctx), kv_heads_(shape.kv_heads), part_(kernels::ATTENTION_KEYS * kernels::attention_width(shape.E)) {
    shared_ =
        ctx.scratch.array<float>(0, kSharedSumsSlot, static_cast<size_t>(plan.shared_count * kv_heads_ * 2 * part_));
  }

  struct Pair {
    float *dk, *dv;
  };
  Pair get(const KeyBlock& block, int64_t kv_head, int thread) const {
    float* dk = block.shared >= 0 ? shared_ + (block.shared * kv_heads_ + kv_head) * 2 * part_
                                  : ctx_.scratch.array<float>(thread, kSumsSlot, static_cast<size_t>(2 * part_));
    return {dk, dk + part_};
  }

 private:
  Context& ctx_;
  const int64_t kv_heads_, part_;
  float* shared_;
};

}  // namespace

void attention(Context& ctx, const kernels::AttentionShape& shape, const Segments& segments, const void* q,
               const void* k, const void* v, const int32_t* q_rows, int64_t Mq, void* out, float* lse) {
  const AttentionPlan plan = plan_attention(ctx, segments, q_rows, Mq, shape.heads / shape.kv_heads, shape.window);
  const kernels::AttentionTable& kernel = ctx.kernels.attention;
  const PackedKeys packed(ctx, shape, plan, kernel.forward_pack, kernel.forward_pack_bytes(shape), k, v);
  const size_t bytes = kernel.forward_bytes(shape);
  ctx.pool.run(plan.chunk_count * shape.kv_heads, [&](int64_t task, int thread) {
    const QueryChunk& queries = plan.chunks[task / shape.kv_heads];
    const kernels::AttentionChunk chunk = chunk_of_head(queries, task % shape.kv_heads, q_rows);
    void* state = ctx.scratch.get(thread, kStateSlot, bytes);
    kernel.forward_begin(shape, chunk, q, state);
    for (int64_t i = queries.first_visit; i < queries.end_visit; ++i) {
      const KeyBlock& block = plan.blocks[plan.visits[i].block];
      kernel.forward_keys(shape, chunk, block.keys, packed.get(block, chunk.kv_head, thread), state);
    }
    kernel.forward_end(shape, chunk, out, lse, state);
  });
}

void attention_backward(Context& ctx, const kernels::AttentionShape& shape, const Segments& segments, const void* q,
                        const void* k, const void* v, const void* out, const float* lse, const void* d_out,
                        const int32_t* q_rows, int64_t Mq, void* dq, void* dk, void* dv) {
  const AttentionPlan plan = plan_attention(ctx, segments, q_rows, Mq, shape.heads / shape.kv_heads, shape.window);
  const kernels::AttentionTable& kernel = ctx.kernels.attention;
  const PackedKeys packed(ctx, shape, plan, kernel.backward_pack, kernel.backward_pack_bytes(shape), k, v);
  const size_t bytes = kernel.backward_bytes(shape);
  const int64_t K = shape.kv_heads, width = kernels::attention_width(shape.E);
  const KeySums sums(ctx, shape, plan);
  // Visits done to each block of each key/value head.
  const auto turn_count = static_cast<size_t>(K * plan.block_count);
  auto* turns = ctx.scratch.array<std::atomic<int32_t>>(0, kTurnsSlot, turn_count);
  for (size_t i = 0; i < turn_count; ++i) new (turns + i) std::atomic<int32_t>(0);

  const size_t row_bytes = static_cast<size_t>(K * shape.E) * (ctx.kernels.act_bf16 ? 2 : 4);
  for (int64_t b = 0; b < plan.block_count; ++b) {
    const KeyBlock& block = plan.blocks[b];
    if (block.visits > 0) continue;
    const size_t begin = static_cast<size_t>(block.keys.begin) * row_bytes,
                 size = static_cast<size_t>(block.keys.count) * row_bytes;
    std::memset(static_cast<char*>(dk) + begin, 0, size);
    std::memset(static_cast<char*>(dv) + begin, 0, size);
  }

  ctx.pool.run(plan.chunk_count * K, [&](int64_t task, int thread) {
    const QueryChunk& queries = plan.chunks[task / K];
    const int64_t kv_head = task % K;
    const kernels::AttentionChunk chunk = chunk_of_head(queries, kv_head, q_rows);
    void* state = ctx.scratch.get(thread, kStateSlot, bytes);
    kernel.backward_begin(shape, chunk, q, out, lse, d_out, state);
    for (int64_t i = queries.first_visit; i < queries.end_visit; ++i) {
      const Visit& visit = plan.visits[i];
      const KeyBlock& block = plan.blocks[visit.block];
      const KeySums::Pair sum = sums.get(block, kv_head, thread);
      std::atomic<int32_t>& done = turns[kv_head * plan.block_count + visit.block];
      const void* block_keys = packed.get(block, kv_head, thread);
      await_turn(done, visit.ticket);
      if (visit.ticket == 0) {
        const size_t size = static_cast<size_t>(kernels::attention_sum_rows(block.keys.count) * width) * sizeof(float);
        std::memset(sum.dk, 0, size);
        std::memset(sum.dv, 0, size);
      }
      kernel.backward_keys(shape, chunk, block.keys, block_keys, sum.dk, sum.dv, state);
      if (visit.ticket + 1 == block.visits) kernel.backward_store(shape, kv_head, block.keys, sum.dk, sum.dv, dk, dv);
      done.store(visit.ticket + 1, std::memory_order_release);
    }
    kernel.backward_end(shape, chunk, dq, state);
  });
}

void attention_decode(Context& ctx, const kernels::AttentionShape& shape, const float* q, const void* const* k,
                      const void* const* v, const int32_t* lengths, int64_t B, float* out) {
  const int64_t H = shape.heads, K = shape.kv_heads, E = shape.E, group = H / K;
  const auto first_key = [&](int64_t b) {
    return shape.window > 0 ? std::max<int64_t>(0, lengths[b] - shape.window) : int64_t{0};
  };
  int64_t parts = 1;
  for (int64_t b = 0; b < B; ++b) parts = std::max(parts, (lengths[b] - first_key(b) + kDecodeKeys - 1) / kDecodeKeys);
  // Of each (b, key/value head, part): o (G, E), m (G,), l (G,).
  const int64_t partial = group * (E + 2);
  float* partials = ctx.scratch.array<float>(0, kSumsSlot, static_cast<size_t>(B * K * parts * partial));
  const auto part_end = [&](int64_t b, int64_t part) {
    return std::min<int64_t>(lengths[b], first_key(b) + (part + 1) * kDecodeKeys);
  };

  // The heads of one key/value head from their parts.
  const auto merge = [&](int64_t b, int64_t kv_head) {
    const int64_t used = (lengths[b] - first_key(b) + kDecodeKeys - 1) / kDecodeKeys;
    const float* first = partials + (b * K + kv_head) * parts * partial;
    for (int64_t g = 0; g < group; ++g) {
      float m = first[group * E + g];
      for (int64_t part = 1; part < used; ++part) m = std::max(m, first[part * partial + group * E + g]);
      float* to = out + (b * H + kv_head * group + g) * E;
      std::fill(to, to + E, 0.0f);
      float l = 0;
      for (int64_t part = 0; part < used; ++part) {
        const float* o = first + part * partial;
        const float factor = std::exp2(o[group * E + g] - m);  // scores are in units of log2
        l += factor * o[group * (E + 1) + g];
        for (int64_t e = 0; e < E; ++e) to[e] += factor * o[g * E + e];
      }
      for (int64_t e = 0; e < E; ++e) to[e] /= l;
    }
  };

  ctx.pool.run(B * K * parts, [&](int64_t task, int thread) {
    const int64_t part = task % parts, kv_head = task / parts % K, b = task / parts / K;
    const int64_t begin = first_key(b) + part * kDecodeKeys, end = part_end(b, part);
    if (begin >= end) return;
    float* scores = ctx.scratch.array<float>(thread, kStateSlot,
                                             static_cast<size_t>(kernels::ATTENTION_DECODE_HEADS * kDecodeKeys));
    float* o = partials + task * partial;
    ctx.kernels.attention.decode(shape, kv_head, q + (b * H + kv_head * group) * E, k[b], v[b], begin, end, o,
                                 o + group * E, o + group * (E + 1), scores);
    if (parts == 1) merge(b, kv_head);
  });
  if (parts == 1) return;
  for (int64_t b = 0; b < B; ++b)
    for (int64_t kv_head = 0; kv_head < K; ++kv_head) merge(b, kv_head);
}

}  // namespace localsft
