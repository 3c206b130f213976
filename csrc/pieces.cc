#include "pieces.h"

#include <algorithm>

namespace localsft {

namespace {

// One step of a multiplicative hash (Fibonacci hashing's constant), folded so that high bits count too.
uint64_t mixed(uint64_t hash, uint32_t code) {
  hash = (hash ^ code) * 0x9E3779B97F4A7C15ull;
  return hash ^ (hash >> 29);
}

}  // namespace

Sets text_pieces(const uint32_t* codes, const int64_t* starts, int64_t n, int64_t length) {
  Sets sets;
  sets.starts.reserve(n + 1);
  sets.starts.push_back(0);
  sets.members.reserve(starts[n]);
  for (int64_t i = 0; i < n; ++i) {
    const int64_t size = starts[i + 1] - starts[i];
    const uint32_t* text = codes + starts[i];
    const int64_t width = std::min(length, size);
    const auto begin = int64_t(sets.members.size());
    for (int64_t k = 0; size > 0 && k + width <= size; ++k) {
      uint64_t hash = 0;
      for (int64_t c = 0; c < width; ++c) hash = mixed(hash, text[k + c]);
      sets.members.push_back(uint32_t(hash >> 32));
    }
    std::sort(sets.members.begin() + begin, sets.members.end());
    sets.members.erase(std::unique(sets.members.begin() + begin, sets.members.end()), sets.members.end());
    sets.starts.push_back(int64_t(sets.members.size()));
  }
  return sets;
}

void jaccard(const uint32_t* members, const int64_t* starts, const int64_t* one, const int64_t* other, int64_t m,
             float* out) {
  for (int64_t k = 0; k < m; ++k) {
    const uint32_t* a = members + starts[one[k]];
    const uint32_t* a_end = members + starts[one[k] + 1];
    const uint32_t* b = members + starts[other[k]];
    const uint32_t* b_end = members + starts[other[k] + 1];
    const int64_t total = (a_end - a) + (b_end - b);
    int64_t shared = 0;
    while (a < a_end && b < b_end) {
      const uint32_t left = *a, right = *b;
      shared += left == right;
      a += left <= right;
      b += right <= left;
    }
    out[k] = total ? float(double(shared) / double(total - shared)) : 0.0f;
  }
}

}  // namespace localsft
