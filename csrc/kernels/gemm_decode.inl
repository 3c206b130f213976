// Few rows (decoding): each row of the weight is read once, dequantized in registers, and multiplied with all rows of
// x.

template <typename Reader, int M>
static void decode_rows(const Matrix* w, int64_t begin, int64_t end, const float* x, float* out, int64_t out_stride) {
  Reader reader(w);
  for (int64_t n = begin; n < end; ++n) {
    vf sums[M];
    for (int i = 0; i < M; ++i) sums[i] = vzero();
    for (int64_t span = 0; span < w->columns; span += Reader::SPAN) {
      const int64_t stop = span + Reader::SPAN < w->columns ? span + Reader::SPAN : w->columns;
      reader.seek(w, n, 1, span, stop);
      for (int64_t k = span; k < stop; k += LANES) {
        const vf row = reader.floats(0, k - span, stop - k);
        for (int i = 0; i < M; ++i) {
          const float* at = x + i * w->columns + k;
          sums[i] = vfma(row, stop - k >= LANES ? vload(at) : vload_n(at, int(stop - k)), sums[i]);
        }
      }
    }
    for (int i = 0; i < M; ++i) out[i * out_stride + n] = vsum(sums[i]);
  }
}

template <typename Reader>
static void decode_with(const Matrix* w, int64_t begin, int64_t end, const float* x, int m, float* out,
                        int64_t out_stride) {
  for (; m >= 8; m -= 8, x += 8 * w->columns, out += 8 * out_stride)
    decode_rows<Reader, 8>(w, begin, end, x, out, out_stride);
  if (m >= 4) {
    decode_rows<Reader, 4>(w, begin, end, x, out, out_stride);
    m -= 4, x += 4 * w->columns, out += 4 * out_stride;
  }
  for (; m > 0; --m, x += w->columns, out += out_stride) decode_rows<Reader, 1>(w, begin, end, x, out, out_stride);
}

static void decode(const Matrix* w, int64_t begin, int64_t end, const float* x, int m, float* out, int64_t out_stride) {
  switch (w->kind) {
    case Kind::F32:
      return decode_with<DenseReader<Kind::F32, 1>>(w, begin, end, x, m, out, out_stride);
    case Kind::F16:
      return decode_with<DenseReader<Kind::F16, 1>>(w, begin, end, x, m, out, out_stride);
    case Kind::BF16:
      return decode_with<DenseReader<Kind::BF16, 1>>(w, begin, end, x, m, out, out_stride);
    case Kind::AFFINE:
      return decode_with<AffineReader<1>>(w, begin, end, x, m, out, out_stride);
  }
}
