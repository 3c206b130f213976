// Which rows of queries visit which blocks of keys, over a forest of segments.
#pragma once
#include <cstdint>

#include "context.h"

namespace localsft {

// A forest of segments over packed tokens: segment s holds the tokens [starts[s], starts[s + 1]) and follows parents[s]
// < s
// (-1: a root). A token sees its own segment causally and all tokens of its ancestors.
struct Segments {
  const int32_t* starts;   // (count + 1,)
  const int32_t* parents;  // (count,)
  int64_t count;
};

// Keys of one segment, at most kernels::ATTENTION_KEYS.
struct KeyBlock {
  kernels::AttentionKeys keys;
  int32_t visits;  // chunks that see it
  int32_t shared;  // its number among the blocks that several chunks see, else -1
};

// One chunk of queries meets one block. The chunks that see a block do so in the order of their tickets 0, 1, ...
struct Visit {
  int32_t block, ticket;
};

// Query rows [begin, end) of every key/value head (kernels::AttentionChunk), all in one segment.
struct QueryChunk {
  int64_t begin, end, shift;
  int64_t first_visit, end_visit;
  int64_t work;  // rows times keys
};

// Lives in the scratch of the context's thread 0, slots kPlanSlot..kPlanSlot + 4: valid until the next plan.
// The chunks are in the order in which they are to run, which gives the tickets: those with most work first, and of
// equals the last.
struct AttentionPlan {
  static constexpr int kPlanSlot = 8;
  const QueryChunk* chunks;
  const KeyBlock* blocks;
  const Visit* visits;
  int64_t chunk_count, block_count, shared_count;
};

// q_rows (Mq,) ascending token numbers; `group` query heads share a key/value head; window as in AttentionShape.
AttentionPlan plan_attention(Context& ctx, const Segments& segments, const int32_t* q_rows, int64_t Mq, int64_t group,
                             int64_t window);

}  // namespace localsft
