#include "ops_head.h"

#include <algorithm>
#include <cmath>

namespace localsft {

namespace {

enum Slot { kRows, kExponentials, kPartials, kPerRow, kTile, kWeightRow };

// Bytes of exponentials that exist at a time.
constexpr int64_t kBudget = 48 << 20;
// Columns of logits that a task computes at a time.
constexpr int64_t kMostPanels = 4;

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

// The softmax of some rows of logits l = x·Wᵀ, target t of each apart:
//   others = Σ_{v≠t} exp(l_v - shift), target = exp(l_t - shift), exponentials as a packed row operand if they are
//   wanted.
// The shift is l_t itself, so that a well-predicted row (others ≪ 1) loses no digits, unless some logit is so much
// larger that its exponential would overflow: then it is the largest logit.
class Softmax {
 public:
  // Rows of scratch; Rows [0, rows) of x (rows, D) act.
  Softmax(Context& ctx, const Matrix& x, const Matrix& w, const int32_t* targets, bool keep_exponentials)
      : ctx_(ctx), g_(ctx.kernels.gemm), w_(w), targets_(targets), rows_(x.rows), x_(pack_rows(ctx, x)) {
    steps_ = steps_of(ctx, w.columns);
    panels_ = std::clamp<int64_t>(g_.cached / (steps_ * g_.panel), 1, kMostPanels);
    groups_ = ceil_div(w.rows, panels_ * g_.panel);
    padded_ = round_up(rows_, g_.tile_rows);
    partials_ = ctx.scratch.array<kernels::HeadPartial>(0, kPartials, size_t(groups_ * padded_));
    auto* per_row = ctx.scratch.array<float>(0, kPerRow, size_t(3 * padded_));
    target_logits = per_row, shifts = per_row + padded_, others = per_row + 2 * padded_;
    if (keep_exponentials)
      exponentials =
          ctx.scratch.array<uint32_t>(0, kExponentials, size_t(packed_units(ctx, rows_, steps_of(ctx, w.rows))));
    find_target_logits();
    std::copy(target_logits, target_logits + rows_, shifts);
    run();
    if (!reduce()) {
      run();
      reduce();
    }
  }

  float* target_logits;              // (rows,)
  float* shifts;                     // (rows,)
  float* others;                     // (rows,)
  uint32_t* exponentials = nullptr;  // (row tiles, steps of V, tile_rows) units; 0 for the target

  double log_likelihood(int64_t row) const {
    const double behind = double(target_logits[row]) - double(shifts[row]);
    return behind == 0 ? -std::log1p(double(others[row])) : behind - std::log(double(others[row]) + std::exp(behind));
  }
  // The target is the first largest logit.
  bool target_wins(int64_t row) const {
    const int64_t own = targets_[row] / (panels_ * g_.panel);
    for (int64_t group = 0; group < groups_; ++group) {
      const kernels::HeadPartial& p = partials_[group * padded_ + row];
      if (group == own ? p.beaten != 0 : group < own ? p.max >= target_logits[row] : p.max > target_logits[row])
        return false;
    }
    return true;
  }

 private:
  const uint32_t* tile(int64_t index) const { return x_ + index * steps_ * g_.tile_rows; }

  // l_t, by the same sums in the same order as run() makes them.
  void find_target_logits() {
    ctx_.pool.run(rows_, [&](int64_t row, int thread) {
      auto* panel = ctx_.scratch.array<uint32_t>(thread, kPanelSlot, size_t(steps_ * g_.panel));
      g_.pack_across(&w_, targets_[row], 1, ctx_.kernels.lanes, 0, w_.columns, 1.0f, g_.panel, panel, 0);
      const int64_t first = row / g_.tile_rows * g_.tile_rows;
      const kernels::Segment segment{tile(row / g_.tile_rows), steps_};
      float* column = ctx_.scratch.array<float>(thread, kTile, size_t(g_.tile_rows));
      const kernels::Target target{column, 1, false, nullptr, 0};
      g_.tile(&segment, 1, panel, int(std::min<int64_t>(g_.tile_rows, rows_ - first)), 1, &target);
      target_logits[row] = column[row - first];
    });
  }

  // Each task: some panels of the vocabulary, all rows.
  void run() {
    const int64_t vocabulary_steps = steps_of(ctx_, w_.rows), width = panels_ * g_.panel;
    ctx_.pool.run(groups_, [&](int64_t group, int thread) {
      const int64_t first = group * width, columns = std::min(width, w_.rows - first), next = steps_ * g_.panel;
      auto* panels = ctx_.scratch.array<uint32_t>(thread, kPanelSlot, size_t(panels_ * next));
      auto* logits = ctx_.scratch.array<float>(thread, kTile, size_t(g_.tile_rows * round_up(width, 32)));
      g_.pack_across(&w_, first, int(columns), int(round_up(columns, ctx_.kernels.lanes)), 0, w_.columns, 1.0f,
                     g_.panel, panels, next);
      for (int64_t row = 0; row < rows_; row += g_.tile_rows) {
        const int count = int(std::min<int64_t>(g_.tile_rows, rows_ - row));
        const kernels::Segment segment{tile(row / g_.tile_rows), steps_};
        for (int64_t c = 0; c < columns; c += g_.panel) {
          const kernels::Target target{logits + c, round_up(width, 32), false, nullptr, 0};
          g_.tile(&segment, 1, panels + c / g_.panel * next, count, int(std::min<int64_t>(g_.panel, columns - c)),
                  &target);
        }
        uint32_t* packed =
            exponentials == nullptr ? nullptr : exponentials + row * vocabulary_steps + first / g_.step * g_.tile_rows;
        g_.head_tile(logits, round_up(width, 32), count, int(columns), first, shifts + row, targets_ + row,
                     partials_ + group * padded_ + row, packed);
      }
    });
  }

  // Adds the partial sums up, in order. False if a shift had to be changed: then everything must be done again.
  bool reduce() {
    constexpr float kFar = 60;  // Σ exp stays far below the largest float
    bool good = true;
    for (int64_t row = 0; row < rows_; ++row) {
      double sum = 0;
      float max = target_logits[row];
      for (int64_t group = 0; group < groups_; ++group) {
        const kernels::HeadPartial& p = partials_[group * padded_ + row];
        sum += p.sum;
        max = std::max(max, p.max);
      }
      others[row] = float(sum);
      if (max - shifts[row] > kFar) {
        shifts[row] = max;
        good = false;
      }
    }
    return good;
  }

  Context& ctx_;
  const kernels::GemmTable& g_;
  const Matrix& w_;
  const int32_t* targets_;
  int64_t rows_, padded_, steps_, panels_, groups_;
  const uint32_t* x_;
  kernels::HeadPartial* partials_;  // (groups, padded rows)
};

// Rows at a time, for n rows: whole tiles, equal chunks.
int64_t chunk_rows(const Context& ctx, int64_t n, int64_t vocabulary) {
  const int64_t tile = ctx.kernels.gemm.tile_rows, row_bytes = vocabulary * (ctx.kernels.act_bf16 ? 2 : 4);
  const int64_t most = std::max<int64_t>(kBudget / row_bytes / tile, 1) * tile;
  return round_up(ceil_div(n, ceil_div(n, most)), tile);
}

// dx (rows, D) = Σ_v (softmax_v - [v = t])·weight·W_v = weight/Z·Σ_{v≠t} e_v·W_v - weight·others/Z·W_t, Z = others +
// e_t.
void gradient(Context& ctx, const Softmax& softmax, int64_t rows, const Matrix& w, const int32_t* targets,
              const float* weights, float* dx) {
  multiply(ctx, {{{{w, false, 0}},
                  w.columns,
                  {{softmax.exponentials, steps_of(ctx, w.rows), rows, {dx, w.columns, false, false}}}}});
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
  constexpr int64_t kMaxRows = 1024;
  for (int64_t begin = 0; begin < m; begin += kMaxRows) {
    const int64_t rows = std::min(kMaxRows, m - begin);
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
  const int64_t chunk = n == 0 ? 0 : chunk_rows(ctx, n, w.rows);
  for (int64_t begin = 0; begin < n; begin += chunk) {
    const int64_t rows = std::min(chunk, n - begin);
    const Softmax softmax(ctx, dense(act_kind(ctx), act_row(ctx, x, begin, w.columns), rows, w.columns), w,
                          targets + begin, dx != nullptr);
    for (int64_t row = 0; row < rows; ++row) loss -= double(weights[begin + row]) * softmax.log_likelihood(row);
    if (dx != nullptr) gradient(ctx, softmax, rows, w, targets + begin, weights + begin, dx + begin * w.columns);
  }
  return loss;
}

void head_score(Context& ctx, int64_t n, const void* x, const Matrix& w, const int32_t* targets, float* logprobs,
                uint8_t* correct) {
  const int64_t chunk = n == 0 ? 0 : chunk_rows(ctx, n, w.rows);
  for (int64_t begin = 0; begin < n; begin += chunk) {
    const int64_t rows = std::min(chunk, n - begin);
    const Softmax softmax(ctx, dense(act_kind(ctx), act_row(ctx, x, begin, w.columns), rows, w.columns), w,
                          targets + begin, false);
    for (int64_t row = 0; row < rows; ++row) {
      logprobs[begin + row] = float(softmax.log_likelihood(row));
      correct[begin + row] = softmax.target_wins(row);
    }
  }
}

}  // namespace localsft
