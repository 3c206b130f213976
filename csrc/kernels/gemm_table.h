// Matrix kernels of one ISA: packing (with dequantization) into panels, the register tile, and the skinny decode path.
//
// A *unit* is one step of the reduction for one row or column: a float (step 1), or where the ISA multiplies bfloat16,
// a pair of bfloat16 that are neighbours along the reduction (step 2). Units are 32 bits wide on every ISA.
#pragma once
#include <stdint.h>

namespace localsft {
namespace kernels {

enum class Kind : int32_t { F32, F16, BF16, AFFINE };

struct GemmTable;

// A whole matrix as pack_across and as pack_along make it, panel after panel of (steps, panel) units.
struct KeptPanels {
  const uint32_t* across;
  const uint32_t* along;
  const GemmTable* by;  // whose panels they are; null where none are kept
};

// A (rows, columns) matrix to read: a dense array with `stride` elements from row to row, or an affine-quantized weight
// w = scale·q + bias (see weights/tensor.py for the packing).
struct Matrix {
  Kind kind;
  int64_t rows, columns;
  const void* data;
  int64_t stride;
  // AFFINE only: (rows, columns / group) scales and biases of kind F32, F16 or BF16; group = 2^group_log2 columns.
  const void* scales;
  const void* biases;
  Kind scale_kind;
  int32_t bits, group_log2;
  // What is kept, or null, of a matrix of all_rows rows of which these are those from first_row on: a multiple of the
  // step, and of the panel where they are packed across.
  const KeptPanels* kept;
  int64_t first_row, all_rows;
};

// One stretch of the reduction: `steps` steps of packed row tiles and of a panel.
struct Segment {
  const uint32_t* a;  // (steps, tile_rows) units of the first tile
  const uint32_t* b;  // (steps, panel) units
  int64_t steps;
};

// Where a tile goes: out = before + tile. `before` (what is added to, or the sum of the earlier chunks of a reduction)
// is float, null for none, and may be `out`.
struct Target {
  void* out;
  int64_t stride;
  bool act;  // out is act, else float
  const float* before;
  int64_t before_stride;
};

// Memory to fetch while tiles are multiplied: `count` cache lines, `stride` bytes apart, of which the kernel takes as
// many as it has time for. They need not exist.
struct Ahead {
  const uint8_t* at;
  int64_t stride, count;
};

// What a tile of logits says about a row.
struct HeadPartial {
  float sum;       // Σ exp(logit - shift) without the target
  float max;       // the largest logit without the target
  int32_t beaten;  // the target is in this tile, and an earlier logit is as large or a later one is larger
};

struct GemmTable {
  int step;            // columns or rows of the reduction in a unit: 1 or 2
  int tile_rows;       // rows of the register tile
  int panel;           // columns of the register tile
  int64_t cached;      // units of packed panels that stay in the cache while the rows pass by
  int64_t chunk;       // steps of the reduction that are multiplied at a time, at most; a multiple of 32
  int64_t block_rows;  // rows that one panel of a chunk is used for before the next panel
  int least_panels;    // of the narrowest task, 1 or 2

  // Packs rows [row, row + count) over the columns [begin, end): the columns are the reduction. Panels of `width` rows,
  // one every `next` units, each (steps, width) units; lanes [count, lanes) are zero, further ones untouched. `begin`
  // is a multiple of 32 for AFFINE. `scale` multiplies a float32 matrix, else it must be 1.
  void (*pack_across)(const Matrix* m, int64_t row, int count, int lanes, int64_t begin, int64_t end, float scale,
                      int width, uint32_t* dst, int64_t next);
  // Packs columns [column, column + count) over the rows [begin, end): the rows are the reduction. At most 512 columns.
  void (*pack_along)(const Matrix* m, int64_t column, int count, int lanes, int64_t begin, int64_t end, float scale,
                     int width, uint32_t* dst, int64_t next);
  // (rows, columns) of Σ over segments of a·b, at most block_rows rows. Row tile after row tile, their operands `next`
  // units apart. `ahead`, if not null, goes on by what was fetched.
  void (*tiles)(const Segment* segments, int count, int64_t next, int rows, int columns, const Target* target,
                Ahead* ahead);

  // `steps` steps of a full tile on registers alone: what the arithmetic units can do at most. The result has no
  // meaning.
  float (*peak)(int64_t steps);

  // Bytes of the rows x arranged for decode with w, 64-byte aligned; 0 where they are read as they are. decode_pack
  // arranges the columns [begin, end); begin is a multiple of 128.
  int64_t (*decode_bytes)(const Matrix* w);
  void (*decode_pack)(const Matrix* w, const float* x, int m, int64_t begin, int64_t end, void* packed);
  // out[m·out_stride + n] = x[m]·w[n] for n in [begin, end): float rows x (m, columns), m in [1, 16], `packed` from
  // decode_pack or null where decode_bytes is 0; reads w once.
  void (*decode)(const Matrix* w, int64_t begin, int64_t end, const float* x, const void* packed, int m, float* out,
                 int64_t out_stride);
  // out[i·out_stride + c] += scale·Σ u[i·u_stride + r]·b[r·b_stride + c] for c in [begin, end), i < m, r < rank; float.
  void (*expand)(const float* u, int64_t u_stride, float scale, const float* b, int64_t b_stride, int64_t rank,
                 int64_t begin, int64_t end, int m, float* out, int64_t out_stride);
  // out (columns,) = row `row` of m as floats.
  void (*row)(const Matrix* m, int64_t row, float* out);

  // A (rows <= tile_rows, columns) tile of logits, of the columns [first, first + columns) of all: e = exp(logit -
  // shift) of its row, 0 in the row's target column; overwrites the logits, whose rows hold a multiple of 32 floats,
  // with units of e. `packed`, if not null: e as a packed row tile, (steps of the columns, tile_rows) units.
  void (*head_tile)(float* logits, int64_t stride, int rows, int columns, int64_t first, const float* shifts,
                    const int32_t* targets, HeadPartial* partials, uint32_t* packed);

  // out (rank, columns) += scale·sᵀ·x: s float (rows, rank), x act (rows, columns), the strides in elements.
  void (*outer)(const void* x, int64_t x_stride, const float* s, int64_t s_stride, int64_t rank, int64_t rows,
                int64_t columns, float scale, float* out, int64_t out_stride);
};

// Floating-point operations of a step of a full tile.
static inline double step_flops(const GemmTable& g) { return 2.0 * g.step * g.tile_rows * g.panel; }

}  // namespace kernels
}  // namespace localsft
