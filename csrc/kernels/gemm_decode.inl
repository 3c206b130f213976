// Few rows of x (decoding): the weight is read once, row after row. Each result is one chain of multiply-accumulates in
// the order of the columns and then one sum over the lanes, whatever is computed beside it: what is generated for one
// prompt does not depend on the prompts that are decoded with it.

// DECODE_ROWS × DECODE_INPUTS sums stay in registers. DECODE_BLOCKS such blocks of rows are dequantized at a time, a
// reader's span of them, which stays in the first-level cache while all rows of x pass by.
#if defined(LOCALSFT_KERNELS_avx512) || defined(LOCALSFT_KERNELS_avx512bf16) || defined(LOCALSFT_KERNELS_neon)
enum { DECODE_ROWS = 6, DECODE_INPUTS = 4, DECODE_BLOCKS = 1 };  // 32 registers
#elif defined(LOCALSFT_KERNELS_avx2)
enum { DECODE_ROWS = 3, DECODE_INPUTS = 4, DECODE_BLOCKS = 2 };
#else
enum { DECODE_ROWS = 2, DECODE_INPUTS = 4, DECODE_BLOCKS = 2 };
#endif
enum { DECODE_MOST = 16 };  // rows of x

// Columns of a span: as many as a reader takes, in about equal parts.
static int64_t decode_columns(int64_t columns) {
  const int64_t spans = (columns + READER_SPAN - 1) / READER_SPAN;
  return ((columns + spans - 1) / spans + 31) / 32 * 32;
}

// sums (R, M) vectors += the reader's rows · x over `columns` columns of its span.
template <int M, Kind KIND, int R>
static void decode_span(const DenseReader<KIND, R>& reader, const float* x, int64_t x_stride, int64_t columns,
                        vf* sums) {
  vf kept[R][M];
#pragma GCC unroll 4
  for (int r = 0; r < R; ++r)
#pragma GCC unroll 4
    for (int i = 0; i < M; ++i) kept[r][i] = sums[r * M + i];
  const int64_t whole = columns / LANES * LANES;
  for (int64_t k = 0; k < whole; k += LANES) {
#pragma GCC unroll 4
    for (int r = 0; r < R; ++r) {
      const vf row = reader.floats(r, k, LANES);
#pragma GCC unroll 4
      for (int i = 0; i < M; ++i) kept[r][i] = vfma(row, vload(x + i * x_stride + k), kept[r][i]);
    }
  }
  if (whole < columns) {
    const int n = int(columns - whole);
#pragma GCC unroll 4
    for (int r = 0; r < R; ++r) {
      const vf row = reader.floats(r, whole, n);
#pragma GCC unroll 4
      for (int i = 0; i < M; ++i) kept[r][i] = vfma(row, vload_n(x + i * x_stride + whole, n), kept[r][i]);
    }
  }
#pragma GCC unroll 4
  for (int r = 0; r < R; ++r)
#pragma GCC unroll 4
    for (int i = 0; i < M; ++i) sums[r * M + i] = kept[r][i];
}

template <int BITS, int M, int R>
static void decode_groups(const AffineReader<R>& reader, const float* x, int64_t x_stride, int64_t columns, vf* sums) {
  const Unpack unpack = reader.unpack;
  const uint64_t bits = BITS ? BITS : reader.bits;
  const int64_t size = int64_t(1) << reader.group_log2;
  vf kept[R][M];
#pragma GCC unroll 4
  for (int r = 0; r < R; ++r)
#pragma GCC unroll 4
    for (int i = 0; i < M; ++i) kept[r][i] = sums[r * M + i];
  int64_t stop = size - reader.offset;  // where the group ends
  for (int64_t k = 0, g = 0; k < columns; ++g, stop += size) {
    if (stop > columns) stop = columns;
    GroupValues<BITS> values[R];
#pragma GCC unroll 4
    for (int r = 0; r < R; ++r) values[r] = GroupValues<BITS>(reader.scale[r][g], reader.bias[r][g]);
    for (; k < stop; k += LANES) {
      const uint64_t at = uint64_t(k) * bits / 8;
      vf input[M];
#pragma GCC unroll 4
      for (int i = 0; i < M; ++i) input[i] = vload(x + i * x_stride + k);
#pragma GCC unroll 4
      for (int r = 0; r < R; ++r) {
        const vf row = values[r].at(unpack, reader.data[r] + at, k);
#pragma GCC unroll 4
        for (int i = 0; i < M; ++i) kept[r][i] = vfma(row, input[i], kept[r][i]);
      }
    }
  }
#pragma GCC unroll 4
  for (int r = 0; r < R; ++r)
#pragma GCC unroll 4
    for (int i = 0; i < M; ++i) sums[r * M + i] = kept[r][i];
}

template <int M, int R>
static void decode_span(const AffineReader<R>& reader, const float* x, int64_t x_stride, int64_t columns, vf* sums) {
  switch (reader.bits) {
    case 4:
      return decode_groups<4, M>(reader, x, x_stride, columns, sums);
    case 8:
      return decode_groups<8, M>(reader, x, x_stride, columns, sums);
    default:
      return decode_groups<0, M>(reader, x, x_stride, columns, sums);
  }
}

// One to three rows of x: the weight goes from memory to registers, Reader::COUNT rows at a time.
template <typename Reader, int M>
static void decode_few(const Matrix* w, int64_t begin, int64_t end, const float* x, float* out, int64_t out_stride) {
  enum { R = Reader::COUNT };
  const int64_t most = decode_columns(w->columns);
  Reader reader(w);
  for (int64_t n = begin; n < end; n += R) {
    const int rows = end - n < R ? int(end - n) : int(R);
    vf sums[R * M];
    for (int i = 0; i < R * M; ++i) sums[i] = vzero();
    for (int64_t span = 0; span < w->columns; span += most) {
      const int64_t columns = w->columns - span < most ? w->columns - span : most;
      reader.seek(w, n, rows, span, span + columns);
      for (int r = 0; r < R; ++r) prefetch(reader.row_data(w, n + R + r, span), reader.bytes_of(columns));
      decode_span<M>(reader, x + span, w->columns, columns, sums);
    }
    for (int r = 0; r < rows; ++r)
      for (int i = 0; i < M; ++i) out[i * out_stride + n + r] = vsum(sums[r * M + i]);
  }
}

// sums (DECODE_ROWS, DECODE_MOST) vectors, of which M are used, += (=, if first) rows of w (DECODE_ROWS, w_stride) ·
// rows of x.
template <int M>
static void decode_tile(const float* w, int64_t w_stride, const float* x, int64_t x_stride, int64_t columns, bool first,
                        float* sums) {
  vf kept[DECODE_ROWS][M];
#pragma GCC unroll 8
  for (int r = 0; r < DECODE_ROWS; ++r)
#pragma GCC unroll 4
    for (int i = 0; i < M; ++i) kept[r][i] = first ? vzero() : vload(sums + (r * DECODE_MOST + i) * LANES);
  const int64_t whole = columns / LANES * LANES;
  for (int64_t k = 0; k < whole; k += LANES) {
    vf rows[DECODE_ROWS];
#pragma GCC unroll 8
    for (int r = 0; r < DECODE_ROWS; ++r) rows[r] = vload(w + r * w_stride + k);
#pragma GCC unroll 4
    for (int i = 0; i < M; ++i) {
      const vf input = vload(x + i * x_stride + k);
#pragma GCC unroll 8
      for (int r = 0; r < DECODE_ROWS; ++r) kept[r][i] = vfma(rows[r], input, kept[r][i]);
    }
  }
  if (whole < columns) {
#pragma GCC unroll 4
    for (int i = 0; i < M; ++i) {
      const vf input = vload_n(x + i * x_stride + whole, int(columns - whole));
#pragma GCC unroll 8
      for (int r = 0; r < DECODE_ROWS; ++r) kept[r][i] = vfma(vload(w + r * w_stride + whole), input, kept[r][i]);
    }
  }
#pragma GCC unroll 8
  for (int r = 0; r < DECODE_ROWS; ++r)
#pragma GCC unroll 4
    for (int i = 0; i < M; ++i) vstore(sums + (r * DECODE_MOST + i) * LANES, kept[r][i]);
}

static void decode_tiles(const float* w, int64_t w_stride, const float* x, int64_t x_stride, int m, int64_t columns,
                         bool first, float* sums) {
  for (; m >= DECODE_INPUTS; m -= DECODE_INPUTS, x += DECODE_INPUTS * x_stride, sums += DECODE_INPUTS * LANES)
    decode_tile<DECODE_INPUTS>(w, w_stride, x, x_stride, columns, first, sums);
  switch (m) {
    case 3:
      return decode_tile<3>(w, w_stride, x, x_stride, columns, first, sums);
    case 2:
      return decode_tile<2>(w, w_stride, x, x_stride, columns, first, sums);
    case 1:
      return decode_tile<1>(w, w_stride, x, x_stride, columns, first, sums);
  }
}

// to = row r of the reader over `columns` columns of its span.
template <Kind KIND, int R>
static void decode_read(const DenseReader<KIND, R>& reader, int r, int64_t columns, float* to) {
  for (int64_t k = 0; k < columns; k += LANES) vstore(to + k, reader.floats(r, k, columns - k));
}

template <int BITS, int R>
static void decode_read_groups(const AffineReader<R>& reader, int r, int64_t columns, float* to) {
  const Unpack unpack = reader.unpack;
  const uint64_t bits = BITS ? BITS : reader.bits;
  const int64_t size = int64_t(1) << reader.group_log2;
  const uint8_t* data = reader.data[r];
  if (size == 32) {  // a loop of known length; GGUF has no other groups of 4 and 8 bits
    for (int64_t k = 0, g = 0; k < columns; k += 32, ++g) {
      const GroupValues<BITS> values(reader.scale[r][g], reader.bias[r][g]);
      const uint8_t* at = data + uint64_t(k) * bits / 8;
#pragma GCC unroll 8
      for (int i = 0; i < 32; i += LANES) vstore(to + k + i, values.at(unpack, at + i * bits / 8, k + i));
    }
    return;
  }
  int64_t stop = size - reader.offset;  // where the group ends
  for (int64_t k = 0, g = 0; k < columns; ++g, stop += size) {
    if (stop > columns) stop = columns;
    const GroupValues<BITS> values(reader.scale[r][g], reader.bias[r][g]);
    for (; k < stop; k += LANES) vstore(to + k, values.at(unpack, data + uint64_t(k) * bits / 8, k));
  }
}

template <int R>
static void decode_read(const AffineReader<R>& reader, int r, int64_t columns, float* to) {
  switch (reader.bits) {
    case 4:
      return decode_read_groups<4>(reader, r, columns, to);
    case 8:
      return decode_read_groups<8>(reader, r, columns, to);
    default:
      return decode_read_groups<0>(reader, r, columns, to);
  }
}

// Up to DECODE_MOST rows of x: rows of the weight are dequantized into a buffer, once for all of them.
template <typename Reader>
static void decode_many(const Matrix* w, int64_t begin, int64_t end, const float* x, int m, float* out,
                        int64_t out_stride) {
  enum { R = Reader::COUNT };
  const int64_t most = decode_columns(w->columns);
  Reader reader(w);
  float rows[R * READER_SPAN], sums[R * DECODE_MOST * LANES] = {0}, results[DECODE_MOST + LANES];
  for (int64_t n = begin; n < end; n += R) {
    const int count = end - n < R ? int(end - n) : int(R);
    for (int64_t span = 0; span < w->columns; span += most) {
      const int64_t columns = w->columns - span < most ? w->columns - span : most;
      reader.seek(w, n, count, span, span + columns);
      for (int r = 0; r < R; ++r) {
        prefetch(reader.row_data(w, n + R + r, span), reader.bytes_of(columns));
        decode_read(reader, r, columns, rows + r * most);
      }
      for (int r = 0; r < R; r += DECODE_ROWS)
        decode_tiles(rows + r * most, most, x + span, w->columns, m, columns, span == 0,
                     sums + r * DECODE_MOST * LANES);
    }
    for (int r = 0; r < count; ++r) {
      for (int i = 0; i < m; i += LANES) vsums(sums + (r * DECODE_MOST + i) * LANES, results + i);
      for (int i = 0; i < m; ++i) out[i * out_stride + n + r] = results[i];
    }
  }
}

#include "kernels/gemm_decode_lanes.inl"

template <Kind KIND>
struct DenseRows {
  template <int ROWS>
  using Reader = DenseReader<KIND, ROWS>;
};
struct AffineRows {
  template <int ROWS>
  using Reader = AffineReader<ROWS>;
};

template <typename Rows>
static void decode_with(const Matrix* w, int64_t begin, int64_t end, const float* x, int m, float* out,
                        int64_t out_stride) {
  switch (m) {
    case 1:
      return decode_few<typename Rows::template Reader<4>, 1>(w, begin, end, x, out, out_stride);
    case 2:
      return decode_few<typename Rows::template Reader<2>, 2>(w, begin, end, x, out, out_stride);
    case 3:
      return decode_few<typename Rows::template Reader<2>, 3>(w, begin, end, x, out, out_stride);
    default:
      return decode_many<typename Rows::template Reader<DECODE_BLOCKS * DECODE_ROWS>>(w, begin, end, x, m, out,
                                                                                      out_stride);
  }
}

static int64_t decode_bytes(const Matrix* w) {
#if defined(LOCALSFT_DECODE_LANES)
  if (w->kind == Kind::AFFINE && (w->bits == 4 || w->bits == 8)) return lane_bytes(w);
#else
  (void)w;
#endif
  return 0;
}

static void decode_pack(const Matrix* w, const float* x, int m, int64_t begin, int64_t end, void* packed) {
#if defined(LOCALSFT_DECODE_LANES)
  if (w->bits == 4)
    pack_lanes<4>(w, x, m, begin, end, packed);
  else
    pack_lanes<8>(w, x, m, begin, end, packed);
#else
  (void)w, (void)x, (void)m, (void)begin, (void)end, (void)packed;
#endif
}

static void decode(const Matrix* w, int64_t begin, int64_t end, const float* x, const void* packed, int m, float* out,
                   int64_t out_stride) {
#if defined(LOCALSFT_DECODE_LANES)
  if (packed != nullptr) {
    if (w->bits == 4) return decode_lanes<4>(w, begin, end, packed, m, out, out_stride);
    return decode_lanes<8>(w, begin, end, packed, m, out, out_stride);
  }
#else
  (void)packed;
#endif
  switch (w->kind) {
    case Kind::F32:
      return decode_with<DenseRows<Kind::F32>>(w, begin, end, x, m, out, out_stride);
    case Kind::F16:
      return decode_with<DenseRows<Kind::F16>>(w, begin, end, x, m, out, out_stride);
    case Kind::BF16:
      return decode_with<DenseRows<Kind::BF16>>(w, begin, end, x, m, out, out_stride);
    case Kind::AFFINE:
      return decode_with<AffineRows>(w, begin, end, x, m, out, out_stride);
  }
}

// The adapter's second half: out[i, c] += scale·Σ u[i, r]·b[r, c] for c in [begin, end). EXPAND_ROWS rows of u share
// what is read of b; each sum is one chain in the order of the ranks, however many rows there are.

enum { EXPAND_ROWS = 8 };

template <int ROWS>
static void expand_rows(const float* u, int64_t u_stride, float scale, const float* b, int64_t b_stride, int64_t rank,
                        int64_t begin, int64_t end, float* out, int64_t out_stride) {
  for (int64_t c = begin; c < end; c += LANES) {
    const int n = end - c < LANES ? int(end - c) : int(LANES);
    vf sums[ROWS];
#pragma GCC unroll 8
    for (int i = 0; i < ROWS; ++i) sums[i] = vzero();
    for (int64_t r = 0; r < rank; ++r) {
      const float* from = b + r * b_stride + c;
      const vf part = n == LANES ? vload(from) : vload_n(from, n);
#pragma GCC unroll 8
      for (int i = 0; i < ROWS; ++i) sums[i] = vfma(vset(u[i * u_stride + r]), part, sums[i]);
    }
#pragma GCC unroll 8
    for (int i = 0; i < ROWS; ++i) {
      float* to = out + i * out_stride + c;
      if (n == LANES)
        vstore(to, vfma(vset(scale), sums[i], vload(to)));
      else
        vstore_n(to, vfma(vset(scale), sums[i], vload_n(to, n)), n);
    }
  }
}

static void expand(const float* u, int64_t u_stride, float scale, const float* b, int64_t b_stride, int64_t rank,
                   int64_t begin, int64_t end, int m, float* out, int64_t out_stride) {
  int i = 0;
  for (; m - i >= EXPAND_ROWS; i += EXPAND_ROWS)
    expand_rows<EXPAND_ROWS>(u + i * u_stride, u_stride, scale, b, b_stride, rank, begin, end, out + i * out_stride,
                             out_stride);
  for (; i < m; ++i)
    expand_rows<1>(u + i * u_stride, u_stride, scale, b, b_stride, rank, begin, end, out + i * out_stride, out_stride);
}
