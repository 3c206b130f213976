#include "gemm.h"

#include <algorithm>

namespace localsft {

namespace {

// A part of a product that one thread computes: one panel of columns, a range of row tiles of every row set.
struct Task {
  const Product* product;
  int64_t column;
  int64_t part, parts;  // of the rows
};

int64_t total_steps(const Context& ctx, const Product& product) {
  int64_t steps = 0;
  for (const Term& term : product.terms) steps += steps_of(ctx, term.across ? term.matrix.columns : term.matrix.rows);
  return steps;
}

// A stretch of one term's reduction, in steps.
struct Stretch {
  const Term* term;
  int64_t begin, steps;
};

// Cuts the stacked reduction into chunks of at most `limit` steps. An `across` term comes first, so that its cuts are
// at whole vectors.
std::vector<std::vector<Stretch>> chunks_of(const Context& ctx, const Product& product, int64_t limit) {
  std::vector<std::vector<Stretch>> chunks(1);
  int64_t room = limit;
  for (const Term& term : product.terms) {
    const int64_t steps = steps_of(ctx, term.across ? term.matrix.columns : term.matrix.rows);
    for (int64_t at = 0; at < steps;) {
      if (room == 0) {
        chunks.emplace_back();
        room = limit;
      }
      const int64_t n = std::min(room, steps - at);
      chunks.back().push_back({&term, at, n});
      at += n;
      room -= n;
    }
  }
  return chunks;
}

void run_task(Context& ctx, const Task& task, int thread) {
  const auto& g = ctx.kernels.gemm;
  const Product& product = *task.product;
  const int columns = int(std::min<int64_t>(g.panel, product.columns - task.column));
  const int lanes = int(round_up(columns, ctx.kernels.lanes));
  const auto chunks = chunks_of(ctx, product, g.chunk);
  auto* panel =
      ctx.scratch.array<uint32_t>(thread, kPanelSlot, size_t(std::min(g.chunk, total_steps(ctx, product)) * g.panel));

  for (size_t c = 0; c < chunks.size(); ++c) {
    uint32_t* to = panel;
    for (const Stretch& s : chunks[c]) {
      const Matrix& m = s.term->matrix;
      const int64_t begin = s.begin * g.step;
      const int64_t end = std::min((s.begin + s.steps) * g.step, s.term->across ? m.columns : m.rows);
      (s.term->across ? g.pack_across : g.pack_along)(&m, task.column, columns, lanes, begin, end, 1.0f, g.panel, to);
      to += s.steps * g.panel;
    }
    for (const Rows& rows : product.rows) {
      const int64_t tiles = ceil_div(rows.count, g.tile_rows);
      const int64_t first = tiles * task.part / task.parts, last = tiles * (task.part + 1) / task.parts;
      // Sums of an unfinished reduction are floats: in place where the result is, else in scratch.
      float* sums = nullptr;
      if (rows.out.act && chunks.size() > 1)
        sums = ctx.scratch.array<float>(thread, kSumSlot, size_t((last - first) * g.tile_rows * g.panel));
      std::vector<kernels::Segment> segments(chunks[c].size());
      for (int64_t tile = first; tile < last; ++tile) {
        for (size_t i = 0; i < segments.size(); ++i) {
          const Stretch& s = chunks[c][i];
          segments[i] = {rows.packed + (tile * rows.steps + s.term->first_step + s.begin) * g.tile_rows, s.steps};
        }
        const int64_t row = tile * g.tile_rows;
        kernels::Target target;
        if (sums != nullptr && c + 1 < chunks.size()) {
          float* here = sums + (tile - first) * g.tile_rows * g.panel;
          target = {here, g.panel, false, c > 0 ? here : nullptr, g.panel};
        } else if (rows.out.act) {
          const float* before = sums != nullptr ? sums + (tile - first) * g.tile_rows * g.panel : nullptr;
          target = {static_cast<uint8_t*>(rows.out.data) +
                        (row * rows.out.stride + task.column) * (ctx.kernels.act_bf16 ? 2 : 4),
                    rows.out.stride, true, before, g.panel};
        } else {
          float* here = static_cast<float*>(rows.out.data) + row * rows.out.stride + task.column;
          target = {here, rows.out.stride, false, rows.out.add || c > 0 ? here : nullptr, rows.out.stride};
        }
        g.tile(segments.data(), int(segments.size()), panel, int(std::min<int64_t>(g.tile_rows, rows.count - row)),
               columns, &target);
      }
    }
  }
}

}  // namespace

Matrix row_range(const Matrix& m, int64_t row, int64_t count) {
  Matrix part = m;
  const int64_t size = m.kind == Kind::F32 ? 4 : 2;
  part.data = static_cast<const uint8_t*>(m.data) + row * m.stride * size;
  part.rows = count;
  return part;
}

void multiply(Context& ctx, const std::vector<Product>& products) {
  const auto& g = ctx.kernels.gemm;
  int64_t panels = 0;
  for (const Product& product : products) panels += ceil_div(product.columns, g.panel);
  // More tasks than threads, so that none waits long for the last one; but a part of the rows costs its own packed
  // panel.
  const int64_t wanted = ctx.pool.size() == 1 ? 1 : ceil_div(4 * ctx.pool.size(), std::max<int64_t>(panels, 1));
  std::vector<Task> tasks;
  for (const Product& product : products) {
    int64_t most = 0;
    for (const Rows& rows : product.rows) most = std::max(most, rows.count);
    const int64_t parts = std::clamp<int64_t>(most / 128, 1, wanted);
    for (int64_t column = 0; column < product.columns; column += g.panel)
      for (int64_t part = 0; part < parts; ++part) tasks.push_back({&product, column, part, parts});
  }
  ctx.pool.run(int64_t(tasks.size()), [&](int64_t task, int thread) { run_task(ctx, tasks[size_t(task)], thread); });
}

}  // namespace localsft
