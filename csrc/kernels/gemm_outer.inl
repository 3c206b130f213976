// The adapters' gradients: a few long sums over the rows, out (rank, columns) += scale·sᵀ·x; x is read once and never
// packed. Neighbouring rows of x are far apart in memory, so a block of rows is read along all columns of the call,
// which are contiguous, before the next block; the sums of a vector of columns are in registers for one block, and in
// the nearest cache between blocks. Each sum is one chain of multiply-adds in the order of the rows.

enum { OUTER_RANKS = 8, OUTER_COLUMNS = 512 };
// Vectors of columns at a time: two where there are registers for their sums, so that a value of s is loaded for both.
// And rows of a block: with twice the sums to load and store, more.
enum { OUTER_VECTORS = LANES == 16 ? 2 : 1, OUTER_ROWS = LANES == 16 ? 32 : 8 };

// Some rows and `columns` columns: VECTORS vectors, or less than one.
template <int RANKS, int VECTORS>
LOCALSFT_INLINE void outer_block(const act_t* x, int64_t x_stride, int columns, const float* s, int64_t s_stride,
                                 int rows, float* kept) {
  vf sums[RANKS][VECTORS];
#pragma GCC unroll 8
  for (int r = 0; r < RANKS; ++r)
#pragma GCC unroll 2
    for (int v = 0; v < VECTORS; ++v) sums[r][v] = vload(kept + r * OUTER_COLUMNS + v * LANES);
  for (int row = 0; row < rows; ++row) {
    const act_t* from = x + row * x_stride;
    __builtin_prefetch(from + OUTER_ROWS * x_stride);  // of the next block: no hardware expects a jump that far
    vf part[VECTORS];
#pragma GCC unroll 2
    for (int v = 0; v < VECTORS; ++v)
      part[v] = columns == VECTORS * LANES ? vload_act(from + v * LANES) : vload_act_n(from, columns);
#pragma GCC unroll 8
    for (int r = 0; r < RANKS; ++r) {
      const vf with = vset(s[row * s_stride + r]);
#pragma GCC unroll 2
      for (int v = 0; v < VECTORS; ++v) sums[r][v] = vfma(with, part[v], sums[r][v]);
    }
  }
#pragma GCC unroll 8
  for (int r = 0; r < RANKS; ++r)
#pragma GCC unroll 2
    for (int v = 0; v < VECTORS; ++v) vstore(kept + r * OUTER_COLUMNS + v * LANES, sums[r][v]);
}

template <int RANKS>
static void outer_ranks(const act_t* x, int64_t x_stride, const float* s, int64_t s_stride, int64_t rows, int columns,
                        float scale, float* out, int64_t out_stride) {
  float kept[RANKS * OUTER_COLUMNS];
  memset(kept, 0, sizeof kept);
  for (int r = 0; r < RANKS; ++r) prefetch((const uint8_t*)(out + r * out_stride), columns * 4);  // needed at the end
  for (int64_t row = 0; row < rows; row += OUTER_ROWS) {
    const int block = rows - row < OUTER_ROWS ? int(rows - row) : int(OUTER_ROWS);
    const act_t* from = x + row * x_stride;
    const float* with = s + row * s_stride;
    int c = 0;
    for (; c + OUTER_VECTORS * LANES <= columns; c += OUTER_VECTORS * LANES)
      outer_block<RANKS, OUTER_VECTORS>(from + c, x_stride, OUTER_VECTORS * LANES, with, s_stride, block, kept + c);
    for (; c < columns; c += LANES)
      outer_block<RANKS, 1>(from + c, x_stride, columns - c < LANES ? columns - c : int(LANES), with, s_stride, block,
                            kept + c);
  }
  const vf factor = vset(scale);
  for (int r = 0; r < RANKS; ++r)
    for (int c = 0; c < columns; c += LANES) {
      const int n = columns - c < LANES ? columns - c : LANES;
      float* to = out + r * out_stride + c;
      vstore_n(to, vfma(factor, vload(kept + r * OUTER_COLUMNS + c), vload_n(to, n)), n);
    }
}

static void outer(const void* x, int64_t x_stride, const float* s, int64_t s_stride, int64_t rank, int64_t rows,
                  int64_t columns, float scale, float* out, int64_t out_stride) {
  for (int64_t begin = 0; begin < columns; begin += OUTER_COLUMNS) {
    const act_t* from = (const act_t*)x + begin;
    const int count = columns - begin < OUTER_COLUMNS ? int(columns - begin) : int(OUTER_COLUMNS);
    int64_t r = 0;
    for (; rank - r >= OUTER_RANKS; r += OUTER_RANKS)
      outer_ranks<OUTER_RANKS>(from, x_stride, s + r, s_stride, rows, count, scale, out + r * out_stride + begin,
                               out_stride);
    for (; rank - r >= 4; r += 4)
      outer_ranks<4>(from, x_stride, s + r, s_stride, rows, count, scale, out + r * out_stride + begin, out_stride);
    for (; r < rank; ++r)
      outer_ranks<1>(from, x_stride, s + r, s_stride, rows, count, scale, out + r * out_stride + begin, out_stride);
  }
}
