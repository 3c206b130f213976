// The register tile: ROWS × VECTORS·LANES sums kept in registers over a stretch of the reduction. Each sum is one chain
// of multiply-accumulates in the order of the reduction, whatever tile it falls into, so results do not depend on how
// the work is split.

// out = before + sums; WHOLE: the last vector of each row is full, else it has `last` columns. Everything is a local:
// where a store might change what is read again, each one waits for the one before it.
template <int ROWS, int VECTORS, bool WHOLE, typename T>
LOCALSFT_INLINE void store_tile(vf (&sums)[ROWS][VECTORS], int last, T* out, int64_t stride, const float* before,
                                int64_t before_stride) {
  if (before != nullptr) {
#pragma GCC unroll 32
    for (int r = 0; r < ROWS; ++r)
#pragma GCC unroll 4
      for (int v = 0; v < VECTORS; ++v) {
        const float* p = before + r * before_stride + v * LANES;
        sums[r][v] = vadd(WHOLE || v + 1 < VECTORS ? vload(p) : vload_n(p, last), sums[r][v]);
      }
  }
#pragma GCC unroll 32
  for (int r = 0; r < ROWS; ++r)
#pragma GCC unroll 4
    for (int v = 0; v < VECTORS; ++v) {
      T* p = out + r * stride + v * LANES;
      if (WHOLE || v + 1 < VECTORS)
        vput(p, sums[r][v]);
      else
        vput_n(p, sums[r][v], last);
    }
}

// Steps of a row tile in a cache line; whether a block is more than one row tile.
enum { LINE_STEPS = 16 / GEMM_ROWS, FOLLOWED = BLOCK_ROWS > GEMM_ROWS };

template <int ROWS, int VECTORS, int TILES>
LOCALSFT_INLINE void tile_step(const uint32_t* a, int64_t next, const uint32_t* b, vf (&sums)[TILES * ROWS][VECTORS]) {
  vu panel[VECTORS];
#pragma GCC unroll 4
  for (int v = 0; v < VECTORS; ++v) panel[v] = uload(b + v * LANES);
#pragma GCC unroll 4
  for (int t = 0; t < TILES; ++t)
#pragma GCC unroll 16
    for (int r = 0; r < ROWS; ++r) {
      const vu x = ubroadcast(a + t * next + r);
#pragma GCC unroll 4
      for (int v = 0; v < VECTORS; ++v) {
        vf& sum = sums[t * ROWS + r][v];
        sum = umultiply(x, panel[v], sum);
      }
    }
}

// TILES row tiles: their rows of `target` begin at `row`, their operands `at` units behind that of the first tile,
// `next` units apart. Where it is one tile, the next one's is fetched meanwhile; and for every line of it one of
// `ahead`.
template <int TILE_ROWS, int VECTORS, int TILES = 1>
static void tile_kernel(const Segment* segments, int count, int64_t at, int64_t next, int64_t row, int columns,
                        const Target* target, Ahead* ahead) {
  enum { ROWS = TILES * TILE_ROWS };
  const int last = ((columns - 1) & (LANES - 1)) + 1;  // columns in the last vector
  vf sums[ROWS][VECTORS];
#pragma GCC unroll 32
  for (int r = 0; r < ROWS; ++r)
#pragma GCC unroll 4
    for (int v = 0; v < VECTORS; ++v) sums[r][v] = vzero();
  if (!(target->act && ACT_BF16)) {  // where the sums go, and mostly what they are added to: needed at the end
    const float* out = (const float*)target->out + row * target->stride;
#pragma GCC unroll 32
    for (int r = 0; r < ROWS; ++r) {
      __builtin_prefetch(out + r * target->stride, 1);
      __builtin_prefetch(out + r * target->stride + VECTORS * LANES - 1, 1);
    }
  }

  Ahead lines = *ahead;
  for (int s = 0; s < count; ++s) {
    const uint32_t *a = segments[s].a + at, *b = segments[s].b;
    int64_t step = segments[s].steps;
    for (; FOLLOWED && step >= LINE_STEPS; step -= LINE_STEPS) {
      if (TILES == 1) __builtin_prefetch(a + next);
      if (lines.count > 0) {
        __builtin_prefetch(lines.at, 0, 2);  // into L2
        lines.at += lines.stride;
        --lines.count;
      }
#pragma GCC unroll 4
      for (int i = 0; i < LINE_STEPS; ++i) {
        tile_step<TILE_ROWS, VECTORS, TILES>(a, next, b, sums);
        a += GEMM_ROWS;
        b += GEMM_VECTORS * LANES;
      }
    }
    for (; step > 0; --step) {
      tile_step<TILE_ROWS, VECTORS, TILES>(a, next, b, sums);
      a += GEMM_ROWS;
      b += GEMM_VECTORS * LANES;
    }
  }

  if (FOLLOWED) *ahead = lines;

  const Target to = *target;
  const float* before = FOLLOWED && to.before != nullptr ? to.before + row * to.before_stride : to.before;
  if (to.act && ACT_BF16) {
    act_t* out = (act_t*)to.out + row * to.stride;
    if (last == LANES)
      store_tile<ROWS, VECTORS, true>(sums, last, out, to.stride, before, to.before_stride);
    else
      store_tile<ROWS, VECTORS, false>(sums, last, out, to.stride, before, to.before_stride);
  } else {
    float* out = (float*)to.out + row * to.stride;
    if (last == LANES)
      store_tile<ROWS, VECTORS, true>(sums, last, out, to.stride, before, to.before_stride);
    else
      store_tile<ROWS, VECTORS, false>(sums, last, out, to.stride, before, to.before_stride);
  }
}

template <int VECTORS>
static void tiles_columns(const Segment* segments, int count, int64_t next, int rows, int columns, const Target* target,
                          Ahead* ahead) {
  int64_t at = 0;
  int row = 0;
  // One tile of a single vector has too few chains of additions for the units: as many tiles at once as a whole tile
  // has vectors.
  if (FOLLOWED && VECTORS == 1)
    for (; row + GEMM_VECTORS * GEMM_ROWS <= rows; row += GEMM_VECTORS * GEMM_ROWS, at += GEMM_VECTORS * next)
      tile_kernel<GEMM_ROWS, 1, GEMM_VECTORS>(segments, count, at, next, row, columns, target, ahead);
  if (FOLLOWED)
    for (; row + GEMM_ROWS <= rows; row += GEMM_ROWS, at += next)
      tile_kernel<GEMM_ROWS, VECTORS>(segments, count, at, next, row, columns, target, ahead);
  switch (rows - row) {
    case 1:
      return tile_kernel<1, VECTORS>(segments, count, at, 0, row, columns, target, ahead);
    case 2:
      return tile_kernel<2, VECTORS>(segments, count, at, 0, row, columns, target, ahead);
    case 3:
      return tile_kernel<3, VECTORS>(segments, count, at, 0, row, columns, target, ahead);
#if !defined(LOCALSFT_KERNELS_avx2) && !defined(LOCALSFT_KERNELS_baseline)
    case 4:
      return tile_kernel<4, VECTORS>(segments, count, at, 0, row, columns, target, ahead);
    case 5:
      return tile_kernel<5, VECTORS>(segments, count, at, 0, row, columns, target, ahead);
    case 6:
      return tile_kernel<6, VECTORS>(segments, count, at, 0, row, columns, target, ahead);
    case 7:
      return tile_kernel<7, VECTORS>(segments, count, at, 0, row, columns, target, ahead);
    case 8:
      return tile_kernel<8, VECTORS>(segments, count, at, 0, row, columns, target, ahead);
#endif
  }
}

static void tiles(const Segment* segments, int count, int64_t next, int rows, int columns, const Target* target,
                  Ahead* ahead) {
  Ahead nothing = {nullptr, 0, 0};
  if (ahead == nullptr) ahead = &nothing;
  switch ((columns + LANES - 1) / LANES) {
    case 1:
      return tiles_columns<1>(segments, count, next, rows, columns, target, ahead);
    case 2:
      return tiles_columns<2>(segments, count, next, rows, columns, target, ahead);
    default:
      return tiles_columns<GEMM_VECTORS>(segments, count, next, rows, columns, target, ahead);
  }
}
