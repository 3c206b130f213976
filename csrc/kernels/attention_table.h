// Attention kernels of one ISA: flash attention over one contiguous block of keys at a time. They know no trees and no
// masks but positions: ops_attention.cc walks the segments and calls them block by block.
//
// Letters: H query heads, K key/value heads, G = H/K query heads that share one key/value head, E head size.
// A *row* is one query head of one token: row r of a key/value head is token r / G (an index into q), head r % G of its
// group. All G heads of a token sit in one chunk beside the other tokens, so that one packed block of keys serves them
// all.
#pragma once
#include <stddef.h>
#include <stdint.h>

namespace localsft {
namespace kernels {

enum {
  ATTENTION_KEYS = 64,         // keys of a block, at most
  ATTENTION_ROWS = 192,        // rows of a chunk, at most
  ATTENTION_DECODE_HEADS = 4,  // heads of a group that decode takes at a time
};

// What is the same for a whole call.
struct AttentionShape {
  int64_t heads, kv_heads, E;  // E even
  float scale;                 // of q·k; > 0
  float softcap;               // 0: none; else the score is softcap·tanh(scale·q·k / softcap)
  int64_t window;              // 0: none; else a token sees the last `window` positions, its own included
};

// Rows [begin, end) of one key/value head, all in one segment.
struct AttentionChunk {
  int64_t kv_head, begin, end;
  const int32_t* q_rows;  // (Mq,) token number of each query
  int64_t shift;          // position on the path root -> segment of a token = its number - shift
};

// Keys of the tokens [begin, begin + count), which sit at position, position + 1, ... of the path.
struct AttentionKeys {
  int64_t begin, count, position;
};

struct AttentionTable {
  // Bytes of the state that one thread needs for a chunk, and of one packed block of keys; multiples of 64.
  size_t (*forward_bytes)(const AttentionShape& shape);
  size_t (*backward_bytes)(const AttentionShape& shape);
  size_t (*forward_pack_bytes)(const AttentionShape& shape);
  size_t (*backward_pack_bytes)(const AttentionShape& shape);

  // k, v act (T, K·E) -> one block of one key/value head in the layouts that the tiles read.
  void (*forward_pack)(const AttentionShape& shape, int64_t kv_head, const AttentionKeys& keys, const void* k,
                       const void* v, void* packed);
  void (*backward_pack)(const AttentionShape& shape, int64_t kv_head, const AttentionKeys& keys, const void* k,
                        const void* v, void* packed);

  // q act (Mq, H·E) -> out act (Mq, H·E), lse float (Mq, H).
  void (*forward_begin)(const AttentionShape& shape, const AttentionChunk& chunk, const void* q, void* state);
  void (*forward_keys)(const AttentionShape& shape, const AttentionChunk& chunk, const AttentionKeys& keys,
                       const void* packed, void* state);
  void (*forward_end)(const AttentionShape& shape, const AttentionChunk& chunk, void* out, float* lse, void* state);

  // dk, dv: float (attention_sum_rows(count), attention_width(E)) sums of the block, added to; dk not yet times scale.
  void (*backward_begin)(const AttentionShape& shape, const AttentionChunk& chunk, const void* q, const void* out,
                         const float* lse, const void* d_out, void* state);
  void (*backward_keys)(const AttentionShape& shape, const AttentionChunk& chunk, const AttentionKeys& keys,
                        const void* packed, float* dk, float* dv, void* state);
  void (*backward_end)(const AttentionShape& shape, const AttentionChunk& chunk, void* dq, void* state);
  // The finished sums of a block -> dk, dv act (T, K·E).
  void (*backward_store)(const AttentionShape& shape, int64_t kv_head, const AttentionKeys& keys, const float* dk_sum,
                         const float* dv_sum, void* dk, void* dv);

  // One token that sees keys [begin, end) of a cache k, v act (capacity, K·E): for each of the G heads of kv_head, from
  // q float (G, E): the largest score m (G,) in units of log2, the sum l (G,) of 2^(score - m) and o float (G, E), that
  // of 2^(score - m)·v. scores: work, float (ATTENTION_DECODE_HEADS, end - begin rounded up to 16).
  void (*decode)(const AttentionShape& shape, int64_t kv_head, const float* q, const void* k, const void* v,
                 int64_t begin, int64_t end, float* o, float* m, float* l, float* scores);
};

// Floats of a row of the dk and dv sums: E rounded up to the widest vector.
static inline int64_t attention_width(int64_t E) { return (E + 15) / 16 * 16; }

// Rows of the sums of a block of `count` keys.
static inline int64_t attention_sum_rows(int64_t count) { return (count + 7) / 8 * 8; }

}  // namespace kernels
}  // namespace localsft
