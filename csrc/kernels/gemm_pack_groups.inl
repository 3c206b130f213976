// Panels of affine weights of 4 and 8 bits in groups of whole 32 columns, with the same results as by the functions for
// any matrix (gemm_pack.inl). On AVX2 those take 1.2 to 2.1 times as long: they look at a scale and a bias for each
// vector, and write a panel of a long reduction in passes that do not stay in the nearest cache.

enum { GROUP_COLUMNS = 32, ALONG_COLUMNS = 512 };

template <int BITS>
static bool packs_groups(const Matrix* m) {
  return m->kind == Kind::AFFINE && m->bits == BITS && (1 << m->group_log2) % GROUP_COLUMNS == 0;
}

// A panel at a time, 32 steps of all its rows before the next ones: what is written stays in the nearest cache.
template <int BITS>
static void pack_across_groups(const Matrix* m, int64_t row, int count, int lanes, int64_t begin, int64_t end,
                               uint32_t* dst, int64_t next) {
  enum { PANEL = GEMM_VECTORS * LANES };
  using Reader = BitsReader<PANEL, BITS>;
  Reader reader(m);
  for (int first = 0; first < lanes; first += PANEL, dst += next) {
    const int rows = count - first < PANEL ? count - first : int(PANEL);
    const int used = lanes - first < PANEL ? lanes - first : int(PANEL);
    uint32_t* to = dst;
    for (int64_t span = begin; span < end; span += Reader::SPAN) {
      const int64_t n = end - span < Reader::SPAN ? end - span : int64_t(Reader::SPAN);
      reader.seek(m, row + first, rows, span, span + n);
      RowsAhead<Reader> ahead(reader, m, n, n / GROUP_COLUMNS);
      for (int64_t k = 0; k < n; k += GROUP_COLUMNS, to += GROUP_COLUMNS * PANEL) {
        ahead.fetch();
        for (int piece = 0; piece < used; piece += PIECE) {
          GroupValues<BITS> values[PIECE];
#pragma GCC unroll 4
          for (int r = 0; r < PIECE; ++r) values[r] = reader.group_values(piece + r, k);
#pragma GCC unroll 4
          for (int c = 0; c < GROUP_COLUMNS; c += LANES) {
            vu units[PIECE];
#pragma GCC unroll 4
            for (int r = 0; r < PIECE; ++r) units[r] = values[r].at(reader.unpack, reader.at(piece + r, k + c), k + c);
            store_transposed(units, to + c * PANEL + piece, PANEL);
          }
        }
      }
    }
  }
}

// A row at a time: its scales, then its vectors, a panel after the other.
template <int BITS, Kind SCALES>
static void pack_along_groups(const Matrix* m, int64_t column, int count, int64_t begin, int64_t end, uint32_t* dst,
                              int64_t next) {
  enum { PANEL = GEMM_VECTORS * LANES, VECTOR_BYTES = LANES * BITS / 8 };
  const Unpack unpack = make_unpack(BITS);
  const int64_t row_bytes = m->columns * BITS / 8, groups = m->columns >> m->group_log2, all_groups = m->rows * groups;
  const int64_t first_group = column >> m->group_log2;
  const void *scales = m->scales, *biases = m->biases;
  const int vectors = count / LANES, used = int(((column + count - 1) >> m->group_log2) + 1 - first_group);
  uint8_t group[ALONG_COLUMNS / LANES];  // of each vector of a row
  for (int v = 0; v < vectors; ++v) group[v] = uint8_t(((column + v * LANES) >> m->group_log2) - first_group);
  float scale[ALONG_COLUMNS / GROUP_COLUMNS + 1 + LANES], bias[ALONG_COLUMNS / GROUP_COLUMNS + 1 + LANES];
  const int64_t bytes = vectors * VECTOR_BYTES, ahead = ALONG_ROWS * row_bytes;
  const uint8_t* p = (const uint8_t*)m->data + begin * row_bytes + column * BITS / 8;
  for (int64_t row = begin; row < end; ++row, p += row_bytes, dst += PANEL) {
    for (int64_t at = 0; at < bytes; at += 64) __builtin_prefetch(p + ahead + at);
    __builtin_prefetch(p + ahead + bytes - 1);
    load_floats<SCALES>(scales, row * groups + first_group, used, all_groups, scale);
    load_floats<SCALES>(biases, row * groups + first_group, used, all_groups, bias);
    uint32_t* to = dst;
    const uint8_t* bits = p;
    int v = 0;
    for (; v + GEMM_VECTORS <= vectors; v += GEMM_VECTORS, bits += GEMM_VECTORS * VECTOR_BYTES, to += next)
#pragma GCC unroll 4
      for (int i = 0; i < GEMM_VECTORS; ++i) {
        const vf values = unpack_values<BITS>(unpack, bits + i * VECTOR_BYTES, 0);
        ustore(to + i * LANES, vfma(vset(scale[group[v + i]]), values, vset(bias[group[v + i]])));
      }
    for (; v < vectors; ++v, bits += VECTOR_BYTES, to += LANES)
      ustore(to, vfma(vset(scale[group[v]]), unpack_values<BITS>(unpack, bits, 0), vset(bias[group[v]])));
  }
}

template <int BITS>
static void pack_along_groups(const Matrix* m, int64_t column, int count, int64_t begin, int64_t end, uint32_t* dst,
                              int64_t next) {
  switch (m->scale_kind) {
    case Kind::F32:
      return pack_along_groups<BITS, Kind::F32>(m, column, count, begin, end, dst, next);
    case Kind::F16:
      return pack_along_groups<BITS, Kind::F16>(m, column, count, begin, end, dst, next);
    default:
      return pack_along_groups<BITS, Kind::BF16>(m, column, count, begin, end, dst, next);
  }
}
