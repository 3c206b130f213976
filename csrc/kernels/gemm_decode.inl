// Few rows (decoding): each row of the weight is read once, dequantized in registers, and multiplied with all rows of
// x.

template <Kind KIND, int M>
static void decode_rows(const Matrix* w, int64_t begin, int64_t end, const float* x, float* out, int64_t out_stride) {
  RowReader<KIND, 1> reader;
  reader.open(w);
  for (int64_t n = begin; n < end; ++n) {
    vf sums[M];
    for (int i = 0; i < M; ++i) sums[i] = vzero();
    for (int64_t span = 0; span < w->columns; span += reader.span()) {
      const int64_t stop = span + reader.span() < w->columns ? span + reader.span() : w->columns;
      reader.seek(n, 1, span, stop);
      for (int64_t k = span; k < stop; k += LANES) {
        const vf row = reader.floats(0, k, stop - k);
        for (int i = 0; i < M; ++i) {
          const float* at = x + i * w->columns + k;
          sums[i] = vfma(row, stop - k >= LANES ? vload(at) : vload_n(at, int(stop - k)), sums[i]);
        }
      }
    }
    for (int i = 0; i < M; ++i) out[i * out_stride + n] = vsum(sums[i]);
  }
}

template <Kind KIND>
static void decode_kind(const Matrix* w, int64_t begin, int64_t end, const float* x, int m, float* out,
                        int64_t out_stride) {
  for (; m >= 8; m -= 8, x += 8 * w->columns, out += 8 * out_stride)
    decode_rows<KIND, 8>(w, begin, end, x, out, out_stride);
  if (m >= 4) {
    decode_rows<KIND, 4>(w, begin, end, x, out, out_stride);
    m -= 4, x += 4 * w->columns, out += 4 * out_stride;
  }
  for (; m > 0; --m, x += w->columns, out += out_stride) decode_rows<KIND, 1>(w, begin, end, x, out, out_stride);
}

static void decode(const Matrix* w, int64_t begin, int64_t end, const float* x, int m, float* out, int64_t out_stride) {
  switch (w->kind) {
    case Kind::F32:
      return decode_kind<Kind::F32>(w, begin, end, x, m, out, out_stride);
    case Kind::F16:
      return decode_kind<Kind::F16>(w, begin, end, x, m, out, out_stride);
    case Kind::BF16:
      return decode_kind<Kind::BF16>(w, begin, end, x, m, out, out_stride);
    case Kind::AFFINE:
      return decode_kind<Kind::AFFINE>(w, begin, end, x, m, out, out_stride);
  }
}
