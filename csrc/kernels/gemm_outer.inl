// The adapters' gradients: a few long sums over the rows, out (rank, columns) += scale·sᵀ·x. The sums of OUTER_RANKS
// rows and two cache lines' worth of columns stay in registers; x is read once and never packed.

#if defined(LOCALSFT_KERNELS_avx2) || defined(LOCALSFT_KERNELS_baseline)
enum { OUTER_RANKS = 8, OUTER_VECTORS = 1 };  // 16 registers
#else
enum { OUTER_RANKS = 8, OUTER_VECTORS = 2 };
#endif

template <int RANKS, int VECTORS>
static void outer_block(const act_t* x, int64_t x_stride, const float* s, int64_t s_stride, int64_t rows, int columns,
                        float scale, float* out, int64_t out_stride) {
  vf sums[RANKS][VECTORS];
#pragma GCC unroll 8
  for (int r = 0; r < RANKS; ++r)
#pragma GCC unroll 2
    for (int v = 0; v < VECTORS; ++v) sums[r][v] = vzero();
  const bool whole = columns == VECTORS * LANES;
  for (int64_t row = 0; row < rows; ++row) {
    vf part[VECTORS];
#pragma GCC unroll 2
    for (int v = 0; v < VECTORS; ++v) {
      const int n = columns - v * LANES < LANES ? columns - v * LANES : LANES;
      part[v] = whole ? vload_act(x + v * LANES) : n > 0 ? vload_act_n(x + v * LANES, n) : vzero();
    }
#pragma GCC unroll 8
    for (int r = 0; r < RANKS; ++r) {
      const vf factor = vset(s[r]);
#pragma GCC unroll 2
      for (int v = 0; v < VECTORS; ++v) sums[r][v] = vfma(factor, part[v], sums[r][v]);
    }
    x += x_stride;
    s += s_stride;
  }
  const vf factor = vset(scale);
#pragma GCC unroll 8
  for (int r = 0; r < RANKS; ++r)
#pragma GCC unroll 2
    for (int v = 0; v < VECTORS; ++v) {
      const int n = columns - v * LANES < LANES ? columns - v * LANES : LANES;
      float* to = out + r * out_stride + v * LANES;
      if (n > 0) vstore_n(to, vfma(factor, sums[r][v], vload_n(to, n)), n);
    }
}

template <int RANKS>
static void outer_columns(const act_t* x, int64_t x_stride, const float* s, int64_t s_stride, int64_t rows,
                          int64_t columns, float scale, float* out, int64_t out_stride) {
  for (int64_t c = 0; c < columns; c += OUTER_VECTORS * LANES) {
    const int count = int(columns - c < OUTER_VECTORS * LANES ? columns - c : OUTER_VECTORS * LANES);
    outer_block<RANKS, OUTER_VECTORS>(x + c, x_stride, s, s_stride, rows, count, scale, out + c, out_stride);
  }
}

static void outer(const void* x, int64_t x_stride, const float* s, int64_t s_stride, int64_t rank, int64_t rows,
                  int64_t columns, float scale, float* out, int64_t out_stride) {
  const act_t* from = (const act_t*)x;
  for (; rank >= OUTER_RANKS; rank -= OUTER_RANKS, s += OUTER_RANKS, out += OUTER_RANKS * out_stride)
    outer_columns<OUTER_RANKS>(from, x_stride, s, s_stride, rows, columns, scale, out, out_stride);
  for (; rank >= 4; rank -= 4, s += 4, out += 4 * out_stride)
    outer_columns<4>(from, x_stride, s, s_stride, rows, columns, scale, out, out_stride);
  for (; rank > 0; --rank, ++s, out += out_stride)
    outer_columns<1>(from, x_stride, s, s_stride, rows, columns, scale, out, out_stride);
}
