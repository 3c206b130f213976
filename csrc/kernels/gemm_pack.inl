// Packing a matrix into (steps, width) units for the register tile. The same two functions pack both operands, in both
// orientations, from every kind of matrix:
//
//   across: the columns are the reduction (x of x·Wᵀ, W of x·Wᵀ): rows are read along and transposed, PIECE at a time.
//   along:  the rows are the reduction (W of dy·W, x of duᵀ·x): rows lie as the tile wants them, two are interleaved
//           where a unit is a pair.

template <Kind KIND>
static void pack_across_kind(const Matrix* m, int64_t row, int count, int lanes, int64_t begin, int64_t end,
                             float scale, int width, uint32_t* dst) {
  RowReader<KIND, PIECE> reader;
  reader.open(m);
  for (int piece = 0; piece < lanes; piece += PIECE) {
    const int rows = count - piece < 0 ? 0 : count - piece < PIECE ? count - piece : PIECE;
    for (int64_t span = begin; span < end; span += reader.span()) {
      const int64_t stop = span + reader.span() < end ? span + reader.span() : end;
      reader.seek(row + piece, rows, span, stop);
      for (int64_t k = span; k < stop; k += STEP * LANES) {
        vu units[PIECE];
#pragma GCC unroll 8
        for (int r = 0; r < PIECE; ++r) {
#if defined(LOCALSFT_KERNELS_avx512bf16)
          if (KIND == Kind::BF16) {
            const int64_t n = stop - k < 32 ? stop - k : 32;
            units[r] = r < rows ? uneighbours_bf16((const uint16_t*)m->data + (row + piece + r) * m->stride + k, int(n))
                                : uzero();
          } else {
            vf first = reader.floats(r, k, stop - k), second = reader.floats(r, k + LANES, stop - k - LANES);
            if (KIND == Kind::F32) first = vmul(first, vset(scale)), second = vmul(second, vset(scale));
            units[r] = uneighbours(first, second);
          }
#else
          units[r] = reader.floats(r, k, stop - k);
          if (KIND == Kind::F32) units[r] = vmul(units[r], vset(scale));
#endif
        }
        uint32_t* to = dst + (k - begin) / STEP * width + piece;
        const int64_t steps = (stop - k + STEP - 1) / STEP;
        if (steps >= LANES) {
          store_transposed(units, to, width);
        } else {  // the end of the reduction: dst holds no more steps than there are
          uint32_t copy[LANES * PIECE];
          store_transposed(units, copy, PIECE);
          for (int64_t s = 0; s < steps; ++s) memcpy(to + s * width, copy + s * PIECE, PIECE * 4);
        }
      }
    }
  }
}

template <Kind KIND>
static void pack_along_kind(const Matrix* m, int64_t column, int count, int lanes, int64_t begin, int64_t end,
                            float scale, int width, uint32_t* dst) {
  enum { ROWS = 16 };
  RowReader<KIND, ROWS> reader;
  reader.open(m);
  for (int64_t block = begin; block < end; block += ROWS) {
    const int rows = end - block < ROWS ? int(end - block) : ROWS;
    reader.seek(block, rows, column, column + count);
    for (int r = 0; r < rows; r += STEP) {
      uint32_t* to = dst + (block - begin + r) / STEP * width;
      for (int lane = 0; lane < lanes; lane += LANES) {
        const int64_t k = column + lane, n = count - lane;
        vu units;
#if defined(LOCALSFT_KERNELS_avx512bf16)
        if (KIND == Kind::BF16) {
          const uint16_t* even = (const uint16_t*)m->data + (block + r) * m->stride + k;
          units = n > 0 ? uinterleave_bf16(even, r + 1 < rows ? even + m->stride : nullptr, n < LANES ? int(n) : LANES)
                        : uzero();
        } else {
          vf even = reader.floats(r, k, n), odd = reader.floats(r + 1, k, n);
          if (KIND == Kind::F32) even = vmul(even, vset(scale)), odd = vmul(odd, vset(scale));
          units = uinterleave(even, odd);
        }
#else
        units = reader.floats(r, k, n);
        if (KIND == Kind::F32) units = vmul(units, vset(scale));
#endif
        if (lanes - lane >= LANES)
          ustore(to + lane, units);
        else
          ustore_n(to + lane, units, lanes - lane);
      }
    }
  }
}

static void pack_across(const Matrix* m, int64_t row, int count, int lanes, int64_t begin, int64_t end, float scale,
                        int width, uint32_t* dst) {
  switch (m->kind) {
    case Kind::F32:
      return pack_across_kind<Kind::F32>(m, row, count, lanes, begin, end, scale, width, dst);
    case Kind::F16:
      return pack_across_kind<Kind::F16>(m, row, count, lanes, begin, end, scale, width, dst);
    case Kind::BF16:
      return pack_across_kind<Kind::BF16>(m, row, count, lanes, begin, end, scale, width, dst);
    case Kind::AFFINE:
      return pack_across_kind<Kind::AFFINE>(m, row, count, lanes, begin, end, scale, width, dst);
  }
}

static void pack_along(const Matrix* m, int64_t column, int count, int lanes, int64_t begin, int64_t end, float scale,
                       int width, uint32_t* dst) {
  switch (m->kind) {
    case Kind::F32:
      return pack_along_kind<Kind::F32>(m, column, count, lanes, begin, end, scale, width, dst);
    case Kind::F16:
      return pack_along_kind<Kind::F16>(m, column, count, lanes, begin, end, scale, width, dst);
    case Kind::BF16:
      return pack_along_kind<Kind::BF16>(m, column, count, lanes, begin, end, scale, width, dst);
    case Kind::AFFINE:
      return pack_along_kind<Kind::AFFINE>(m, column, count, lanes, begin, end, scale, width, dst);
  }
}
