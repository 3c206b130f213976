// Panels of affine weights of 4 and 8 bits in groups of whole 32 columns, with the same results as by the functions for
// any matrix (gemm_pack.inl). Those take 1.1 to 2.1 times as long: they look at a scale and a bias for each vector, and
// write a panel of a long reduction in passes that do not stay in the nearest cache. 32 columns of a row are read at a
// time, whole bytes of it, and nothing past them.

enum { GROUP_COLUMNS = 32, GROUP_PANEL = GEMM_VECTORS * LANES, UNIT_COLUMNS = STEP * LANES };

template <int BITS>
static bool packs_groups(const Matrix* m) {
  return m->kind == Kind::AFFINE && m->bits == BITS && (1 << m->group_log2) % GROUP_COLUMNS == 0;
}

#if defined(LOCALSFT_KERNELS_avx512bf16)
#include "kernels/gemm_pack_groups_bf16.inl"
#else
// Units of 32 columns of a row.
template <int BITS>
struct GroupUnits {
  typedef GroupValues<BITS> Values;
  const Unpack unpack = make_unpack(BITS);
  // Across: of the UNIT_COLUMNS columns from c on; p: the bits of column 0.
  LOCALSFT_MEMBER vu across(const Values& values, const uint8_t* p, int c) const {
    return values.at(unpack, p + c * BITS / 8, c);
  }
  // Along: all 32, of STEP rows.
  LOCALSFT_MEMBER void along(const Values values[STEP], const uint8_t* const p[STEP],
                             vu units[GROUP_COLUMNS / LANES]) const {
#pragma GCC unroll 4
    for (int v = 0; v < GROUP_COLUMNS / LANES; ++v) units[v] = across(values[0], p[0], v * LANES);
  }
};
#endif

// A panel at a time, 32 columns of all its rows before the next ones: what is written stays in the nearest cache. All
// of the panels' rows exist, up to a multiple of LANES.
template <int BITS>
static void pack_across_groups(const Matrix* m, int64_t row, int count, int64_t begin, int64_t end, uint32_t* dst,
                               int64_t next) {
  typedef GroupUnits<BITS> Units;
  const Units units;
  GroupScales<GROUP_PANEL> scales(m);
  const int64_t row_bytes = m->columns * BITS / 8;
  for (int first = 0; first < count; first += GROUP_PANEL, dst += next) {
    const int rows = count - first < GROUP_PANEL ? count - first : int(GROUP_PANEL);
    uint32_t* to = dst;
    for (int64_t span = begin; span < end; span += READER_SPAN) {
      const int64_t n = end - span < READER_SPAN ? end - span : int64_t(READER_SPAN);
      const uint8_t* p = (const uint8_t*)m->data + (row + first) * row_bytes + span * BITS / 8;
      scales.load(m, row + first, rows, span, span + n);
      RowsAhead ahead(p + GROUP_PANEL * row_bytes, row_bytes, n * BITS / 8, GROUP_PANEL, n / GROUP_COLUMNS);
      for (int64_t k = 0; k < n;
           k += GROUP_COLUMNS, p += GROUP_COLUMNS * BITS / 8, to += GROUP_COLUMNS / STEP * GROUP_PANEL) {
        ahead.fetch();
        const int g = scales.group(k);
        const uint8_t* q = p;
        for (int piece = 0; piece < rows; piece += PIECE, q += PIECE * row_bytes) {
          typename Units::Values values[PIECE];
#pragma GCC unroll 8
          for (int r = 0; r < PIECE; ++r) values[r] = {scales.scale[piece + r][g], scales.bias[piece + r][g]};
#pragma GCC unroll 4
          for (int c = 0; c < GROUP_COLUMNS; c += UNIT_COLUMNS) {
            vu parts[PIECE];
#pragma GCC unroll 8
            for (int r = 0; r < PIECE; ++r) parts[r] = units.across(values[r], q + r * row_bytes, c);
            store_transposed(parts, to + c / STEP * GROUP_PANEL + piece, GROUP_PANEL);
          }
        }
      }
    }
  }
}

// Some rows at a time, 32 columns of them before the next ones.
template <int BITS>
static void pack_along_groups(const Matrix* m, int64_t column, int count, int64_t begin, int64_t end, uint32_t* dst,
                              int64_t next) {
  typedef GroupUnits<BITS> Units;
  const Units units;
  GroupScales<ALONG_ROWS> scales(m);
  const int64_t row_bytes = m->columns * BITS / 8;
  const uint8_t* p = (const uint8_t*)m->data + begin * row_bytes + column * BITS / 8;
  for (int64_t row = begin; row < end; row += ALONG_ROWS, p += ALONG_ROWS * row_bytes) {
    const int rows = end - row < ALONG_ROWS ? int(end - row) : int(ALONG_ROWS);
    scales.load(m, row, rows, column, column + count);
    if (rows % STEP != 0) scales.clear(rows);
    RowsAhead ahead(p + ROWS_AHEAD * row_bytes, row_bytes, count * BITS / 8, ALONG_ROWS, count / GROUP_COLUMNS);
    for (int lane = 0; lane < count; lane += GROUP_COLUMNS) {
      ahead.fetch();
      const int g = scales.group(lane);
      const uint8_t* q = p + lane * BITS / 8;
      uint32_t* to[GROUP_COLUMNS / LANES];
#pragma GCC unroll 4
      for (int v = 0; v < GROUP_COLUMNS / LANES; ++v) {
        const int at = lane + v * LANES;
        to[v] = dst + at / GROUP_PANEL * next + (row - begin) / STEP * GROUP_PANEL + at % GROUP_PANEL;
      }
      for (int r = 0; r < rows; r += STEP, q += STEP * row_bytes) {
        typename Units::Values values[STEP];
        const uint8_t* bits[STEP];
#pragma GCC unroll 2
        for (int i = 0; i < STEP; ++i) {
          values[i] = {scales.scale[r + i][g], scales.bias[r + i][g]};
          bits[i] = r + i < rows ? q + i * row_bytes : q;
        }
        vu parts[GROUP_COLUMNS / LANES];
        units.along(values, bits, parts);
#pragma GCC unroll 4
        for (int v = 0; v < GROUP_COLUMNS / LANES; ++v) ustore(to[v] + r / STEP * GROUP_PANEL, parts[v]);
      }
    }
  }
}
