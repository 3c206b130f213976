// Decoding with 4 and 8 bit weights where the ISA multiplies bfloat16. x is rounded to it, as for every other product
// of such an ISA; the integers q are exact in it, and scales and biases stay apart, in float:
//
//   x·w = Σ over groups of scale·(Σ q·x) + bias·(Σ x)
//
// A lane is a row of the weight: 16 rows' words are transposed on their way to registers, and what remains is one chain
// of multiply-accumulates a group for each row of x, without sums over lanes. The order of the additions is the same
// for any number of rows of x, so what is generated for one prompt does not depend on the prompts decoded with it.

enum { LANE_SPAN = 1024, LANE_GROUPS = LANE_SPAN / 16 };  // columns whose scales are looked at at a time

LOCALSFT_INLINE __m512bh as_bf16(__m512i x) { return (__m512bh)x; }

// BITS: the steps of a word (32 bits of a row), each a pair of its integers as bfloat16.
template <int BITS>
struct Word;

// Step s: the columns s and 4 + s of a word's 8.
template <>
struct Word<4> {
  enum { COLUMNS = 8, STEPS = 4 };
  const __m512i table;  // 0 ... 15 as bfloat16, twice: an index's fifth bit belongs to its neighbour
  Word() : table(integers()) {}
  static __m512i integers() {
    uint16_t values[32];
    for (int i = 0; i < 32; ++i) values[i] = float_to_bf16(float(i % 16));
    return _mm512_loadu_si512(values);
  }
  template <int STEP>
  LOCALSFT_MEMBER __m512bh step(__m512i word) const {
    return as_bf16(_mm512_permutexvar_epi16(STEP ? _mm512_srli_epi16(word, 4 * STEP) : word, table));
  }
  static __m256i order() { return _mm256_setr_epi16(0, 4, 1, 5, 2, 6, 3, 7, 8, 12, 9, 13, 10, 14, 11, 15); }
};

// Step s: the columns s and 2 + s of a word's 4.
template <>
struct Word<8> {
  enum { COLUMNS = 4, STEPS = 2 };
  template <int STEP>
  LOCALSFT_MEMBER __m512bh step(__m512i word) const {
    // An integer of 8 bits as a float has nothing beyond the bits of a bfloat16.
    const __m512i byte = _mm512_set1_epi32(0xff);
    const __m512 low = _mm512_cvtepi32_ps(_mm512_and_si512(_mm512_srli_epi32(word, 8 * STEP), byte));
    const __m512 high = _mm512_cvtepi32_ps(_mm512_and_si512(_mm512_srli_epi32(word, 8 * STEP + 16), byte));
    return as_bf16(_mm512_or_si512(_mm512_srli_epi32(_mm512_castps_si512(low), 16), _mm512_castps_si512(high)));
  }
  static __m256i order() { return _mm256_setr_epi16(0, 2, 1, 3, 4, 6, 5, 7, 8, 10, 9, 11, 12, 14, 13, 15); }
};

// to[c], c < 4: the words c of `rows` rows (the lanes beyond are 0), from 16 bytes of each, `stride` bytes apart, of
// which `bytes` exist. ALL: rows is LANES.
template <bool ALL>
LOCALSFT_INLINE void transpose_16_bytes(const uint8_t* p, int64_t stride, int rows, int64_t bytes, __m512i to[4]) {
  const __mmask16 some = bytes >= 16 ? 0xffff : __mmask16((1u << bytes) - 1);
  const auto row = [&](int r) {
    return ALL || r < rows ? _mm_maskz_loadu_epi8(some, p + r * stride) : _mm_setzero_si128();
  };
  __m512i v[4], half[4];
#pragma GCC unroll 4
  for (int i = 0; i < 4; ++i) {  // the rows i, 4 + i, 8 + i and 12 + i
    v[i] = _mm512_castsi128_si512(row(i));
    v[i] = _mm512_mask_broadcast_i32x4(v[i], 0x00f0, row(4 + i));
    v[i] = _mm512_mask_broadcast_i32x4(v[i], 0x0f00, row(8 + i));
    v[i] = _mm512_mask_broadcast_i32x4(v[i], 0xf000, row(12 + i));
  }
  half[0] = _mm512_unpacklo_epi32(v[0], v[1]), half[1] = _mm512_unpackhi_epi32(v[0], v[1]);
  half[2] = _mm512_unpacklo_epi32(v[2], v[3]), half[3] = _mm512_unpackhi_epi32(v[2], v[3]);
  to[0] = _mm512_unpacklo_epi64(half[0], half[2]), to[1] = _mm512_unpackhi_epi64(half[0], half[2]);
  to[2] = _mm512_unpacklo_epi64(half[1], half[3]), to[3] = _mm512_unpackhi_epi64(half[1], half[3]);
}

// to[g] = the scales (or biases) g of 16 rows, from [first, first + groups) of each row's `of` groups; to has room for
// 8 more.
template <Kind KIND, bool ALL>
static void lane_scales(const void* scales, int64_t of, int64_t row, int rows, int64_t first, int64_t groups, vf* to) {
  enum { SIZE = KIND == Kind::F32 ? 4 : 2 };
  const uint8_t* p = (const uint8_t*)scales + (row * of + first) * SIZE;
  const __m512i apart = _mm512_set_epi16(31, 29, 27, 25, 23, 21, 19, 17, 15, 13, 11, 9, 7, 5, 3, 1, 30, 28, 26, 24, 22,
                                         20, 18, 16, 14, 12, 10, 8, 6, 4, 2, 0);
  for (int64_t at = 0; at < groups * SIZE; at += 16) {
    __m512i words[4];
    if (groups * SIZE - at >= 16)
      transpose_16_bytes<ALL>(p + at, of * SIZE, rows, 16, words);
    else
      transpose_16_bytes<ALL>(p + at, of * SIZE, rows, groups * SIZE - at, words);
#pragma GCC unroll 4
    for (int i = 0; i < 4; ++i) {
      if (KIND == Kind::F32) {
        *to++ = _mm512_castsi512_ps(words[i]);
      } else if (KIND == Kind::F16) {
        const __m512i halves = _mm512_permutexvar_epi16(apart, words[i]);
        *to++ = _mm512_cvtph_ps(_mm512_castsi512_si256(halves));
        *to++ = _mm512_cvtph_ps(_mm512_extracti64x4_epi64(halves, 1));
      } else {
        *to++ = _mm512_castsi512_ps(_mm512_slli_epi32(words[i], 16));
        *to++ = _mm512_castsi512_ps(_mm512_and_si512(words[i], _mm512_set1_epi32(int(0xffff0000u))));
      }
    }
  }
}

template <Kind KIND>
static void lane_scales(const void* scales, int64_t of, int64_t row, int rows, int64_t first, int64_t groups, vf* to) {
  if (rows == LANES) return lane_scales<KIND, true>(scales, of, row, rows, first, groups, to);
  lane_scales<KIND, false>(scales, of, row, rows, first, groups, to);
}

static void lane_scales(const Matrix* w, const void* scales, int64_t row, int rows, int64_t first, int64_t groups,
                        vf* to) {
  const int64_t of = w->columns >> w->group_log2;
  switch (w->scale_kind) {
    case Kind::F32:
      return lane_scales<Kind::F32>(scales, of, row, rows, first, groups, to);
    case Kind::F16:
      return lane_scales<Kind::F16>(scales, of, row, rows, first, groups, to);
    default:
      return lane_scales<Kind::BF16>(scales, of, row, rows, first, groups, to);
  }
}

static int64_t lane_bytes(const Matrix* w) {  // no group is smaller than 16
  return (w->columns / 2 + w->columns / 16) * DECODE_MOST * 4;
}

// Numbers of rows of x that have a kernel; others take the next one, with rows of 0.
static int lane_inputs(int m) { return m <= 4 ? m : m <= 6 ? 6 : m <= 8 ? 8 : m <= 12 ? 12 : 16; }

// The columns [first, last) of x as they are multiplied: the sums (groups in blocks, DECODE_MOST) of what is rounded,
// then pairs (steps, M = lane_inputs(m)) of bfloat16 in the order of the words' steps.
template <int BITS>
static void pack_lanes(const Matrix* w, const float* x, int m, int64_t first, int64_t last, void* packed) {
  enum { HALF = 8 };  // pairs of 16 columns
  const int64_t columns = w->columns, M = lane_inputs(m);
  const int group = group_in_block<BITS>(w);
  float* sums = (float*)packed + first / group * DECODE_MOST;
  uint32_t* pairs = (uint32_t*)packed + columns / group * DECODE_MOST + first / 2 * M;
  const __mmask16 lanes = __mmask16((1u << M) - 1);
  const __m256i order = Word<BITS>::order();
  const __m512bh ones = as_bf16(_mm512_set1_epi16(0x3f80));
  alignas(64) uint8_t rows[DECODE_MOST * 64];
  memset(rows, 0, sizeof rows);
  __m512i words[WORDS];
  vf sum = vzero();
  for (int64_t begin = first; begin < last; begin += 32) {
    const int halves = last - begin < 32 ? 1 : 2;
    for (int i = 0; i < m; ++i)
      for (int h = 0; h < halves; ++h) {
        const __m256i rounded = to_bf16_bits(vload(x + i * columns + begin + LANES * h));
        _mm256_store_si256((__m256i*)(rows + i * 64 + h * 32), _mm256_permutexvar_epi16(order, rounded));
      }
    for (int c = 0; c < 2 * halves; ++c) transpose_16_bytes<true>(rows + 16 * c, 64, LANES, 16, words + 4 * c);
    for (int h = 0; h < halves; ++h) {
      for (int s = h * HALF; s < (h + 1) * HALF; ++s, pairs += M) {
        _mm512_mask_storeu_epi32(pairs, lanes, words[s]);
        sum = _mm512_dpbf16_ps(sum, as_bf16(words[s]), ones);
      }
      if ((begin + LANES * (h + 1)) % group == 0) {
        vstore(sums, sum);
        sums += DECODE_MOST;
        sum = vzero();
      }
    }
  }
}

// total (M) += COUNT groups of `words` words each: their chains run beside each other, which hides the latency of few.
template <int BITS, int M, int COUNT>
LOCALSFT_INLINE void add_groups(const Word<BITS>& word, const __m512i* raw, int words, const uint32_t* x,
                                const float* sums, const vf* const scale[COUNT], const vf* const bias[COUNT],
                                vf total[M]) {
  enum { STEPS = Word<BITS>::STEPS };
  const int64_t next = int64_t(words) * STEPS * M;
  vf sum[COUNT][M];
#pragma GCC unroll 4
  for (int c = 0; c < COUNT; ++c)
#pragma GCC unroll 16
    for (int i = 0; i < M; ++i) sum[c][i] = vzero();
  for (int at = 0; at < words; ++at, x += STEPS * M) {
    const auto multiply = [&](auto step) {
      constexpr int STEP = decltype(step)::value;
#pragma GCC unroll 4
      for (int c = 0; c < COUNT; ++c) {
        const __m512bh q = word.template step<STEP>(raw[c * words + at]);
#pragma GCC unroll 16
        for (int i = 0; i < M; ++i)
          sum[c][i] = _mm512_dpbf16_ps(sum[c][i], q, as_bf16(_mm512_set1_epi32(int(x[c * next + STEP * M + i]))));
      }
    };
    multiply(Count<0>());
    multiply(Count<1>());
    if constexpr (STEPS == 4) {
      multiply(Count<2>());
      multiply(Count<3>());
    }
  }
#pragma GCC unroll 4
  for (int c = 0; c < COUNT; ++c)
#pragma GCC unroll 16
    for (int i = 0; i < M; ++i)
      total[i] = vfma(sum[c][i], *scale[c], vfma(vset(sums[c * DECODE_MOST + i]), *bias[c], total[i]));
}

// The rows [row, row + rows) of w, at most LANES, times M rows of x.
template <int BITS, int M>
static void lane_tile(const Matrix* w, const Word<BITS>& word, int64_t row, int rows, const uint32_t* x,
                      const float* sums, int m, float* out, int64_t out_stride) {
  enum { COLUMNS = Word<BITS>::COLUMNS, STEPS = Word<BITS>::STEPS, BLOCK = WORDS * COLUMNS };
  const int64_t row_bytes = w->columns * BITS / 8;
  const uint8_t* data = (const uint8_t*)w->data + row * row_bytes;
  const uint8_t* next = data + LANES * row_bytes;  // the data of the next tile, in the order in which it lies
  const int group = group_in_block<BITS>(w), group_words = group / COLUMNS;
  vf scale[LANE_GROUPS + 8], bias[LANE_GROUPS + 8], total[M];
#pragma GCC unroll 16
  for (int i = 0; i < M; ++i) total[i] = vzero();
  for (int64_t span = 0; span < w->columns; span += LANE_SPAN) {
    const int64_t stop = span + LANE_SPAN < w->columns ? span + LANE_SPAN : w->columns;
    const int64_t first = span >> w->group_log2, groups = ((stop - 1) >> w->group_log2) + 1 - first;
    lane_scales(w, w->scales, row, rows, first, groups, scale);
    lane_scales(w, w->biases, row, rows, first, groups, bias);
    for (int64_t k = span; k < stop; k += BLOCK) {
      const int words = stop - k < BLOCK ? int(stop - k) / COLUMNS : int(WORDS);
      const uint8_t* from = data + k * BITS / 8;
#pragma GCC unroll 16
      for (int r = 0; r < LANES; ++r) __builtin_prefetch(next + r * 64);
      next += LANES * 64;
      __m512i raw[WORDS];
      if (rows == LANES && words == WORDS)
#pragma GCC unroll 4
        for (int c = 0; c < 4; ++c) transpose_16_bytes<true>(from + 16 * c, row_bytes, LANES, 16, raw + 4 * c);
      else if (rows == LANES && words == WORDS / 2)
#pragma GCC unroll 2
        for (int c = 0; c < 2; ++c) transpose_16_bytes<true>(from + 16 * c, row_bytes, LANES, 16, raw + 4 * c);
      else
        for (int c = 0; c < words; c += 4)
          transpose_16_bytes<false>(from + 4 * c, row_bytes, rows, 4 * (words - c), raw + c);
      const auto add = [&](auto count, int begin) {
        constexpr int COUNT = decltype(count)::value;
        const vf *scales[COUNT], *biases[COUNT];
#pragma GCC unroll 4
        for (int c = 0; c < COUNT; ++c) {
          const int64_t g = ((k + (begin + c * group_words) * COLUMNS) >> w->group_log2) - first;
          scales[c] = scale + g, biases[c] = bias + g;
        }
        add_groups<BITS, M, COUNT>(word, raw + begin, group_words, x, sums, scales, biases, total);
        x += COUNT * group_words * STEPS * M;
        sums += COUNT * DECODE_MOST;
      };
      int begin = 0;
      if (M <= 4) {
        for (; begin + 4 * group_words <= words; begin += 4 * group_words) add(Count<4>(), begin);
        for (; begin + 2 * group_words <= words; begin += 2 * group_words) add(Count<2>(), begin);
      }
      for (; begin < words; begin += group_words) add(Count<1>(), begin);
    }
  }
#pragma GCC unroll 16
  for (int i = 0; i < M; ++i)
    if (i < m) vstore_n(out + i * out_stride + row, total[i], rows);
}

template <int BITS, int M>
static void decode_lanes(const Matrix* w, int64_t begin, int64_t end, const uint32_t* packed, int m, float* out,
                         int64_t out_stride) {
  const Word<BITS> word;
  const float* sums = (const float*)packed;
  packed += w->columns / group_in_block<BITS>(w) * DECODE_MOST;
  const int64_t first = end - begin < LANES ? end - begin : int64_t(LANES);
  prefetch_scales(w, begin, first);
  prefetch_data(w, begin, first);
  for (int64_t row = begin; row < end; row += LANES) {
    prefetch_scales(w, row + LANES, LANES);
    lane_tile<BITS, M>(w, word, row, end - row < LANES ? int(end - row) : int(LANES), packed, sums, m, out, out_stride);
  }
}

template <int BITS>
static void decode_lanes(const Matrix* w, int64_t begin, int64_t end, const void* memory, int m, float* out,
                         int64_t out_stride) {
  const auto packed = (const uint32_t*)memory;
  switch (lane_inputs(m)) {
    case 1:
      return decode_lanes<BITS, 1>(w, begin, end, packed, m, out, out_stride);
    case 2:
      return decode_lanes<BITS, 2>(w, begin, end, packed, m, out, out_stride);
    case 3:
      return decode_lanes<BITS, 3>(w, begin, end, packed, m, out, out_stride);
    case 4:
      return decode_lanes<BITS, 4>(w, begin, end, packed, m, out, out_stride);
    case 6:
      return decode_lanes<BITS, 6>(w, begin, end, packed, m, out, out_stride);
    case 8:
      return decode_lanes<BITS, 8>(w, begin, end, packed, m, out, out_stride);
    case 12:
      return decode_lanes<BITS, 12>(w, begin, end, packed, m, out, out_stride);
    default:
      return decode_lanes<BITS, 16>(w, begin, end, packed, m, out, out_stride);
  }
}
