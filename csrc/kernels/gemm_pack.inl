// Packing a matrix into (steps, width) units for the register tile. The same two functions pack both operands, in both
// orientations, from every kind of matrix:
//
//   across: the columns are the reduction (x of x·Wᵀ, W of x·Wᵀ): rows are read along and transposed, PIECE at a time.
//   along:  the rows are the reduction (W of dy·W, x of duᵀ·x): rows lie as the tile wants them, two are interleaved
//           where a unit is a pair.

// Units of one row from `n` of its columns [k, k + STEP·LANES); of the rows [r, r + STEP) from their columns [k, k +
// LANES).
template <typename Reader>
LOCALSFT_INLINE vu row_units(const Reader& reader, int r, int64_t k, int64_t n, vf scale) {
  vf x = reader.floats(r, k, n);
  if (Reader::SCALED) x = vmul(x, scale);
#if defined(LOCALSFT_KERNELS_avx512bf16)
  vf next = n > LANES ? reader.floats(r, k + LANES, n - LANES) : vzero();
  if (Reader::SCALED) next = vmul(next, scale);
  return uneighbours(x, next);
#else
  return x;
#endif
}
template <typename Reader>
LOCALSFT_INLINE vu column_units(const Reader& reader, int r, int64_t k, int64_t n, vf scale) {
  vf x = reader.floats(r, k, n);
  if (Reader::SCALED) x = vmul(x, scale);
#if defined(LOCALSFT_KERNELS_avx512bf16)
  vf next = reader.floats(r + 1, k, n);
  if (Reader::SCALED) next = vmul(next, scale);
  return uinterleave(x, next);
#else
  return x;
#endif
}

#if defined(LOCALSFT_KERNELS_avx512bf16)
// bfloat16 goes into units as it is.
template <int COUNT>
LOCALSFT_INLINE vu row_units(const DenseReader<Kind::BF16, COUNT>& reader, int r, int64_t k, int64_t n, vf) {
  return uneighbours_bf16((const uint16_t*)reader.data[r] + k, n < 2 * LANES ? int(n) : 2 * LANES);
}
template <int COUNT>
LOCALSFT_INLINE vu column_units(const DenseReader<Kind::BF16, COUNT>& reader, int r, int64_t k, int64_t n, vf) {
  return uinterleave_bf16((const uint16_t*)reader.data[r] + k, (const uint16_t*)reader.data[r + 1] + k,
                          n < LANES ? int(n) : LANES);
}
template <int COUNT>
LOCALSFT_INLINE vu row_units(const TableReader<COUNT, Order::ROW>& reader, int r, int64_t k, int64_t, vf) {
  return reader.lookup(r, k);
}
#endif

// Stores PIECE rows of units as columns; only `steps` of the LANES steps exist in dst.
LOCALSFT_INLINE void store_steps(const vu units[PIECE], uint32_t* dst, int64_t width, int64_t steps) {
  if (steps >= LANES) {
    store_transposed(units, dst, width);
    return;
  }
  uint32_t copy[LANES * PIECE];
  store_transposed(units, copy, PIECE);
  for (int64_t s = 0; s < steps; ++s) memcpy(dst + s * width, copy + s * PIECE, PIECE * 4);
}

// Fetches `rows` rows of `bytes` bytes, `row_bytes` apart, evenly over so many turns: all at once would wait for one
// another.
class RowsAhead {
 public:
  LOCALSFT_MEMBER RowsAhead(const uint8_t* first, int64_t row_bytes, int64_t bytes, int rows, int64_t turns)
      : next_(first), row_bytes_(row_bytes), bytes_(bytes), rows_(rows), turns_(turns) {}
  LOCALSFT_MEMBER void fetch() {
    for (due_ += rows_; due_ >= turns_; due_ -= turns_, next_ += row_bytes_) prefetch(next_, bytes_);
  }

 private:
  const uint8_t* next_;
  int64_t row_bytes_, bytes_, rows_, turns_, due_ = 0;
};

template <typename Reader>
static void pack_across_with(const Matrix* m, int64_t row, int count, int lanes, int64_t begin, int64_t end,
                             float scale, int width, uint32_t* dst, int64_t next) {
  Reader reader(m);
  const vf factor = vset(scale);
  for (int piece = 0; piece < lanes; piece += PIECE) {
    const int rows = count - piece < 0 ? 0 : count - piece;
    for (int64_t span = begin; span < end; span += Reader::SPAN) {
      const int64_t n = end - span < Reader::SPAN ? end - span : int64_t(Reader::SPAN);
      uint32_t* to = dst + piece / width * next + (span - begin) / STEP * width + piece % width;
      reader.seek(m, row + piece, rows < PIECE ? rows : int(PIECE), span, span + n);
      RowsAhead ahead(reader.row_data(m, row + piece + PIECE, span), reader.row_bytes(m), reader.bytes_of(n), PIECE,
                      (n + STEP * LANES - 1) / (STEP * LANES));
      for (int64_t k = 0; k < n; k += STEP * LANES) {
        if (Reader::QUANTIZED) ahead.fetch();  // from memory, mostly; what is dense here was computed just before
        vu units[PIECE];
#pragma GCC unroll 8
        for (int r = 0; r < PIECE; ++r) units[r] = row_units(reader, r, k, n - k, factor);
        store_steps(units, to + k / STEP * width, width, (n - k + STEP - 1) / STEP);
      }
    }
  }
}

// Rows that are read together while packing along them: what their scales and pointers take stays in the nearest cache.
// So many rows ahead they are fetched from memory, which takes longer than the 16 before them.
enum { ALONG_ROWS = 16, ROWS_AHEAD = 2 * ALONG_ROWS };

template <typename Reader>
static void pack_along_with(const Matrix* m, int64_t column, int count, int lanes, int64_t begin, int64_t end,
                            float scale, int width, uint32_t* dst, int64_t next) {
  Reader reader(m);
  const vf factor = vset(scale);
  for (int64_t block = begin; block < end; block += ALONG_ROWS) {
    const int rows = end - block < ALONG_ROWS ? int(end - block) : int(ALONG_ROWS);
    reader.seek(m, block, rows, column, column + count);
    RowsAhead ahead(reader.row_data(m, block + ROWS_AHEAD, column), reader.row_bytes(m), reader.bytes_of(count),
                    ALONG_ROWS, (lanes + LANES - 1) / LANES);
    for (int lane = 0; lane < lanes; lane += LANES) {
      uint32_t* to = dst + lane / width * next + (block - begin) / STEP * width + lane % width;
      ahead.fetch();
      const int stored = lanes - lane < LANES ? lanes - lane : LANES;
      if (lane >= count) {
        for (int r = 0; r < rows; r += STEP) ustore_n(to + r / STEP * width, uzero(), stored);
      } else if (stored == LANES) {
        for (int r = 0; r < rows; r += STEP)
          ustore(to + r / STEP * width, column_units(reader, r, lane, count - lane, factor));
      } else {
        for (int r = 0; r < rows; r += STEP)
          ustore_n(to + r / STEP * width, column_units(reader, r, lane, count - lane, factor), stored);
      }
    }
  }
}

#if defined(LOCALSFT_KERNELS_avx512bf16)
// Affine weights of 2 and 3 bits in groups of whole 32 columns: two rows by 32 columns at a time.
static void pack_along_table(const Matrix* m, int64_t column, int count, int64_t begin, int64_t end, int width,
                             uint32_t* dst, int64_t next) {
  TableReader<ALONG_ROWS, Order::PAIR> reader(m);
  for (int64_t block = begin; block < end; block += ALONG_ROWS) {
    const int rows = end - block < ALONG_ROWS ? int(end - block) : int(ALONG_ROWS);
    reader.seek(m, block, rows, column, column + count);
    RowsAhead ahead(reader.row_data(m, block + ROWS_AHEAD, column), reader.row_bytes(m), reader.bytes_of(count),
                    ALONG_ROWS, count / (2 * LANES));
    for (int lane = 0; lane < count; lane += 2 * LANES) {
      uint32_t* to = dst + (block - begin) / STEP * width;
      ahead.fetch();
      uint32_t* first = to + lane / width * next + lane % width;
      uint32_t* second = to + (lane + LANES) / width * next + (lane + LANES) % width;
      for (int r = 0; r < rows; r += STEP, first += width, second += width) {
        const __m512i even = reader.lookup(r, lane), odd = reader.lookup(r + 1, lane);
        ustore(first, _mm512_unpacklo_epi16(even, odd));
        ustore(second, _mm512_unpackhi_epi16(even, odd));
      }
    }
  }
}
#endif

#if defined(LOCALSFT_KERNELS_avx2) || defined(LOCALSFT_KERNELS_avx512) || defined(LOCALSFT_KERNELS_avx512bf16)
#define LOCALSFT_PACK_GROUPS 1
#include "kernels/gemm_pack_groups.inl"
#endif

static void pack_across(const Matrix* m, int64_t row, int count, int lanes, int64_t begin, int64_t end, float scale,
                        int width, uint32_t* dst, int64_t next) {
#if LOCALSFT_PACK_GROUPS
  if ((end - begin) % GROUP_COLUMNS == 0 && count == lanes && width == GROUP_PANEL) {
    if (packs_groups<4>(m)) return pack_across_groups<4>(m, row, count, begin, end, dst, next);
    if (packs_groups<8>(m)) return pack_across_groups<8>(m, row, count, begin, end, dst, next);
  }
#endif
#if defined(LOCALSFT_KERNELS_avx512bf16)
  if (m->kind == Kind::AFFINE && m->bits <= 5 && m->group_log2 >= 5)
    return pack_across_with<TableReader<PIECE, Order::ROW>>(m, row, count, lanes, begin, end, scale, width, dst, next);
#endif
  switch (m->kind) {
    case Kind::F32:
      return pack_across_with<DenseReader<Kind::F32, PIECE>>(m, row, count, lanes, begin, end, scale, width, dst, next);
    case Kind::F16:
      return pack_across_with<DenseReader<Kind::F16, PIECE>>(m, row, count, lanes, begin, end, scale, width, dst, next);
    case Kind::BF16:
      return pack_across_with<DenseReader<Kind::BF16, PIECE>>(m, row, count, lanes, begin, end, scale, width, dst,
                                                              next);
    case Kind::AFFINE:
      if (m->bits == 4)
        return pack_across_with<BitsReader<PIECE, 4>>(m, row, count, lanes, begin, end, scale, width, dst, next);
      return pack_across_with<AffineReader<PIECE>>(m, row, count, lanes, begin, end, scale, width, dst, next);
  }
}

static void pack_along(const Matrix* m, int64_t column, int count, int lanes, int64_t begin, int64_t end, float scale,
                       int width, uint32_t* dst, int64_t next) {
#if LOCALSFT_PACK_GROUPS
  if (column % GROUP_COLUMNS == 0 && count % GROUP_COLUMNS == 0 && count == lanes && width == GROUP_PANEL) {
    if (packs_groups<4>(m)) return pack_along_groups<4>(m, column, count, begin, end, dst, next);
    if (packs_groups<8>(m)) return pack_along_groups<8>(m, column, count, begin, end, dst, next);
  }
#endif
#if defined(LOCALSFT_KERNELS_avx512bf16)
  if (m->kind == Kind::AFFINE && m->bits < 4 && m->group_log2 >= 5 && column % 32 == 0 && count % 32 == 0)
    return pack_along_table(m, column, count, begin, end, width, dst, next);
#endif
  switch (m->kind) {
    case Kind::F32:
      return pack_along_with<DenseReader<Kind::F32, ALONG_ROWS>>(m, column, count, lanes, begin, end, scale, width, dst,
                                                                 next);
    case Kind::F16:
      return pack_along_with<DenseReader<Kind::F16, ALONG_ROWS>>(m, column, count, lanes, begin, end, scale, width, dst,
                                                                 next);
    case Kind::BF16:
      return pack_along_with<DenseReader<Kind::BF16, ALONG_ROWS>>(m, column, count, lanes, begin, end, scale, width,
                                                                  dst, next);
    case Kind::AFFINE:
      if (m->bits == 4)
        return pack_along_with<BitsReader<ALONG_ROWS, 4>>(m, column, count, lanes, begin, end, scale, width, dst, next);
      return pack_along_with<AffineReader<ALONG_ROWS>>(m, column, count, lanes, begin, end, scale, width, dst, next);
  }
}
