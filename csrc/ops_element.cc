#include "ops_element.h"

#include <algorithm>
#include <cmath>
#include <cstring>

namespace localsft {

namespace {

// Elements a task works on: some tens of microseconds, so that handing it out costs nothing beside it.
constexpr int64_t kTaskElements = 1 << 15;

// Calls fn(begin, end) over [0, rows) in parts whose bounds depend on the shape only.
template <typename Fn>
void over_rows(Context& ctx, int64_t rows, int64_t row_elements, Fn fn) {
  const int64_t part = std::max<int64_t>(1, kTaskElements / std::max<int64_t>(1, row_elements));
  ctx.pool.run((rows + part - 1) / part,
               [&](int64_t task, int) { fn(task * part, std::min(rows, (task + 1) * part)); });
}

kernels::Dropout dropout_mask(double p, uint64_t seed) {
  return {seed, static_cast<uint32_t>(p * 4294967296.0), static_cast<float>(1.0 / (1.0 - p))};
}

}  // namespace

void rms_norm(Context& ctx, const float* h, const float* weight, float eps, void* saved, float* rstd, void* out,
              int64_t M, int64_t D) {
  over_rows(ctx, M, D, [&](int64_t begin, int64_t end) {
    ctx.kernels.element.rms_norm(h, weight, eps, saved, rstd, out, D, begin, end);
  });
}

void rms_norm_again(Context& ctx, const void* saved, const float* weight, const float* rstd, void* out, int64_t M,
                    int64_t D) {
  over_rows(ctx, M, D, [&](int64_t begin, int64_t end) {
    ctx.kernels.element.rms_norm_again(saved, weight, rstd, out, D, begin, end);
  });
}

void rms_norm_backward(Context& ctx, const void* dy, const void* saved, const float* weight, const float* rstd,
                       float* dx, int64_t M, int64_t D) {
  over_rows(ctx, M, D, [&](int64_t begin, int64_t end) {
    ctx.kernels.element.rms_norm_backward(dy, saved, weight, rstd, dx, D, begin, end);
  });
}

void rms_norm_f32(Context& ctx, const float* h, const float* weight, float eps, float* out, int64_t M, int64_t D) {
  over_rows(ctx, M, D,
            [&](int64_t begin, int64_t end) { ctx.kernels.element.rms_norm_f32(h, weight, eps, out, D, begin, end); });
}

void rope(Context& ctx, void* x, const float* cos, const float* sin, int64_t M, int64_t heads, int64_t E,
          bool inverse) {
  over_rows(ctx, M, heads * E, [&](int64_t begin, int64_t end) {
    ctx.kernels.element.rope(x, cos, sin, inverse ? -1.0f : 1.0f, heads, E, begin, end);
  });
}

void swiglu(Context& ctx, const void* gate, const void* up, void* out, int64_t n) {
  over_rows(ctx, n, 1, [&](int64_t begin, int64_t end) { ctx.kernels.element.swiglu(gate, up, out, begin, end); });
}

void swiglu_backward(Context& ctx, const void* dy, const void* gate, const void* up, void* d_gate, void* d_up,
                     int64_t n) {
  over_rows(ctx, n, 1, [&](int64_t begin, int64_t end) {
    ctx.kernels.element.swiglu_backward(dy, gate, up, d_gate, d_up, begin, end);
  });
}

void scale_columns(Context& ctx, const void* x, const float* c, void* out, bool add, int64_t M, int64_t D) {
  over_rows(ctx, M, D,
            [&](int64_t begin, int64_t end) { ctx.kernels.element.scale_columns(x, c, out, add, D, begin, end); });
}

void column_dots(Context& ctx, const void* x, const void* y, const float* r, float* out, int64_t M, int64_t D) {
  constexpr int64_t kColumns = 128;  // per task: the tasks divide the columns, each of which is one sum over the rows
  ctx.pool.run((D + kColumns - 1) / kColumns, [&](int64_t task, int) {
    const int64_t begin = task * kColumns;
    ctx.kernels.element.column_dots(x, y, r, out, M, D, begin, std::min(D, begin + kColumns));
  });
}

void round_to_act(Context& ctx, const float* x, void* out, int64_t n) {
  over_rows(ctx, n, 1, [&](int64_t begin, int64_t end) { ctx.kernels.element.round_to_act(x, out, begin, end); });
}

void gather_rows(Context& ctx, const void* x, const int32_t* rows, void* out, int64_t M, int64_t bytes) {
  over_rows(ctx, M, bytes / 4, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i)
      std::memcpy(static_cast<char*>(out) + i * bytes, static_cast<const char*>(x) + rows[i] * bytes,
                  static_cast<size_t>(bytes));
  });
}

void scatter_add_rows(Context& ctx, const float* x, const int32_t* rows, float* out, int64_t M, int64_t D) {
  // Rows repeat, so the tasks divide the columns: each adds its part of every row, in order.
  const int64_t part = M * D <= kTaskElements ? D : 64;
  ctx.pool.run((D + part - 1) / part, [&](int64_t task, int) {
    const int64_t begin = task * part, width = std::min(part, D - begin);
    for (int64_t i = 0; i < M; ++i) ctx.kernels.element.add(x + i * D + begin, out + rows[i] * D + begin, width);
  });
}

void dropout(Context& ctx, const void* x, double p, uint64_t seed, void* out, int64_t M, int64_t K) {
  const kernels::Dropout mask = dropout_mask(p, seed);
  over_rows(ctx, M, K, [&](int64_t begin, int64_t end) { ctx.kernels.element.dropout(x, mask, out, K, begin, end); });
}

void dropout_add(Context& ctx, const float* dx_lora, double p, uint64_t seed, void* dx, bool dx_is_act, int64_t M,
                 int64_t K) {
  const kernels::Dropout mask = dropout_mask(p, seed);
  over_rows(ctx, M, K, [&](int64_t begin, int64_t end) {
    ctx.kernels.element.dropout_add(dx_lora, mask, dx, dx_is_act, K, begin, end);
  });
}

void adamw(Context& ctx, float* p, float* g, float* m, float* v, int64_t n, double lr, double beta1, double beta2,
           double eps, double weight_decay, int64_t step, double grad_scale) {
  kernels::AdamW settings;
  settings.grad_scale = static_cast<float>(grad_scale);
  settings.decay = static_cast<float>(1.0 - lr * weight_decay);
  settings.beta2 = static_cast<float>(beta2);
  settings.rest1 = static_cast<float>(1.0 - beta1);
  settings.rest2 = static_cast<float>(1.0 - beta2);
  settings.step_size = static_cast<float>(lr / (1.0 - std::pow(beta1, static_cast<double>(step))));
  settings.root_scale = static_cast<float>(1.0 / std::sqrt(1.0 - std::pow(beta2, static_cast<double>(step))));
  settings.eps = static_cast<float>(eps);
  over_rows(ctx, n, 1,
            [&](int64_t begin, int64_t end) { ctx.kernels.element.adamw(p, g, m, v, settings, begin, end); });
}

double squared_norm(Context& ctx, const float* g, int64_t n) {
  const int64_t blocks = (n + kTaskElements - 1) / kTaskElements;
  double* sums = ctx.scratch.array<double>(0, 0, static_cast<size_t>(blocks));
  ctx.pool.run(blocks, [&](int64_t block, int) {
    const int64_t begin = block * kTaskElements;
    sums[block] = ctx.kernels.element.squared_norm(g + begin, std::min(kTaskElements, n - begin));
  });
  double total = 0;
  for (int64_t block = 0; block < blocks; ++block) total += sums[block];
  return total;
}

}  // namespace localsft
