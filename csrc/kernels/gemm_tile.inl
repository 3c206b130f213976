// The register tile: ROWS × VECTORS·LANES sums kept in registers over a stretch of the reduction. Each sum is one chain
// of multiply-accumulates in the order of the reduction, whatever tile it falls into, so results do not depend on how
// the work is split.

// The float vector at p, of which the last one of a row holds only `last` columns.
LOCALSFT_INLINE vf load_columns(const float* p, bool whole, int last) {
  return whole || last == LANES ? vload(p) : vload_n(p, last);
}

template <int ROWS, int VECTORS>
static void tile_kernel(const Segment* segments, int count, const uint32_t* b, int columns, const Target* target) {
  const int last = ((columns - 1) & (LANES - 1)) + 1;  // columns in the last vector
  vf sums[ROWS][VECTORS];
#pragma GCC unroll 16
  for (int r = 0; r < ROWS; ++r)
#pragma GCC unroll 4
    for (int v = 0; v < VECTORS; ++v) sums[r][v] = vzero();

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

#pragma GCC unroll 16
  for (int r = 0; r < ROWS; ++r)
#pragma GCC unroll 4
    for (int v = 0; v < VECTORS; ++v) {
      const bool whole = v + 1 < VECTORS || last == LANES;
      const int64_t at = r * target->stride + v * LANES;
      vf x = sums[r][v];
      if (target->before != nullptr)
        x = vadd(load_columns(target->before + r * target->before_stride + v * LANES, whole, last), x);
      if (target->add != nullptr)
        x = vadd(load_columns(target->add + r * target->add_stride + v * LANES, whole, last), x);
      if (target->act) {
        if (whole)
          vstore_act((act_t*)target->out + at, x);
        else
          vstore_act_n((act_t*)target->out + at, x, last);
      } else {
        if (whole)
          vstore((float*)target->out + at, x);
        else
          vstore_n((float*)target->out + at, x, last);
      }
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
