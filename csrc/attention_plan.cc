#include "attention_plan.h"

#include <algorithm>

namespace localsft {

namespace {

using kernels::ATTENTION_KEYS;
using kernels::ATTENTION_ROWS;

constexpr int64_t kRowUnit = 16;  // chunks are cut at whole vectors of the widest ISA

int64_t divide_up(int64_t n, int64_t unit) { return (n + unit - 1) / unit; }

struct Cutter {
  const Segments& segments;
  const int32_t* q_rows;
  int64_t Mq, group, window;
  int32_t* first_block;  // (count + 1,) of each segment
  int32_t* offsets;      // (count,) position on the path of the segment's first token
  int32_t* path;         // (count,) work

  int64_t length(int64_t s) const { return segments.starts[s + 1] - segments.starts[s]; }

  int64_t number_blocks() const {
    int64_t blocks = 0;
    for (int64_t s = 0; s < segments.count; ++s) {
      const int32_t parent = segments.parents[s];
      offsets[s] = parent < 0 ? 0 : offsets[parent] + static_cast<int32_t>(length(parent));
      first_block[s] = static_cast<int32_t>(blocks);
      blocks += divide_up(length(s), ATTENTION_KEYS);
    }
    first_block[segments.count] = static_cast<int32_t>(blocks);
    return blocks;
  }

  void cut_blocks(KeyBlock* blocks) const {
    for (int64_t s = 0; s < segments.count; ++s)
      for (int64_t at = 0; at < length(s); at += ATTENTION_KEYS) {
        const int64_t count = std::min<int64_t>(ATTENTION_KEYS, length(s) - at);
        *blocks++ = {{segments.starts[s] + at, count, offsets[s] + at}, 0, -1};
      }
  }

  // Calls fn(segment, begin, end) for the chunks in rising order: rows of one segment, in parts of nearly equal size.
  template <typename Fn>
  void each_chunk(Fn fn) const {
    int64_t i = 0;
    for (int64_t s = 0; s < segments.count; ++s) {
      const int64_t first = i;
      while (i < Mq && q_rows[i] < segments.starts[s + 1]) ++i;
      const int64_t rows = (i - first) * group;
      if (rows == 0) continue;
      const int64_t part = divide_up(divide_up(rows, divide_up(rows, ATTENTION_ROWS)), kRowUnit) * kRowUnit;
      for (int64_t at = 0; at < rows; at += part) fn(s, first * group + at, first * group + std::min(rows, at + part));
    }
  }

  // Calls fn(block) for the blocks that some row of the chunk sees, from the root down.
  template <typename Fn>
  void each_block(int64_t segment, int64_t begin, int64_t end, Fn fn) const {
    const int64_t shift = segments.starts[segment] - offsets[segment];
    const int64_t high = q_rows[(end - 1) / group] - shift + 1;
    const int64_t low = window > 0 ? std::max<int64_t>(0, q_rows[begin / group] - shift + 1 - window) : 0;
    int64_t depth = 0;
    for (int32_t s = static_cast<int32_t>(segment); s >= 0; s = segments.parents[s]) {
      path[depth++] = s;
      if (offsets[s] <= low) break;  // what lies above is out of the window
    }
    while (depth > 0) {
      const int32_t s = path[--depth];
      const int64_t first = std::max<int64_t>(0, low - offsets[s]) / ATTENTION_KEYS;
      const int64_t last = divide_up(std::min(length(s), high - offsets[s]), ATTENTION_KEYS);
      for (int64_t block = first; block < last; ++block) fn(first_block[s] + block);
    }
  }
};

}  // namespace

AttentionPlan plan_attention(Context& ctx, const Segments& segments, const int32_t* q_rows, int64_t Mq, int64_t group,
                             int64_t window) {
  const auto count = static_cast<size_t>(segments.count);
  int32_t* work = ctx.scratch.array<int32_t>(0, AttentionPlan::kPlanSlot, 3 * count + 1);
  const Cutter cutter{segments, q_rows, Mq, group, window, work, work + count + 1, work + 2 * count + 1};

  AttentionPlan plan{};
  plan.block_count = cutter.number_blocks();
  auto* blocks = ctx.scratch.array<KeyBlock>(0, AttentionPlan::kPlanSlot + 1, static_cast<size_t>(plan.block_count));
  cutter.cut_blocks(blocks);

  int64_t visit_count = 0;
  cutter.each_chunk([&](int64_t s, int64_t begin, int64_t end) {
    ++plan.chunk_count;
    cutter.each_block(s, begin, end, [&](int64_t) { ++visit_count; });
  });
  auto* chunks = ctx.scratch.array<QueryChunk>(0, AttentionPlan::kPlanSlot + 2, static_cast<size_t>(plan.chunk_count));
  auto* visits = ctx.scratch.array<Visit>(0, AttentionPlan::kPlanSlot + 3, static_cast<size_t>(visit_count));

  int64_t visit = 0, at = plan.chunk_count;
  cutter.each_chunk([&](int64_t s, int64_t begin, int64_t end) {
    QueryChunk& chunk = chunks[--at];
    chunk = {begin, end, segments.starts[s] - cutter.offsets[s], visit, visit, 0};
    cutter.each_block(s, begin, end, [&](int64_t block) {
      visits[visit++] = {static_cast<int32_t>(block), 0};
      chunk.work += (end - begin) * blocks[block].keys.count;
    });
    chunk.end_visit = visit;
  });
  std::sort(chunks, chunks + plan.chunk_count, [](const QueryChunk& a, const QueryChunk& b) {
    return a.work != b.work ? a.work > b.work : a.begin > b.begin;
  });
  for (int64_t c = 0; c < plan.chunk_count; ++c)
    for (int64_t i = chunks[c].first_visit; i < chunks[c].end_visit; ++i)
      visits[i].ticket = blocks[visits[i].block].visits++;
  for (int64_t b = 0; b < plan.block_count; ++b)
    if (blocks[b].visits > 1) blocks[b].shared = static_cast<int32_t>(plan.shared_count++);

  plan.chunks = chunks;
  plan.blocks = blocks;
  plan.visits = visits;
  return plan;
}

}  // namespace localsft
