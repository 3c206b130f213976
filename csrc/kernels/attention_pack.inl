// Operands of the tiles, copied out of the (tokens, heads·E) arrays; missing rows and columns become 0.

// The rows of a chunk in an array (Mq, H·E): `at` is the current one.
struct RowWalk {
  int64_t group, head, E, skip;
  int64_t at;  // element offset
  LOCALSFT_MEMBER RowWalk(const AttentionShape& s, const AttentionChunk& chunk, int64_t row) {
    group = s.heads / s.kv_heads;
    head = row % group;
    E = s.E;
    skip = (s.heads - group) * E;
    at = (row / group * s.heads + chunk.kv_head * group + head) * E;
  }
  LOCALSFT_MEMBER void next() {
    at += E;
    if (++head == group) head = 0, at += skip;
  }
};

LOCALSFT_INLINE void zero_words(word* p, int64_t n) { memset(p, 0, size_t(n) * sizeof(word)); }

// n rows of E values, row_step apart -> out[row][E/WORD], rows up to n_padded.
static void pack_rows(const act_t* x, int64_t row_step, int64_t n, int64_t n_padded, int64_t E, word* out) {
  const int64_t width = E / WORD;
  for (int64_t row = 0; row < n; ++row) memcpy(out + row * width, x + row * row_step, size_t(width) * sizeof(word));
  zero_words(out + n * width, (n_padded - n) * width);
}

// Two rows (second may be null: zeros) of E values -> words[width] that pair them; where a word holds one value, only
// the first.
LOCALSFT_INLINE void pair_two_rows(const act_t* first, const act_t* second, int64_t E, int64_t width, word* out) {
#if defined(LOCALSFT_KERNELS_avx512bf16)
  for (int64_t e = 0; e < width; e += LANES) {
    const __mmask16 mask = lanes_mask(int(at_most(at_least(E - e, 0), LANES)));
    const __m512i low = _mm512_cvtepu16_epi32(_mm256_maskz_loadu_epi16(mask, first + e));
    const __m512i high =
        second ? _mm512_cvtepu16_epi32(_mm256_maskz_loadu_epi16(mask, second + e)) : _mm512_setzero_si512();
    _mm512_mask_storeu_epi32(out + e, lanes_mask(int(at_most(width - e, LANES))),
                             _mm512_or_si512(low, _mm512_slli_epi32(high, 16)));
  }
#else
  (void)second;
  memcpy(out, first, size_t(E) * sizeof(word));
  zero_words(out + E, width - E);
#endif
}

// n rows, row_step apart -> out[row / WORD][width]: words along the rows, for reductions over them. width >= E.
static void pack_pairs(const act_t* x, int64_t row_step, int64_t n, int64_t n_padded, int64_t E, int64_t width,
                       word* out) {
  for (int64_t row = 0; row < n; row += WORD)
    pair_two_rows(x + row * row_step, row + 1 < n ? x + (row + 1) * row_step : 0, E, width, out + row / WORD * width);
  const int64_t done = (n + WORD - 1) / WORD;
  zero_words(out + done * width, (n_padded / WORD - done) * width);
}

// The same for the rows of a chunk.
static void pack_chunk_pairs(const AttentionShape& s, const AttentionChunk& chunk, const act_t* x, int64_t n_padded,
                             int64_t width, word* out) {
  const int64_t n = chunk.end - chunk.begin;
  RowWalk walk(s, chunk, chunk.begin);
  for (int64_t row = 0; row < n; row += WORD) {
    const act_t* first = x + walk.at;
    walk.next();
    const act_t* second = 0;
    if (WORD == 2 && row + 1 < n) second = x + walk.at, walk.next();
    pair_two_rows(first, second, s.E, width, out + row / WORD * width);
  }
  const int64_t done = (n + WORD - 1) / WORD;
  zero_words(out + done * width, (n_padded / WORD - done) * width);
}

// LANES rows of a chunk from `row` on: element offsets, and how many of them exist.
struct RowGroup {
  int64_t at[LANES];
  int count;
};
LOCALSFT_INLINE RowGroup next_rows(RowWalk& walk, int64_t row, int64_t n) {
  RowGroup rows;
  rows.count = int(at_most(at_least(n - row, 0), LANES));
  for (int i = 0; i < rows.count; ++i, walk.next()) rows.at[i] = walk.at;
  return rows;
}

// The rows of a chunk as panels: out[panel][E/WORD][PANEL], rows in the lanes.
static void pack_chunk_panels(const AttentionShape& s, const AttentionChunk& chunk, const act_t* x, word* out) {
  const int64_t width = s.E / WORD, n = chunk.end - chunk.begin;
  RowWalk walk(s, chunk, chunk.begin);
  for (int64_t row = 0; row < n; row += LANES) {
    const RowGroup rows = next_rows(walk, row, n);
    word* to = out + row / PANEL * width * PANEL + row % PANEL;
    for (int64_t w = 0; w < width; w += LANES) {
      const int words = int(at_most(width - w, LANES));
      vf square[LANES];
      for (int i = 0; i < LANES; ++i)
        square[i] = i < rows.count ? vload_n((const float*)(x + rows.at[i] + w * WORD), words) : vzero();
      transpose(square);
      for (int i = 0; i < words; ++i) vstore((float*)(to + (w + i) * PANEL), square[i]);
    }
  }
}

// panels float [panel][E_padded][PANEL], times factor[row] -> the rows of a chunk in x act (Mq, H·E).
static void unpack_chunk_panels(const AttentionShape& s, const AttentionChunk& chunk, const float* panels,
                                int64_t E_padded, const float* factor, act_t* x) {
  const int64_t n = chunk.end - chunk.begin;
  RowWalk walk(s, chunk, chunk.begin);
  for (int64_t row = 0; row < n; row += LANES) {
    const RowGroup rows = next_rows(walk, row, n);
    const float* from = panels + row / PANEL * E_padded * PANEL + row % PANEL;
    const vf scale = vload(factor + row);
    for (int64_t e = 0; e < s.E; e += LANES) {
      const int columns = int(at_most(s.E - e, LANES));
      vf square[LANES];
      for (int i = 0; i < LANES; ++i) square[i] = i < columns ? vmul(scale, vload(from + (e + i) * PANEL)) : vzero();
      transpose(square);
      for (int i = 0; i < rows.count; ++i) vstore_act_n(x + rows.at[i] + e, square[i], columns);
    }
  }
}
