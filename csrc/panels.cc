#include "panels.h"

#include <algorithm>

namespace localsft {

namespace {

// Panels in one orientation: `columns` of the result, over a reduction.
int64_t units(const Context& ctx, int64_t columns, int64_t reduction) {
  const auto& g = ctx.kernels.gemm;
  return ceil_div(columns, g.panel) * g.panel * steps_of(ctx, reduction);
}

bool is_kept(const Context& ctx, const Matrix& m) { return m.kept != nullptr && m.kept->by == &ctx.kernels.gemm; }

}  // namespace

int64_t panel_units(const Context& ctx, const Matrix& m) {
  return units(ctx, m.rows, m.columns) + units(ctx, m.columns, m.rows);
}

kernels::KeptPanels keep_panels(Context& ctx, const Matrix& m, uint32_t* to) {
  constexpr int64_t kPanels = 4;  // of a task: in whole cache lines of the weight's rows
  const auto& g = ctx.kernels.gemm;
  const auto pack = [&](auto* function, uint32_t* first, int64_t columns, int64_t reduction) {
    const int64_t next = steps_of(ctx, reduction) * g.panel, width = kPanels * g.panel;
    ctx.pool.run(ceil_div(columns, width), [&](int64_t task, int) {
      const int64_t column = task * width, count = std::min(width, columns - column);
      function(&m, column, int(count), int(round_up(count, ctx.kernels.lanes)), 0, reduction, 1.0f, g.panel,
               first + task * kPanels * next, next);
    });
  };
  uint32_t* along = to + units(ctx, m.rows, m.columns);
  pack(g.pack_across, to, m.rows, m.columns);
  pack(g.pack_along, along, m.columns, m.rows);
  return {to, along, &g};
}

Panels kept_across(const Context& ctx, const Matrix& m, int64_t first, int64_t step) {
  if (!is_kept(ctx, m)) return {nullptr, 0};
  const auto& g = ctx.kernels.gemm;
  const int64_t next = steps_of(ctx, m.columns) * g.panel;
  return {m.kept->across + (m.first_row + first) / g.panel * next + step * g.panel, next};
}

Panels kept_along(const Context& ctx, const Matrix& m, int64_t first, int64_t step) {
  if (!is_kept(ctx, m)) return {nullptr, 0};
  const auto& g = ctx.kernels.gemm;
  const int64_t next = steps_of(ctx, m.all_rows) * g.panel;
  return {m.kept->along + first / g.panel * next + (m.first_row / g.step + step) * g.panel, next};
}

}  // namespace localsft
