// The register tile: ROWS × VECTORS·LANES sums kept in registers over a stretch of the reduction. Each sum is one chain
// of multiply-accumulates in the order of the reduction, whatever tile it falls into, so results do not depend on how
// the work is split.

// out = before + sums; WHOLE: the last vector of each row is full, else it has `last` columns. Everything is a local:
// where a store might change what is read again, each one waits for the one before it.
template <int ROWS, int VECTORS, bool WHOLE, typename T>
LOCALSFT_INLINE void store_tile(vf (&sums)[ROWS][VECTORS], int last, T* out, int64_t stride, const float* before,
                                int64_t before_stride) {
  if (before != nullptr) {
#pragma GCC unroll 16
    for (int r = 0; r < ROWS; ++r)
#pragma GCC unroll 4
      for (int v = 0; v < VECTORS; ++v) {
        const float* p = before + r * before_stride + v * LANES;
        sums[r][v] = vadd(WHOLE || v + 1 < VECTORS ? vload(p) : vload_n(p, last), sums[r][v]);
      }
  }
#pragma GCC unroll 16
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

template <int ROWS, int VECTORS>
static void tile_kernel(const Segment* segments, int count, const uint32_t* b, int columns, const Target* target) {
  const int last = ((columns - 1) & (LANES - 1)) + 1;  // columns in the last vector
  vf sums[ROWS][VECTORS];
#pragma GCC unroll 16
  for (int r = 0; r < ROWS; ++r)
#pragma GCC unroll 4
    for (int v = 0; v < VECTORS; ++v) sums[r][v] = vzero();
  if (!(target->act && ACT_BF16)) {  // where the sums go, and mostly what they are added to: needed at the end
#pragma GCC unroll 16
    for (int r = 0; r < ROWS; ++r) {
      __builtin_prefetch((float*)target->out + r * target->stride, 1);
      __builtin_prefetch((float*)target->out + r * target->stride + VECTORS * LANES - 1, 1);
    }
  }

  for (int s = 0; s < count; ++s) {
    const uint32_t* a = segments[s].a;
    for (int64_t step = segments[s].steps; step > 0; --step) {
      vu panel[VECTORS];
#pragma GCC unroll 4
      for (int v = 0; v < VECTORS; ++v) panel[v] = uload(b + v * LANES);
#pragma GCC unroll 16
      for (int r = 0; r < ROWS; ++r) {
        const vu x = ubroadcast(a + r);
#pragma GCC unroll 4
        for (int v = 0; v < VECTORS; ++v) sums[r][v] = umultiply(x, panel[v], sums[r][v]);
      }
      a += GEMM_ROWS;
      b += GEMM_VECTORS * LANES;
    }
  }

  const Target to = *target;
  if (to.act && ACT_BF16) {
    if (last == LANES)
      store_tile<ROWS, VECTORS, true>(sums, last, (act_t*)to.out, to.stride, to.before, to.before_stride);
    else
      store_tile<ROWS, VECTORS, false>(sums, last, (act_t*)to.out, to.stride, to.before, to.before_stride);
  } else {
    if (last == LANES)
      store_tile<ROWS, VECTORS, true>(sums, last, (float*)to.out, to.stride, to.before, to.before_stride);
    else
      store_tile<ROWS, VECTORS, false>(sums, last, (float*)to.out, to.stride, to.before, to.before_stride);
  }
}

template <int ROWS>
static void tile_columns(const Segment* segments, int count, const uint32_t* b, int columns, const Target* target) {
  switch ((columns + LANES - 1) / LANES) {
    case 1:
      return tile_kernel<ROWS, 1>(segments, count, b, columns, target);
    case 2:
      return tile_kernel<ROWS, 2>(segments, count, b, columns, target);
    default:
      return tile_kernel<ROWS, GEMM_VECTORS>(segments, count, b, columns, target);
  }
}

static void tile(const Segment* segments, int count, const uint32_t* b, int rows, int columns, const Target* target) {
  switch (rows) {
    case 1:
      return tile_columns<1>(segments, count, b, columns, target);
    case 2:
      return tile_columns<2>(segments, count, b, columns, target);
    case 3:
      return tile_columns<3>(segments, count, b, columns, target);
    case 4:
      return tile_columns<4>(segments, count, b, columns, target);
#if !defined(LOCALSFT_KERNELS_avx2) && !defined(LOCALSFT_KERNELS_baseline)
    case 5:
      return tile_columns<5>(segments, count, b, columns, target);
    case 6:
      return tile_columns<6>(segments, count, b, columns, target);
    case 7:
      return tile_columns<7>(segments, count, b, columns, target);
    case 8:
      return tile_columns<8>(segments, count, b, columns, target);
#endif
  }
}
