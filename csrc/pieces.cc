#include "pieces.h"

#include <algorithm>
#include <cmath>
#include <utility>

namespace localsft {

namespace {

// One step of a multiplicative hash (Fibonacci hashing's constant), folded so that high bits count too.
uint64_t mixed(uint64_t hash, uint32_t code) {
  hash = (hash ^ code) * 0x9E3779B97F4A7C15ull;
  return hash ^ (hash >> 29);
}

constexpr int64_t kShard = 2048;  // sets whose inverted index and sums lie in the cache together

// Calls with each term of the set begin..end, once: members that fall into one term follow each other.
template <typename Call>
void each_term(const uint32_t* begin, const uint32_t* end, int shift, Call call) {
  for (const uint32_t* member = begin; member < end; ++member)
    if (member == begin || *member >> shift != member[-1] >> shift) call(*member >> shift);
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

Nearest nearest_sets(const uint32_t* members, const int64_t* starts, int64_t base, int shift, const float* weights,
                     const int64_t* queries, int64_t q, float threshold, int64_t enough) {
  const int64_t vocabulary = int64_t(UINT32_MAX >> shift) + 1;
  const auto root = [&](int64_t set) {
    float sum = 0;
    each_term(members + starts[set], members + starts[set + 1], shift, [&](uint32_t term) { sum += weights[term]; });
    return std::sqrt(sum);
  };
  std::vector<float> roots(q), best(q, 0.0f);
  std::vector<std::vector<int64_t>> found(q);
  for (int64_t k = 0; k < q; ++k) roots[k] = root(queries[k]);
  // The inverted index of a shard: the sets with term t are rows[from[t] .. from[t + 1]).
  std::vector<int32_t> from(vocabulary + 1), rows;
  std::vector<float> sums(kShard), base_roots(kShard);
  for (int64_t first = 0; first < base; first += kShard) {
    const int64_t size = std::min(kShard, base - first);
    std::fill(from.begin(), from.end(), 0);
    const auto each_of = [&](int64_t row, auto call) {
      each_term(members + starts[first + row], members + starts[first + row + 1], shift, call);
    };
    for (int64_t row = 0; row < size; ++row) {
      base_roots[row] = root(first + row);
      each_of(row, [&](uint32_t term) { ++from[term]; });
    }
    int32_t total = 0;
    for (int32_t& count : from) total += std::exchange(count, total);
    rows.resize(total);
    for (int64_t row = 0; row < size; ++row) each_of(row, [&](uint32_t term) { rows[from[term]++] = int32_t(row); });
    std::copy_backward(from.begin(), from.end() - 1, from.end());  // each is at its term's end now
    from[0] = 0;
    for (int64_t k = 0; k < q; ++k) {
      if ((enough && int64_t(found[k].size()) >= enough) || roots[k] == 0) continue;
      std::fill(sums.begin(), sums.begin() + size, 0.0f);
      each_term(members + starts[queries[k]], members + starts[queries[k] + 1], shift, [&](uint32_t term) {
        const float weight = weights[term];
        for (int32_t i = from[term]; i < from[term + 1]; ++i) sums[rows[i]] += weight;
      });
      for (int64_t row = 0; row < size; ++row) {
        if (sums[row] == 0 || first + row == queries[k]) continue;
        const float cosine = sums[row] / (roots[k] * base_roots[row]);
        best[k] = std::max(best[k], cosine);
        if (cosine >= threshold && (!enough || int64_t(found[k].size()) < enough)) found[k].push_back(first + row);
      }
    }
  }
  Nearest nearest{std::move(best), {}, {}};
  for (int64_t k = 0; k < q; ++k) {
    nearest.found_query.insert(nearest.found_query.end(), found[k].size(), k);
    nearest.found_set.insert(nearest.found_set.end(), found[k].begin(), found[k].end());
  }
  return nearest;
}

}  // namespace localsft
