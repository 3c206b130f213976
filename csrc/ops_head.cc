#include "ops_head.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <vector>

#include "ahead.h"
#include "panels.h"

namespace localsft {

namespace {

enum Slot { kRows, kExponentials, kPartials, kPerRow, kTile, kWeightRow, kAgain, kAgainRows };

// Rows at a time, and units of their exponentials (or a little more): 4 MB, which stay in the last-level cache between
// the two products that use them. Columns don't depend on the rows, so a row's results don't either.
constexpr int64_t kMostRows = 512, kBlockUnits = 2048;
// Panels of logits that a task computes at a time, and rows of them.
constexpr int64_t kMostPanels = 4, kTileRows = 64;
// exp of a difference of logits up to this: a sum of them, and their product with a weight, stay far below the largest
// float.
constexpr float kFar = 60;

const uint8_t* act_row(const Context& ctx, const void* x, int64_t row, int64_t columns) {
  return static_cast<const uint8_t*>(x) + row * columns * (ctx.kernels.act_bf16 ? 2 : 4);
}

// x (rows, D) act as a packed row operand.
const uint32_t* pack_rows(Context& ctx, const Matrix& x) {
  const auto& g = ctx.kernels.gemm;
  const int64_t steps = steps_of(ctx, x.columns);
  auto* packed = ctx.scratch.array<uint32_t>(0, kRows, size_t(packed_units(ctx, x.rows, steps)));
  ctx.pool.run(ceil_div(x.rows, g.tile_rows), [&](int64_t tile, int) {
    const int64_t row = tile * g.tile_rows;
    g.pack_across(&x, row, int(std::min<int64_t>(g.tile_rows, x.rows - row)), g.tile_rows, 0, x.columns, 1.0f,
                  g.tile_rows, packed + tile * steps * g.tile_rows, 0);
  });
  return packed;
}

// The softmax of some rows of logits l = x·Wᵀ, target t of each apart, and the sum of the weights' rows that it makes:
//   others = Σ_{v≠t} exp(l_v - shift),  dx = Σ_{v≠t} exp(l_v - shift)·W_v  where it is wanted.
// The shift is known before the first logit is: it is l_t itself, so that a well-predicted row (others ≪ 1) loses no
// digits. So the vocabulary is walked over once, block by block: logits, exponentials, and their share of dx. Rows
// where some logit turns out to be so much larger than l_t that its exponential might overflow are walked over again,
// alone, with the largest logit as their shift.
class Softmax {
 public:
  // x (rows, D) act, rows <= kMostRows; dx (rows, D) float or null.
  Softmax(Context& ctx, const Matrix& x, const Matrix& w, const int32_t* targets, float* dx)
      : ctx_(ctx), g_(ctx.kernels.gemm), w_(w), steps_(steps_of(ctx, w.columns)) {
    panels_ = std::clamp<int64_t>(g_.cached / (steps_ * g_.panel), 1, kMostPanels);
    const int64_t padded = round_up(x.rows, g_.tile_rows);
    auto* per_row = ctx.scratch.array<float>(0, kPerRow, size_t(4 * padded));
    target_logits = per_row, shifts = per_row + padded, others = per_row + 2 * padded;
    wins = reinterpret_cast<int32_t*>(per_row + 3 * padded);
    Rows rows{x.rows, targets, pack_rows(ctx, x), target_logits, shifts, others, wins, dx};
    find_target_logits(rows);
    std::copy(target_logits, target_logits + x.rows, shifts);
    const std::vector<float> largest = walk(rows);
    again(x, rows, largest);
  }

  float* target_logits;  // (rows,)
  float* shifts;         // (rows,)
  float* others;         // (rows,)
  int32_t* wins;         // (rows,) the target is the first largest logit

  double log_likelihood(int64_t row) const {
    const double behind = double(target_logits[row]) - double(shifts[row]);
    return behind == 0 ? -std::log1p(double(others[row])) : behind - std::log(double(others[row]) + std::exp(behind));
  }

 private:
  struct Rows {
    int64_t count;
    const int32_t* targets;
    const uint32_t* packed;  // (tiles, steps, tile_rows) units
    float *target_logits, *shifts, *others;
    int32_t* wins;
    float* dx;
  };

  // The logits of `count` rows from `row` on, the first of a row tile, and a panel, chunk by chunk of the reduction:
  // the same sums in the same order everywhere.
  void logits(const Rows& rows, int64_t row, int64_t count, const uint32_t* panel, int columns, int64_t begin,
              int64_t steps, float* out, int64_t stride, kernels::Ahead* ahead) const {
    const kernels::Segment segment{rows.packed + (row / g_.tile_rows * steps_ + begin) * g_.tile_rows,
                                   panel + begin * g_.panel, steps};
    const kernels::Target target{out, stride, false, begin == 0 ? nullptr : out, stride};
    g_.tiles(&segment, 1, steps_ * g_.tile_rows, int(count), columns, &target, ahead);
  }
  int64_t chunk() const {
    return std::max<int64_t>(round_up(ceil_div(steps_, std::max<int64_t>(ceil_div(steps_, g_.chunk), 1)), 32), 32);
  }

  void find_target_logits(const Rows& rows) {
    ctx_.pool.run(rows.count, [&](int64_t row, int thread) {
      auto* panel = ctx_.scratch.array<uint32_t>(thread, kPanelSlot, size_t(steps_ * g_.panel));
      g_.pack_across(&w_, rows.targets[row], 1, ctx_.kernels.lanes, 0, w_.columns, 1.0f, g_.panel, panel, 0);
      const int64_t first = row / g_.tile_rows * g_.tile_rows;
      auto* column = ctx_.scratch.array<float>(thread, kTile, size_t(g_.tile_rows));
      for (int64_t begin = 0; begin < steps_; begin += chunk())
        logits(rows, first, std::min<int64_t>(g_.tile_rows, rows.count - first), panel, 1, begin,
               std::min(chunk(), steps_ - begin), column, 1, nullptr);
      rows.target_logits[row] = column[row - first];
    });
  }

  // Fills others and wins, and dx; returns the largest logit of each row. The blocks depend on the number of rows
  // alone.
  std::vector<float> walk(const Rows& rows) {
    const int64_t width = panels_ * g_.panel, padded = round_up(rows.count, g_.tile_rows);
    const int64_t block = ceil_div(std::min(kBlockUnits * g_.step, w_.rows), width) * width;
    std::vector<double> sums(size_t(rows.count), 0.0);
    std::vector<float> largest(rows.target_logits, rows.target_logits + rows.count);
    std::fill(rows.wins, rows.wins + rows.count, 1);
    auto* partials = ctx_.scratch.array<kernels::HeadPartial>(0, kPartials, size_t(ceil_div(block, width) * padded));
    uint32_t* exponentials = nullptr;
    if (rows.dx != nullptr)
      exponentials = ctx_.scratch.array<uint32_t>(0, kExponentials, size_t(padded * steps_of(ctx_, block)));
    for (int64_t begin = 0; begin < w_.rows; begin += block) {
      const int64_t count = std::min(block, w_.rows - begin), groups = ceil_div(count, width);
      fill_block(rows, begin, count, partials, padded, exponentials);
      for (int64_t group = 0; group < groups; ++group)
        for (int64_t row = 0; row < rows.count; ++row) {
          const kernels::HeadPartial& p = partials[group * padded + row];
          sums[size_t(row)] += p.sum;
          largest[size_t(row)] = std::max(largest[size_t(row)], p.max);
          const int64_t first = begin + group * width, target = rows.targets[row];
          const bool own = first <= target && target < first + width;
          if (own ? p.beaten != 0 : first < target ? p.max >= rows.target_logits[row] : p.max > rows.target_logits[row])
            rows.wins[row] = 0;
        }
      if (rows.dx != nullptr) {
        multiply(ctx_,
                 {{{{row_range(w_, begin, count), false, 0}},
                   w_.columns,
                   {{exponentials, steps_of(ctx_, count), rows.count, {rows.dx, w_.columns, false, begin > 0}}}}});
      }
    }
    for (int64_t row = 0; row < rows.count; ++row) rows.others[row] = float(sums[size_t(row)]);
    return largest;
  }

  // Logits and exponentials of the vocabulary [begin, begin + count). Each task: some panels, all rows.
  void fill_block(const Rows& rows, int64_t begin, int64_t count, kernels::HeadPartial* partials, int64_t padded,
                  uint32_t* exponentials) {
    const int64_t width = panels_ * g_.panel, block_steps = steps_of(ctx_, count), stride = round_up(width, 32);
    ctx_.pool.run(ceil_div(count, width), [&](int64_t group, int thread) {
      const int64_t offset = group * width, columns = std::min(width, count - offset), next = steps_ * g_.panel;
      auto* tile = ctx_.scratch.array<float>(thread, kTile, size_t(kTileRows * stride));
      // Where this thread's next panels begin, probably.
      const int64_t after = begin + offset + ctx_.pool.size() * width;
      const uint32_t* panels = kept_across(ctx_, w_, begin + offset, 0).units;
      AheadQueue ahead;
      if (panels != nullptr) {
        if (after < w_.rows)
          ahead.add(kept_across(ctx_, w_, after, 0).units,
                    std::min(panels_, ceil_div(w_.rows - after, g_.panel)) * next);
      } else {
        auto* own = ctx_.scratch.array<uint32_t>(thread, kPanelSlot, size_t(panels_ * next));
        g_.pack_across(&w_, begin + offset, int(columns), int(round_up(columns, ctx_.kernels.lanes)), 0, w_.columns,
                       1.0f, g_.panel, own, next);
        panels = own;
        ahead.add(w_, after, std::min(width, w_.rows - after), 0, w_.columns);
      }
      for (int64_t first = 0; first < rows.count; first += kTileRows) {
        const int64_t last = std::min(first + kTileRows, rows.count);
        for (int64_t step = 0; step < steps_; step += chunk())
          for (int64_t c = 0; c < columns; c += g_.panel)
            for (int64_t row = first; row < last; row += g_.block_rows)
              logits(rows, row, std::min(g_.block_rows, last - row), panels + c / g_.panel * next,
                     int(std::min<int64_t>(g_.panel, columns - c)), step, std::min(chunk(), steps_ - step),
                     tile + (row - first) * stride + c, stride, ahead.next());
        for (int64_t row = first; row < last; row += g_.tile_rows) {
          uint32_t* packed =
              exponentials == nullptr ? nullptr : exponentials + row * block_steps + offset / g_.step * g_.tile_rows;
          g_.head_tile(tile + (row - first) * stride, stride, int(std::min<int64_t>(g_.tile_rows, last - row)),
                       int(columns), begin + offset, rows.shifts + row, rows.targets + row,
                       partials + group * padded + row, packed);
        }
      }
    });
  }

  // Walks again over the rows whose largest logit lies too far above their target's.
  void again(const Matrix& x, const Rows& rows, const std::vector<float>& largest) {
    std::vector<int64_t> far;
    for (int64_t row = 0; row < rows.count; ++row)
      if (largest[size_t(row)] - rows.shifts[row] > kFar) far.push_back(row);
    if (far.empty()) return;
    const auto n = int64_t(far.size());
    const int64_t row_bytes = x.columns * (ctx_.kernels.act_bf16 ? 2 : 4);
    auto* gathered = ctx_.scratch.array<uint8_t>(0, kAgain, size_t(n * row_bytes));
    auto* dx = rows.dx == nullptr ? nullptr : ctx_.scratch.array<float>(0, kAgainRows, size_t(n * w_.columns));
    std::vector<int32_t> targets, won(size_t(n), 0);
    std::vector<float> logits_of, shift, sum(size_t(n), 0.0f);
    for (int64_t i = 0; i < n; ++i) {
      const int64_t row = far[size_t(i)];
      std::memcpy(gathered + i * row_bytes, static_cast<const uint8_t*>(x.data) + row * row_bytes, size_t(row_bytes));
      targets.push_back(rows.targets[row]);
      logits_of.push_back(rows.target_logits[row]);
      shift.push_back(largest[size_t(row)]);
    }
    // head_tile reads whole row tiles of shifts and targets only up to its rows: no padding is needed.
    const Matrix part = dense(act_kind(ctx_), gathered, n, x.columns);
    walk({n, targets.data(), pack_rows(ctx_, part), logits_of.data(), shift.data(), sum.data(), won.data(), dx});
    for (int64_t i = 0; i < n; ++i) {
      const int64_t row = far[size_t(i)];
      rows.shifts[row] = shift[size_t(i)];
      rows.others[row] = sum[size_t(i)];
      if (dx != nullptr)
        std::memcpy(rows.dx + row * w_.columns, dx + i * w_.columns, size_t(w_.columns) * sizeof(float));
    }
  }

  Context& ctx_;
  const kernels::GemmTable& g_;
  const Matrix& w_;
  int64_t steps_, panels_;
};

// Rows at a time, for n rows: whole tiles, equal chunks.
int64_t chunk_rows(const Context& ctx, int64_t n) {
  return round_up(ceil_div(n, ceil_div(n, kMostRows)), ctx.kernels.gemm.tile_rows);
}

// dx (rows, D) = Σ_v (softmax_v - [v = t])·weight·W_v = weight/Z·Σ_{v≠t} e_v·W_v - weight·others/Z·W_t, Z = others +
// e_t.
void finish_gradient(Context& ctx, const Softmax& softmax, int64_t rows, const Matrix& w, const int32_t* targets,
                     const float* weights, float* dx) {
  ctx.pool.run(rows, [&](int64_t row, int thread) {
    auto* target = ctx.scratch.array<float>(thread, kWeightRow, size_t(w.columns));
    ctx.kernels.gemm.row(&w, targets[row], target);
    const float z = softmax.others[row] + std::exp(softmax.target_logits[row] - softmax.shifts[row]);
    const float factor = weights[row] / z, target_factor = factor * softmax.others[row];
    float* d = dx + row * w.columns;
    for (int64_t k = 0; k < w.columns; ++k) d[k] = factor * d[k] - target_factor * target[k];
  });
}

}  // namespace

void head_logits(Context& ctx, int64_t m, const void* x, const Matrix& w, float* out) {
  for (int64_t begin = 0; begin < m; begin += kMostRows) {
    const int64_t rows = std::min(kMostRows, m - begin);
    const Matrix part = dense(act_kind(ctx), act_row(ctx, x, begin, w.columns), rows, w.columns);
    multiply(
        ctx,
        {{{{w, true, 0}},
          w.rows,
          {{pack_rows(ctx, part), steps_of(ctx, w.columns), rows, {out + begin * w.rows, w.rows, false, false}}}}});
  }
}

double head_loss(Context& ctx, int64_t n, const void* x, const Matrix& w, const int32_t* targets, const float* weights,
                 float* dx) {
  double loss = 0;
  const int64_t chunk = n == 0 ? 0 : chunk_rows(ctx, n);
  for (int64_t begin = 0; begin < n; begin += chunk) {
    const int64_t rows = std::min(chunk, n - begin);
    float* d = dx == nullptr ? nullptr : dx + begin * w.columns;
    const Softmax softmax(ctx, dense(act_kind(ctx), act_row(ctx, x, begin, w.columns), rows, w.columns), w,
                          targets + begin, d);
    for (int64_t row = 0; row < rows; ++row) loss -= double(weights[begin + row]) * softmax.log_likelihood(row);
    if (d != nullptr) finish_gradient(ctx, softmax, rows, w, targets + begin, weights + begin, d);
  }
  return loss;
}

void head_score(Context& ctx, int64_t n, const void* x, const Matrix& w, const int32_t* targets, float* logprobs,
                uint8_t* correct) {
  const int64_t chunk = n == 0 ? 0 : chunk_rows(ctx, n);
  for (int64_t begin = 0; begin < n; begin += chunk) {
    const int64_t rows = std::min(chunk, n - begin);
    const Softmax softmax(ctx, dense(act_kind(ctx), act_row(ctx, x, begin, w.columns), rows, w.columns), w,
                          targets + begin, nullptr);
    for (int64_t row = 0; row < rows; ++row) {
      logprobs[begin + row] = float(softmax.log_likelihood(row));
      correct[begin + row] = softmax.wins[row] != 0;
    }
  }
}

}  // namespace localsft
