// Sets of short pieces of texts, and how much two of them share: what near duplicates and neighbours are found by.
#pragma once
#include <cstdint>
#include <vector>

namespace localsft {

// n sets laid end to end: set i is members[starts[i] .. starts[i+1]), ascending, each once.
struct Sets {
  std::vector<uint32_t> members;
  std::vector<int64_t> starts;  // (n+1)
};

// The hashes of all pieces of `length` >= 1 code points of text i, codes[starts[i] .. starts[i+1]). A shorter text is
// one piece; an empty one has none. The same pieces have the same hashes in every process and on every machine.
Sets text_pieces(const uint32_t* codes, const int64_t* starts, int64_t n, int64_t length);

// out[k]: the Jaccard similarity |A and B| / |A or B| of the sets one[k] and other[k]; 0 if both are empty.
void jaccard(const uint32_t* members, const int64_t* starts, const int64_t* one, const int64_t* other, int64_t m,
             float* out);

// Cosines of sets: sum of weights of the terms in both, through the roots of the sums of each. A member counts as the
// term member >> shift; weights[term] >= 0. The first `base` sets are searched for each of `queries`, itself left out,
// in their order, and no further once `enough` of them have a cosine of at least `threshold` (0: to the end).
struct Nearest {
  std::vector<float> best;           // (q) the highest cosine that was seen, 0 without any
  std::vector<int64_t> found_query;  // (f) for each set that is near: the place of the query in `queries`, ascending
  std::vector<int64_t> found_set;    // (f) and the set, ascending within a query
};

Nearest nearest_sets(const uint32_t* members, const int64_t* starts, int64_t base, int shift, const float* weights,
                     const int64_t* queries, int64_t q, float threshold, int64_t enough);

}  // namespace localsft
