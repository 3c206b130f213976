#include "pack.h"

#include <algorithm>
#include <numeric>

namespace localsft {

namespace {

// The set of the remaining capacities that open bins have: 64-way tree of bits, so that the smallest one >= r is found
// in as many steps as the tree has levels (2 for 4096, 3 for 262144).
class CapacityTree {
 public:
  explicit CapacityTree(int64_t largest) {
    for (int64_t bits = largest + 1; levels_.empty() || bits > 1; bits = (bits + 63) / 64)
      levels_.emplace_back((bits + 63) / 64, 0);
  }

  void insert(int64_t value) {
    for (auto& level : levels_) {
      level[value >> 6] |= uint64_t(1) << (value & 63);
      value >>= 6;
    }
  }

  void erase(int64_t value) {
    for (auto& level : levels_) {
      level[value >> 6] &= ~(uint64_t(1) << (value & 63));
      if (level[value >> 6] != 0) return;
      value >>= 6;
    }
  }

  // The smallest member >= value, or -1.
  int64_t at_least(int64_t value) const {
    for (size_t up = 0; up < levels_.size(); ++up) {
      if ((value >> 6) >= int64_t(levels_[up].size())) return -1;
      const uint64_t rest = levels_[up][value >> 6] >> (value & 63);
      if (rest != 0) {
        value += __builtin_ctzll(rest);
        while (up-- > 0) value = value * 64 + __builtin_ctzll(levels_[up][value]);
        return value;
      }
      value = (value >> 6) + 1;
    }
    return -1;
  }

 private:
  std::vector<std::vector<uint64_t>> levels_;  // [0] has one bit for each capacity
};

}  // namespace

std::vector<int64_t> pack_lengths(const int64_t* lengths, int64_t n, int64_t capacity) {
  std::vector<int64_t> bins(n);
  std::vector<int64_t> order(n);
  std::iota(order.begin(), order.end(), int64_t(0));
  std::sort(order.begin(), order.end(),
            [&](int64_t a, int64_t b) { return lengths[a] != lengths[b] ? lengths[a] > lengths[b] : a < b; });

  int64_t opened = 0;
  auto next = order.begin();
  for (; next != order.end() && lengths[*next] > capacity; ++next) bins[*next] = opened++;
  if (next == order.end()) return bins;

  // Bins with the same remaining capacity form a stack. Remaining capacities above the longest length are all alike:
  // anything fits, and a bin is opened only when nothing fits, so that at most one bin is in that class.
  const int64_t longest = lengths[*next];
  CapacityTree tree(longest);
  std::vector<int64_t> top(longest + 1, -1);  // the last bin of each class
  std::vector<int64_t> below;                 // the bin under it in its stack
  std::vector<int64_t> remaining;             // of each bin opened here, its free capacity
  const int64_t first_bin = opened;
  for (; next != order.end(); ++next) {
    const int64_t length = lengths[*next];
    const int64_t found = tree.at_least(length);
    int64_t bin;
    if (found >= 0) {
      bin = top[found];
      top[found] = below[bin];
      if (top[found] < 0) tree.erase(found);
    } else {
      bin = opened++ - first_bin;
      below.push_back(-1);
      remaining.push_back(capacity);
    }
    bins[*next] = first_bin + bin;
    remaining[bin] -= length;
    const int64_t key = std::min(remaining[bin], longest);
    if (key == 0) continue;
    below[bin] = top[key];
    if (top[key] < 0) tree.insert(key);
    top[key] = bin;
  }
  return bins;
}

Forest prefix_forest(const int32_t* tokens, const int64_t* starts, int64_t n, int64_t min_shared) {
  // Sequences order[first..last) share their first `common` tokens; those before `active` end there (they lie inside
  // the others' path). Tokens from `begin` on are not yet in any segment.
  struct Task {
    int64_t first, active, last, begin, common;
    int32_t parent;
  };
  Forest forest;
  forest.last.resize(n);
  std::vector<int64_t> order(n);
  std::iota(order.begin(), order.end(), int64_t(0));
  std::vector<std::pair<int64_t, int64_t>> keyed;  // (next token, sequence)
  std::vector<Task> tasks;
  if (n > 0) tasks.push_back({0, 0, n, 0, 0, -1});

  const auto length = [&](int64_t i) { return starts[i + 1] - starts[i]; };
  const auto emit = [&](const Task& t, int64_t end) {
    forest.begins.push_back(t.begin);
    forest.ends.push_back(end);
    forest.parents.push_back(t.parent);
    return int32_t(forest.parents.size() - 1);
  };

  while (!tasks.empty()) {
    Task t = tasks.back();
    tasks.pop_back();
    while (true) {
      // How far the active sequences go on together.
      const int32_t* model = tokens + starts[order[t.active]];
      int64_t common = length(order[t.active]);
      for (int64_t k = t.active + 1; k < t.last; ++k) {
        const int32_t* other = tokens + starts[order[k]];
        const int64_t limit = std::min(common, length(order[k]));
        common = std::mismatch(model + t.common, model + limit, other + t.common).first - model;
      }
      t.common = common;
      // By the next token; those that end here come first.
      keyed.clear();
      for (int64_t k = t.active; k < t.last; ++k) {
        const int64_t i = order[k];
        keyed.emplace_back(length(i) == common ? INT64_MIN : int64_t(tokens[starts[i] + common]), i);
      }
      std::sort(keyed.begin(), keyed.end());
      int64_t ended = 0;
      for (size_t k = 0; k < keyed.size(); ++k) {
        order[t.active + int64_t(k)] = keyed[k].second;
        ended += keyed[k].first == INT64_MIN;
      }
      t.active += ended;
      if (t.active == t.last) break;                                // all are the same from here: a leaf
      if (keyed[size_t(ended)].first != keyed.back().first) break;  // a branching
    }
    if (t.active == t.last) {
      const int32_t leaf = emit(t, t.common);
      for (int64_t k = t.first; k < t.last; ++k) forest.last[order[k]] = leaf;
      continue;
    }
    Task child{t.first, t.active, t.active, t.begin, t.common, t.parent};
    if (t.common > t.begin && t.common - t.begin >= min_shared) {
      const int32_t segment = emit(t, t.common);
      for (int64_t k = t.first; k < t.active; ++k) forest.last[order[k]] = segment;
      child = {t.active, t.active, t.active, t.common, t.common, segment};
    }  // else too short to share: the children repeat it, and the first child carries the sequences that ended in it
    const size_t before = tasks.size();
    for (int64_t k = t.active; k < t.last; ++k) {
      const bool group_ends =
          k + 1 == t.last || tokens[starts[order[k + 1]] + t.common] != tokens[starts[order[k]] + t.common];
      if (!group_ends) continue;
      child.last = k + 1;
      tasks.push_back(child);
      child.first = child.active = k + 1;
    }
    std::reverse(tasks.begin() + int64_t(before), tasks.end());  // the first child is taken up first
  }
  return forest;
}

void forest_rows(const Forest& forest, const int64_t* starts, int64_t* rows) {
  std::vector<int64_t> first(forest.parents.size());  // row of each segment
  for (size_t s = 1; s < first.size(); ++s) first[s] = first[s - 1] + forest.ends[s - 1] - forest.begins[s - 1];
  for (size_t i = 0; i < forest.last.size(); ++i) {
    int64_t end = starts[i + 1] - starts[i];
    for (int32_t s = forest.last[i]; s >= 0; s = forest.parents[size_t(s)]) {
      const int64_t begin = forest.begins[size_t(s)];
      for (int64_t t = begin; t < end; ++t) rows[starts[i] + t] = first[size_t(s)] + t - begin;
      end = begin;
    }
  }
}

std::vector<int64_t> pack_forest(const Forest& forest, int64_t capacity) {
  const int32_t segments = int32_t(forest.parents.size());
  std::vector<int64_t> weight(segments);                     // tokens of the subtree
  std::vector<std::vector<int32_t>> children(segments + 1);  // the roots come last
  for (int32_t s = segments - 1; s >= 0; --s) {
    weight[s] += forest.ends[s] - forest.begins[s];
    if (forest.parents[s] >= 0) weight[forest.parents[s]] += weight[s];
  }
  for (int32_t s = 0; s < segments; ++s) children[forest.parents[s] < 0 ? segments : forest.parents[s]].push_back(s);

  // From the leaves up, a subtree that fits together with the path to it is one piece; one that does not is the pieces
  // of its children, packed into as few as possible that each repeat the path.
  std::vector<int64_t> size, into;  // of a piece: tokens below the path to it; the piece that took it up, or -1
  std::vector<int64_t> piece_of(segments, -1);
  std::vector<std::vector<int64_t>> pieces(segments + 1);
  const auto new_piece = [&](int64_t tokens) {
    size.push_back(tokens);
    into.push_back(-1);
    return int64_t(size.size() - 1);
  };
  // Packs the pieces of all children of `s`, with `own` tokens repeated in each bin.
  const auto join = [&](int32_t s, int64_t room, int64_t own) {
    std::vector<int64_t> parts, sizes;
    for (const int32_t child : children[s]) {
      parts.insert(parts.end(), pieces[child].begin(), pieces[child].end());
      std::vector<int64_t>().swap(pieces[child]);
    }
    for (const int64_t part : parts) sizes.push_back(size[part]);
    const auto bins = pack_lengths(sizes.data(), int64_t(sizes.size()), room);
    for (size_t k = 0; k < parts.size(); ++k) {
      while (int64_t(pieces[s].size()) <= bins[k]) pieces[s].push_back(new_piece(own));
      const int64_t whole = pieces[s][bins[k]];
      size[whole] += sizes[k];
      into[parts[k]] = whole;
    }
  };
  for (int32_t s = segments - 1; s >= 0; --s) {
    if (forest.begins[s] + weight[s] <= capacity || children[s].empty()) {
      // Only the topmost whole subtree counts: the parent drops these when it is whole itself.
      for (const int32_t child : children[s]) std::vector<int64_t>().swap(pieces[child]);
      pieces[s].push_back(new_piece(weight[s]));
    } else {
      join(s, capacity - forest.ends[s], forest.ends[s] - forest.begins[s]);
    }
    piece_of[s] = pieces[s].front();
  }
  join(segments, capacity, 0);

  std::vector<bool> whole(segments);
  std::vector<int64_t> bins(forest.last.size());
  std::vector<int64_t> number(size.size(), -1);
  for (size_t k = 0; k < pieces[segments].size(); ++k) number[pieces[segments][k]] = int64_t(k);
  for (int32_t s = 0; s < segments; ++s) {  // a part of a whole subtree lies where that lies
    const int32_t parent = forest.parents[s];
    whole[s] = forest.begins[s] + weight[s] <= capacity;
    if (parent >= 0 && whole[parent]) piece_of[s] = piece_of[parent];
  }
  for (size_t i = 0; i < bins.size(); ++i) {
    int64_t piece = piece_of[forest.last[i]];
    while (into[piece] >= 0) piece = into[piece];
    bins[i] = number[piece];
  }
  return bins;
}

}  // namespace localsft
