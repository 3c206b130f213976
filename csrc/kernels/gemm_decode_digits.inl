// Decoding with 4 and 8 bit weights on AVX2, which multiplies and adds integers of 8 bits four at a time and of 16 bits
// two, and floats one by one. Each group of x is brought to integers of its own scale (gemm_decode_digits_pack.inl) of
// 23 bits or more, which float32 itself has of the largest of them, and these are multiplied digit by digit with the
// weights' integers q as they are:
//
//   x·w = Σ over groups of scale·x_scale·(Σ q·x) + bias·(Σ x)
//
// The sums of integers are exact, so that no more is lost than in sums of floats; the groups are added in float in the
// order of the columns, whatever else is computed: what is generated for one prompt does not depend on the prompts
// decoded with it.
//
// A 32-bit lane is a row of the weight: rows' words are transposed on their way to registers, so that only a group's
// end takes float arithmetic, once for LANES rows.

enum { LANE_VECTORS = 2, LANE_ROWS = LANE_VECTORS * LANES };  // rows of a tile
enum { LANE_SPAN = 512, LANE_GROUPS = LANE_SPAN / 16 };       // columns whose scales are looked at at a time

// to[c], c < 4: the words c of 8 rows, from 16 bytes of each, `stride` bytes apart.
LOCALSFT_INLINE void transpose_16_bytes(const uint8_t* rows, int64_t stride, __m256i to[4]) {
  __m256i v[4];
#pragma GCC unroll 4
  for (int i = 0; i < 4; ++i) {  // the rows i and 4 + i
    const auto low = (const __m128i*)(rows + i * stride), high = (const __m128i*)(rows + (4 + i) * stride);
    v[i] = _mm256_inserti128_si256(_mm256_castsi128_si256(_mm_loadu_si128(low)), _mm_loadu_si128(high), 1);
  }
  const __m256i a = _mm256_unpacklo_epi32(v[0], v[1]), b = _mm256_unpackhi_epi32(v[0], v[1]);
  const __m256i c = _mm256_unpacklo_epi32(v[2], v[3]), d = _mm256_unpackhi_epi32(v[2], v[3]);
  to[0] = _mm256_unpacklo_epi64(a, c), to[1] = _mm256_unpackhi_epi64(a, c);
  to[2] = _mm256_unpacklo_epi64(b, d), to[3] = _mm256_unpackhi_epi64(b, d);
}

// to (WORDS, LANE_VECTORS) = the words of LANE_ROWS rows.
LOCALSFT_INLINE void transpose_words(const uint8_t* rows, int64_t stride, __m256i* to) {
#pragma GCC unroll 4
  for (int part = 0; part < 2 * LANE_VECTORS; ++part) {
    const int v = part / 2, half = part % 2;
    __m256i words[4];
    transpose_16_bytes(rows + v * LANES * stride + 16 * half, stride, words);
#pragma GCC unroll 4
    for (int c = 0; c < 4; ++c) to[(4 * half + c) * LANE_VECTORS + v] = words[c];
  }
}

// to (8, LANE_VECTORS) = 8 scales of LANE_ROWS rows, as floats.
template <Kind KIND>
LOCALSFT_INLINE void transpose_scales(const uint8_t* rows, int64_t stride, vf* to) {
  if (KIND == Kind::F32) return transpose_words(rows, stride, (__m256i*)to);
#pragma GCC unroll 2
  for (int v = 0; v < LANE_VECTORS; ++v) {
    __m256i words[4];  // two scales each
    transpose_16_bytes(rows + v * LANES * stride, stride, words);
#pragma GCC unroll 4
    for (int c = 0; c < 4; ++c) {
      vf *even = to + 2 * c * LANE_VECTORS + v, *odd = even + LANE_VECTORS;
      if (KIND == Kind::F16) {
        const __m256i low = _mm256_and_si256(words[c], _mm256_set1_epi32(0xffff));
        const __m256i high = _mm256_srli_epi32(words[c], 16);
        const __m256i halves = _mm256_permute4x64_epi64(_mm256_packus_epi32(low, high), 0xd8);
        *even = _mm256_cvtph_ps(_mm256_castsi256_si128(halves));
        *odd = _mm256_cvtph_ps(_mm256_extracti128_si256(halves, 1));
      } else {
        *even = _mm256_castsi256_ps(_mm256_slli_epi32(words[c], 16));
        *odd = _mm256_castsi256_ps(_mm256_and_si256(words[c], _mm256_set1_epi32(int(0xffff0000u))));
      }
    }
  }
}

// to (groups, LANE_VECTORS), with room for a multiple of 8 of them, = the scales (or biases) [first, first + groups) of
// `rows` rows from `row` on; of rows that don't exist, 0.
template <Kind KIND>
static void lane_scales(const Matrix* w, const void* scales, int64_t row, int rows, int64_t first, int64_t groups,
                        vf* to) {
  enum { SIZE = KIND == Kind::F32 ? 4 : 2 };
  const int64_t of = w->columns >> w->group_log2;
  for (int64_t g = first; g < first + groups; g += 8, to += 8 * LANE_VECTORS) {
    const uint8_t* from = (const uint8_t*)scales + (row * of + g) * SIZE;
    int64_t stride = of * SIZE;
    uint8_t copy[LANE_ROWS][8 * SIZE];
    if (__builtin_expect(rows < LANE_ROWS || (row + LANE_ROWS - 1) * of + g + 8 > w->rows * of, 0)) {
      const int64_t n = first + groups - g < 8 ? first + groups - g : 8;
      memset(copy, 0, sizeof copy);
      for (int r = 0; r < rows; ++r) memcpy(copy[r], from + r * stride, size_t(n * SIZE));
      from = copy[0], stride = sizeof copy[0];
    }
    transpose_scales<KIND>(from, stride, to);
  }
}

static void lane_scales(const Matrix* w, const void* scales, int64_t row, int rows, int64_t first, int64_t groups,
                        vf* to) {
  switch (w->scale_kind) {
    case Kind::F32:
      return lane_scales<Kind::F32>(w, scales, row, rows, first, groups, to);
    case Kind::F16:
      return lane_scales<Kind::F16>(w, scales, row, rows, first, groups, to);
    default:
      return lane_scales<Kind::BF16>(w, scales, row, rows, first, groups, to);
  }
}

// sums (LANE_VECTORS, M, DIGITS) += a word's steps, whose integers are unpacked from `from` (LANE_VECTORS) or, if
// UNPACKED, there already (STEPS, LANE_VECTORS). x (STEPS, DIGITS, LANE_INPUTS).
template <int BITS, int M, bool UNPACKED, int STEP = 0>
LOCALSFT_INLINE void add_word(const __m256i* from, const uint32_t* x,
                              __m256i sums[LANE_VECTORS][M][Word<BITS>::DIGITS]) {
  enum { DIGITS = Word<BITS>::DIGITS };
  if constexpr (STEP < STEPS) {
    __m256i q[LANE_VECTORS];
#pragma GCC unroll 2
    for (int v = 0; v < LANE_VECTORS; ++v)
      q[v] = UNPACKED ? from[STEP * LANE_VECTORS + v] : Word<BITS>::template step<STEP>(from[v]);
#pragma GCC unroll 3
    for (int d = 0; d < DIGITS; ++d)
#pragma GCC unroll 2
      for (int i = 0; i < M; ++i) {
        const __m256i input = _mm256_set1_epi32(int(x[(STEP * DIGITS + d) * LANE_INPUTS + i]));
#pragma GCC unroll 2
        for (int v = 0; v < LANE_VECTORS; ++v) {
          sums[v][i][d] = Word<BITS>::multiply_add(q[v], input, sums[v][i][d]);
          // Else the compiler adds the products of all steps first, which doesn't fit into the registers.
          __asm__("" : "+x"(sums[v][i][d]));
        }
      }
    add_word<BITS, M, UNPACKED, STEP + 1>(from, x, sums);
  }
}

// total (LANE_VECTORS, DECODE_MOST), from this tile's first row of x on, += a group of `words` words.
template <int BITS, int M, bool UNPACKED>
LOCALSFT_INLINE void add_group(const __m256i* from, int words, const uint32_t* x, const float* x_scales,
                               const float* x_sums, const vf scale[LANE_VECTORS], const vf bias[LANE_VECTORS],
                               vf* total) {
  enum { DIGITS = Word<BITS>::DIGITS };
  __m256i sums[LANE_VECTORS][M][DIGITS];
#pragma GCC unroll 2
  for (int v = 0; v < LANE_VECTORS; ++v)
#pragma GCC unroll 2
    for (int i = 0; i < M; ++i)
#pragma GCC unroll 3
      for (int d = 0; d < DIGITS; ++d) sums[v][i][d] = _mm256_setzero_si256();
  for (int word = 0; word < words; ++word) {
    add_word<BITS, M, UNPACKED>(from, x, sums);
    from += LANE_VECTORS * (UNPACKED ? int(STEPS) : 1);
    x += STEPS * DIGITS * LANE_INPUTS;
  }
#pragma GCC unroll 2
  for (int v = 0; v < LANE_VECTORS; ++v)
#pragma GCC unroll 2
    for (int i = 0; i < M; ++i) {
      vf* to = total + v * DECODE_MOST + i;
      const vf product = vmul(Word<BITS>::total(sums[v][i]), vset(x_scales[i]));
      *to = vfma(product, scale[v], vfma(vset(x_sums[i]), bias[v], *to));
    }
}

// to (words, STEPS, LANE_VECTORS) = the integers of raw (words, LANE_VECTORS).
template <int BITS>
LOCALSFT_INLINE void unpack_words(const __m256i* raw, int words, __m256i* to) {
  for (int word = 0; word < words; ++word, raw += LANE_VECTORS, to += STEPS * LANE_VECTORS)
#pragma GCC unroll 2
    for (int v = 0; v < LANE_VECTORS; ++v) {
      to[v] = Word<BITS>::template step<0>(raw[v]);
      to[LANE_VECTORS + v] = Word<BITS>::template step<1>(raw[v]);
    }
}

// The rows [row, row + rows) of w, at most LANE_ROWS, times the m rows of x. FEW: m <= LANE_INPUTS, and m is M.
template <int BITS, bool FEW, int M>
static void lane_tile(const Matrix* w, int64_t row, int rows,
                      const PackedLanes<BITS, const float, const uint32_t>& packed, int m, float* out,
                      int64_t out_stride) {
  enum { COLUMNS = Word<BITS>::COLUMNS, BLOCK = WORDS * COLUMNS };
  const int64_t row_bytes = w->columns * BITS / 8;
  const int group = group_in_block<BITS>(w), group_words = group / COLUMNS;
  const uint8_t* data = (const uint8_t*)w->data + row * row_bytes;
  const uint8_t* next = data + LANE_ROWS * row_bytes;  // the data of the next tile, in the order in which it lies
  vf scale[LANE_GROUPS][LANE_VECTORS], bias[LANE_GROUPS][LANE_VECTORS];
  vf total[LANE_VECTORS][DECODE_MOST];
  for (int i = 0; i < m; ++i)
    for (int v = 0; v < LANE_VECTORS; ++v) total[v][i] = vzero();
  const float *x_scales = packed.scales, *x_sums = packed.sums;
  const uint32_t* x = packed.digits;
  for (int64_t span = 0; span < w->columns; span += LANE_SPAN) {
    const int64_t stop = span + LANE_SPAN < w->columns ? span + LANE_SPAN : w->columns;
    const int64_t first = span >> w->group_log2, groups = ((stop - 1) >> w->group_log2) + 1 - first;
    lane_scales(w, w->scales, row, rows, first, groups, scale[0]);
    lane_scales(w, w->biases, row, rows, first, groups, bias[0]);
    for (int64_t k = span; k < stop; k += BLOCK) {
      const int words = stop - k < BLOCK ? int(stop - k) / COLUMNS : int(WORDS);
#pragma GCC unroll 8
      for (int line = 0; line < LANE_ROWS * WORDS * 4 / 64; ++line) __builtin_prefetch(next + 64 * line);
      next += LANE_ROWS * WORDS * 4;
      __m256i raw[WORDS][LANE_VECTORS], integers[FEW ? 1 : WORDS * STEPS * LANE_VECTORS];
      const uint8_t* from = data + k * BITS / 8;
      int64_t stride = row_bytes;
      uint8_t copy[LANE_ROWS][WORDS * 4];
      if (__builtin_expect(words < WORDS || rows < LANE_ROWS, 0)) {
        memset(copy, 0, sizeof copy);
        for (int r = 0; r < rows; ++r) memcpy(copy[r], from + r * row_bytes, size_t(words) * 4);
        from = copy[0], stride = sizeof copy[0];
      }
      transpose_words(from, stride, raw[0]);
      if (!FEW) unpack_words<BITS>(&raw[0][0], words, integers);
      for (int begin = 0; begin < words; begin += group_words) {
        const int64_t g = ((k + begin * COLUMNS) >> w->group_log2) - first;
        if constexpr (FEW) {
          add_group<BITS, M, false>(raw[begin], group_words, x, x_scales, x_sums, scale[g], bias[g], total[0]);
        } else {
          const __m256i* q = integers + begin * STEPS * LANE_VECTORS;
          const auto add = [&](auto count, int i) {
            add_group<BITS, decltype(count)::value, true>(q, group_words, x + i * packed.words, x_scales + i,
                                                          x_sums + i, scale[g], bias[g], total[0] + i);
          };
          int i = 0;
          for (; i + LANE_INPUTS <= m; i += LANE_INPUTS) add(Count<LANE_INPUTS>(), i);
          if (i < m) add(Count<1>(), i);
        }
        x += group_words * STEPS * Word<BITS>::DIGITS * LANE_INPUTS;
        x_scales += DECODE_MOST;
        x_sums += DECODE_MOST;
      }
    }
  }
  for (int v = 0; v < LANE_VECTORS && rows > v * LANES; ++v) {
    float* to = out + row + v * LANES;
    const int count = rows - v * LANES;
    for (int i = 0; i < m; ++i, to += out_stride) {
      if (count >= LANES)  // masked stores are slow on some
        vstore(to, total[v][i]);
      else
        vstore_n(to, total[v][i], count);
    }
  }
}

template <int BITS, bool FEW, int M>
static void decode_lanes_with(const Matrix* w, int64_t begin, int64_t end,
                              const PackedLanes<BITS, const float, const uint32_t>& packed, int m, float* out,
                              int64_t out_stride) {
  const int64_t first = end - begin < LANE_ROWS ? end - begin : int64_t(LANE_ROWS);
  prefetch_scales(w, begin, first);
  prefetch_data(w, begin, first);
  for (int64_t row = begin; row < end; row += LANE_ROWS) {
    prefetch_scales(w, row + LANE_ROWS, LANE_ROWS);
    lane_tile<BITS, FEW, M>(w, row, end - row < LANE_ROWS ? int(end - row) : int(LANE_ROWS), packed, m, out,
                            out_stride);
  }
}

template <int BITS>
static void decode_lanes(const Matrix* w, int64_t begin, int64_t end, const void* memory, int m, float* out,
                         int64_t out_stride) {
  const PackedLanes<BITS, const float, const uint32_t> packed(w, group_in_block<BITS>(w), (const uint32_t*)memory);
  switch (m) {
    case 1:
      return decode_lanes_with<BITS, true, 1>(w, begin, end, packed, m, out, out_stride);
    case 2:
      return decode_lanes_with<BITS, true, 2>(w, begin, end, packed, m, out, out_stride);
    default:
      return decode_lanes_with<BITS, false, 0>(w, begin, end, packed, m, out, out_stride);
  }
}
