// Packing: which examples are computed together, and which of their tokens are computed once.
#pragma once
#include <cstdint>
#include <vector>

namespace localsft {

// Best-fit decreasing: the bin (0, 1, ... in the order of opening) of each length, so that no bin holds more than
// `capacity`; a length above the capacity gets a bin of its own. Lengths >= 1. O(n log n), and O(longest) memory
// besides.
std::vector<int64_t> pack_lengths(const int64_t* lengths, int64_t n, int64_t capacity);

// A forest of segments over n token sequences, in which a common prefix exists once.
struct Forest {
  std::vector<int64_t> begins;   // (S) tokens before the segment on the path from its root
  std::vector<int64_t> ends;     // (S) the same behind it; a child's begin is its parent's end
  std::vector<int32_t> parents;  // (S) -1 for a root; a parent comes before its children
  std::vector<int32_t> last;     // (n) the segment that holds the sequence's last token
};

// Sequence i is tokens[starts[i] .. starts[i+1]), not empty. A prefix of fewer than `min_shared` tokens (counted from
// the end of the parent segment) is not shared but repeated in each branch. A sequence that is a prefix of another lies
// inside that one's path and costs nothing. O(total tokens + n log n per branching level).
Forest prefix_forest(const int32_t* tokens, const int64_t* starts, int64_t n, int64_t min_shared);

// The row of each token where the forest's segments lie one after the other: rows[starts[i] + t] of token t of sequence
// i. The sequences' lengths must be those that the forest was made of.
void forest_rows(const Forest& forest, const int64_t* starts, int64_t* rows);

// The bin of each sequence, so that the forest of each bin's sequences has at most `capacity` tokens. A tree that is
// larger is cut into several that repeat the prefix; a sequence above the capacity gets a bin of its own.
std::vector<int64_t> pack_forest(const Forest& forest, int64_t capacity);

}  // namespace localsft
