// The matrix product over packed operands: what the linear operations and the head are written in.
//
// The row operand is packed whole, in tiles of tile_rows rows: (tiles, steps, tile_rows) units. The column operand, a
// stack of matrices along the reduction, is packed panel by panel inside the tasks (that is where quantized weights
// become floats), and each panel is used for all rows. So y = [x | u]·[Wᵀ ; B] and dx = [dy₁ | dy₂ | du]·[W₁ ; W₂ ; A]
// are one product each, and nothing but the panel is ever dequantized.
#pragma once
#include <cstdint>
#include <functional>
#include <vector>

#include "context.h"

namespace localsft {

using kernels::Kind;
using kernels::Matrix;

inline Matrix dense(Kind kind, const void* data, int64_t rows, int64_t columns, int64_t stride) {
  return Matrix{kind, rows, columns, data, stride, nullptr, nullptr, Kind::F32, 0, 0, nullptr, 0, rows};
}
inline Matrix dense(Kind kind, const void* data, int64_t rows, int64_t columns) {
  return dense(kind, data, rows, columns, columns);
}
inline Kind act_kind(const Context& ctx) { return ctx.kernels.act_bf16 ? Kind::BF16 : Kind::F32; }

// Rows [row, row + count) of a matrix.
Matrix row_range(const Matrix& m, int64_t row, int64_t count);

inline int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }
inline int64_t round_up(int64_t a, int64_t b) { return ceil_div(a, b) * b; }
inline int64_t steps_of(const Context& ctx, int64_t reduction) { return ceil_div(reduction, ctx.kernels.gemm.step); }

// One matrix of the column operand. across: its rows are columns of the result (W in x·Wᵀ); else its columns are (W in
// dy·W).
struct Term {
  Matrix matrix;
  bool across;
  int64_t first_step;  // where this term's reduction begins in the row operand
};

struct Out {
  void* data;
  int64_t stride;
  bool act;  // element type: act, else float
  bool add;  // float only
};

// Packed rows and where their results go.
struct Rows {
  const uint32_t* packed;
  int64_t steps;  // of the whole packed tile
  int64_t count;
  Out out;
};

// out = Σ over terms of rows·matrix, for each of the row sets (which share the packed panels).
struct Product {
  std::vector<Term> terms;
  int64_t columns;
  std::vector<Rows> rows;
};

// Units of a row operand.
inline int64_t packed_units(const Context& ctx, int64_t rows, int64_t steps) {
  return round_up(rows, ctx.kernels.gemm.tile_rows) * steps;
}

// Tasks of another kind: run(task, thread) for the tasks [0, count).
struct Tasks {
  int64_t count = 0;
  std::function<void(int64_t, int)> run;
};

// All products in one parallel run, and then, in the same, `also`: who is done with the products first goes on with
// those. None may write what another reads. Uses slot kPanelSlot and kSumSlot of every thread.
void multiply(Context& ctx, const std::vector<Product>& products, const Tasks& also = {});

// FLOP/s of the register tile on all threads when nothing is loaded or stored: the ceiling of multiply.
double peak_flops(Context& ctx);

constexpr int kPanelSlot = 15, kSumSlot = 14;

}  // namespace localsft
