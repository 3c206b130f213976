// Factors of columns (DoRA's m / ‖W + ΔW‖): x·c, and the mirror's sums over rows.

template <bool ADD>
LOCALSFT_INLINE void scale_columns_part(const act_t* x, const float* c, void* out, int64_t at, int n) {
  const vf factor = n == LANES ? vload(c) : vload_n(c, n);
  if (ADD) {
    float* to = (float*)out + at;
    vput_n(to, vfma(vget_n(x + at, n), factor, vget_n(to, n)), n);
  } else {
    vput_n((act_t*)out + at, vmul(vget_n(x + at, n), factor), n);
  }
}

template <bool ADD>
LOCALSFT_INLINE void scale_columns_rows(const act_t* x, const float* c, void* out, int64_t D, int64_t begin,
                                        int64_t end) {
  for (int64_t i = begin; i < end; ++i) {
    int64_t k = 0;
    for (; k + LANES <= D; k += LANES) scale_columns_part<ADD>(x, c + k, out, i * D + k, LANES);
    if (k < D) scale_columns_part<ADD>(x, c + k, out, i * D + k, int(D - k));
  }
}

static void scale_columns(const void* x, const float* c, void* out, bool add, int64_t D, int64_t begin, int64_t end) {
  if (add)
    scale_columns_rows<true>((const act_t*)x, c, out, D, begin, end);
  else
    scale_columns_rows<false>((const act_t*)x, c, out, D, begin, end);
}

// A strip of columns, whose sums stay in registers while the rows pass by.
enum { COLUMN_STRIP = 4 };

static void column_dots(const void* x, const void* y, const float* r, float* out, int64_t M, int64_t D, int64_t begin,
                        int64_t end) {
  const act_t *a = (const act_t*)x, *b = (const act_t*)y;
  for (int64_t k = begin; k < end; k += COLUMN_STRIP * LANES) {
    int width[COLUMN_STRIP];
    vf sums[COLUMN_STRIP];
    for (int v = 0; v < COLUMN_STRIP; ++v) {
      const int64_t left = end - k - v * LANES;
      width[v] = left >= LANES ? int(LANES) : left > 0 ? int(left) : 0;
      sums[v] = vzero();
    }
    for (int64_t i = 0; i < M; ++i) {
      const int64_t row = i * D + k;
#pragma GCC unroll 4
      for (int v = 0; v < COLUMN_STRIP; ++v)
        if (width[v] > 0)
          sums[v] = vfma(vget_n(a + row + v * LANES, width[v]), vget_n(b + row + v * LANES, width[v]), sums[v]);
    }
    for (int v = 0; v < COLUMN_STRIP; ++v) {
      if (width[v] == 0) break;
      float* to = out + k + v * LANES;
      vput_n(to, vfma(vget_n(r + k + v * LANES, width[v]), sums[v], vget_n(to, width[v])), width[v]);
    }
  }
}
