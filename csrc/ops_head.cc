#include "ops_head.h"

#include <algorithm>
#include <cmath>

namespace localsft {

namespace {

enum Slot { kRows, kLogits, kLosses };

// Bytes of logits and their packed copy that exist at a time.
constexpr int64_t kBudget = 48 << 20;

const uint8_t* act_row(const Context& ctx, const void* x, int64_t row, int64_t columns) {
  return static_cast<const uint8_t*>(x) + row * columns * (ctx.kernels.act_bf16 ? 2 : 4);
}

// Rows of logits at a time, for n rows: whole tiles, equal chunks.
int64_t chunk_rows(const Context& ctx, int64_t n, int64_t vocabulary) {
  const int64_t tile = ctx.kernels.gemm.tile_rows, row_bytes = vocabulary * (ctx.kernels.act_bf16 ? 6 : 8);
  const int64_t most = std::max<int64_t>(kBudget / row_bytes / tile, 1) * tile;
  return round_up(ceil_div(n, ceil_div(n, most)), tile);
}

// Rows of `m`, all of them, as a packed row operand.
const uint32_t* pack_rows(Context& ctx, const Matrix& m) {
  const auto& g = ctx.kernels.gemm;
  const int64_t steps = steps_of(ctx, m.columns);
  auto* packed = ctx.scratch.array<uint32_t>(0, kRows, size_t(packed_units(ctx, m.rows, steps)));
  ctx.pool.run(ceil_div(m.rows, g.tile_rows), [&](int64_t tile, int) {
    const int64_t row = tile * g.tile_rows;
    g.pack_across(&m, row, int(std::min<int64_t>(g.tile_rows, m.rows - row)), g.tile_rows, 0, m.columns, 1.0f,
                  g.tile_rows, packed + tile * steps * g.tile_rows, 0);
  });
  return packed;
}

// out (rows, columns of the result) = x·wᵀ (across) or x·w.
void product(Context& ctx, const Matrix& x, const Matrix& w, bool across, float* out) {
  const int64_t columns = across ? w.rows : w.columns;
  const uint32_t* packed = pack_rows(ctx, x);
  multiply(ctx,
           {{{{w, across, 0}}, columns, {{packed, steps_of(ctx, x.columns), x.rows, {out, columns, false, false}}}}});
}

// Calls each(logits of the chunk, first row, rows) for chunks of x·Wᵀ.
template <typename Each>
void for_chunks(Context& ctx, int64_t n, const void* x, const Matrix& w, const Each& each) {
  if (n == 0) return;
  const int64_t chunk = chunk_rows(ctx, n, w.rows);
  auto* logits = ctx.scratch.array<float>(0, kLogits, size_t(std::min(chunk, n) * w.rows));
  for (int64_t begin = 0; begin < n; begin += chunk) {
    const int64_t rows = std::min(chunk, n - begin);
    product(ctx, dense(act_kind(ctx), act_row(ctx, x, begin, w.columns), rows, w.columns), w, true, logits);
    each(logits, begin, rows);
  }
}

}  // namespace

void head_logits(Context& ctx, int64_t m, const void* x, const Matrix& w, float* out) {
  constexpr int64_t kMaxRows = 1024;
  for (int64_t begin = 0; begin < m; begin += kMaxRows) {
    const int64_t rows = std::min(kMaxRows, m - begin);
    product(ctx, dense(act_kind(ctx), act_row(ctx, x, begin, w.columns), rows, w.columns), w, true,
            out + begin * w.rows);
  }
}

double head_loss(Context& ctx, int64_t n, const void* x, const Matrix& w, const int32_t* targets, const float* weights,
                 float* dx) {
  auto* losses = ctx.scratch.array<double>(0, kLosses, size_t(n));
  for_chunks(ctx, n, x, w, [&](float* logits, int64_t begin, int64_t rows) {
    ctx.pool.run(rows, [&](int64_t row, int) {
      float* l = logits + row * w.rows;
      const int32_t target = targets[begin + row];
      const float weight = weights[begin + row];
      float max, sum;
      ctx.kernels.gemm.softmax_stats(l, w.rows, &max, &sum);
      const float log_sum = max + std::log(sum);
      losses[begin + row] = double(weight) * (double(log_sum) - double(l[target]));
      if (dx == nullptr) return;
      ctx.kernels.gemm.softmax_scale(l, w.rows, log_sum, weight);
      l[target] -= weight;
    });
    if (dx != nullptr) product(ctx, dense(Kind::F32, logits, rows, w.rows), w, false, dx + begin * w.columns);
  });
  double total = 0;
  for (int64_t i = 0; i < n; ++i) total += losses[i];
  return total;
}

void head_score(Context& ctx, int64_t n, const void* x, const Matrix& w, const int32_t* targets, float* logprobs,
                uint8_t* correct) {
  for_chunks(ctx, n, x, w, [&](float* logits, int64_t begin, int64_t rows) {
    ctx.pool.run(rows, [&](int64_t row, int) {
      const float* l = logits + row * w.rows;
      const int32_t target = targets[begin + row];
      float max, sum;
      ctx.kernels.gemm.softmax_stats(l, w.rows, &max, &sum);
      logprobs[begin + row] = l[target] - (max + std::log(sum));
      bool first = l[target] == max;
      for (int32_t i = 0; first && i < target; ++i) first = l[i] < max;
      correct[begin + row] = first;
    });
  });
}

}  // namespace localsft
