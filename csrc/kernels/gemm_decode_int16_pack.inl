// x for decoding with 16-bit integers (gemm_decode_int16.inl): each group rounded to integers of its own scale, in the
// order in which the weight's words hold their columns.

enum { LANE_INPUTS = 4 };  // rows of x beside each other

// BITS: the steps of a word (32 bits of a row), each a pair of its integers as 16 bits.
template <int BITS>
struct Word;

// Step s: the columns s and 4 + s of a word's 8.
template <>
struct Word<4> {
  enum { COLUMNS = 8, STEPS = 4 };
  template <int STEP>
  static inline __attribute__((always_inline)) __m256i step(__m256i word) {
    if (STEP == 3) return _mm256_srli_epi16(word, 12);
    return _mm256_and_si256(STEP == 0 ? word : _mm256_srli_epi16(word, 4 * STEP), _mm256_set1_epi16(15));
  }
  // 8 columns of x in the order of the steps.
  static inline __attribute__((always_inline)) __m128i in_order(__m128i x) {
    return _mm_shuffle_epi8(x, _mm_setr_epi8(0, 1, 8, 9, 2, 3, 10, 11, 4, 5, 12, 13, 6, 7, 14, 15));
  }
};

// Step s: the columns s and 2 + s of a word's 4.
template <>
struct Word<8> {
  enum { COLUMNS = 4, STEPS = 2 };
  template <int STEP>
  static inline __attribute__((always_inline)) __m256i step(__m256i word) {
    return STEP == 1 ? _mm256_srli_epi16(word, 8) : _mm256_and_si256(word, _mm256_set1_epi16(255));
  }
  static inline __attribute__((always_inline)) __m128i in_order(__m128i x) {
    return _mm_shuffle_epi8(x, _mm_setr_epi8(0, 1, 4, 5, 2, 3, 6, 7, 8, 9, 12, 13, 10, 11, 14, 15));
  }
};

static int64_t lane_bytes(const Matrix* w) {  // no group is smaller than 16
  return (w->columns / 2 + 2 * (w->columns / 16)) * DECODE_MOST * 4;
}

// x as it is multiplied: of each group in a block and each row of x the scale and the scaled sum of its integers, then
// the pairs of integers (inputs / LANE_INPUTS, steps, LANE_INPUTS) in the order of the words' steps.
template <typename Float, typename Pair>
struct PackedLanes {
  int64_t steps;
  Float *scales, *sums;  // (groups in blocks, DECODE_MOST)
  Pair* pairs;
  PackedLanes(const Matrix* w, int group, Pair* packed)
      : steps(w->columns / 2),
        scales((Float*)packed),
        sums(scales + w->columns / group * DECODE_MOST),
        pairs(packed + 2 * (w->columns / group) * DECODE_MOST) {}
};

// to (columns) = the integers of one group of x; its scale, and the sum of the integers times it. What isn't finite
// makes the scale a NaN.
static void round_group(const float* x, int columns, int16_t* to, float* scale, float* sum) {
  const vf sign = vset(-0.0f);
  vf most = vzero(), all = vzero();
  for (int k = 0; k < columns; k += LANES) {
    const vf value = vload(x + k);
    most = vmax(most, _mm256_andnot_ps(sign, value));
    all = vadd(all, value);
  }
  const float largest = vmaximum(most), smallest = 1e-30f;  // below it the scale's inverse is not a number any more
  const vf inverse = vset(largest > smallest ? 32767.0f / largest : 0.0f);
  __m256i total = _mm256_setzero_si256();
  for (int k = 0; k < columns; k += 2 * LANES) {
    const __m256i low = _mm256_cvtps_epi32(vmul(vload(x + k), inverse));
    const __m256i high = _mm256_cvtps_epi32(vmul(vload(x + k + LANES), inverse));
    const __m256i both = _mm256_permute4x64_epi64(_mm256_packs_epi32(low, high), 0xd8);
    _mm256_storeu_si256((__m256i*)(to + k), both);
    total = _mm256_add_epi32(total, _mm256_madd_epi16(both, _mm256_set1_epi16(1)));
  }
  *scale = largest / 32767.0f + vsum(all) * 0.0f;
  *sum = vsum(_mm256_cvtepi32_ps(total)) * *scale;  // exact: the lanes are below 2^24 / 8
}

// The columns [first, last) of x.
template <int BITS>
static void pack_lanes(const Matrix* w, const float* x, int m, int64_t first, int64_t last, void* memory) {
  enum { COLUMNS = Word<BITS>::COLUMNS, STEPS = Word<BITS>::STEPS, BLOCK = WORDS * COLUMNS };
  const int group = group_in_block<BITS>(w);
  const PackedLanes<float, uint32_t> packed(w, group, (uint32_t*)memory);
  int16_t integers[LANE_INPUTS][BLOCK];
  memset(integers, 0, sizeof integers);
  for (int begin = 0; begin < m; begin += LANE_INPUTS) {
    const int inputs = m - begin < LANE_INPUTS ? m - begin : int(LANE_INPUTS);
    uint32_t* pairs = packed.pairs + (begin * packed.steps + first / 2 * LANE_INPUTS);
    for (int64_t k = first; k < last; k += group) {
      const int64_t at = k / group * DECODE_MOST + begin;
      for (int i = 0; i < inputs; ++i)
        round_group(x + (begin + i) * w->columns + k, group, integers[i], packed.scales + at + i, packed.sums + at + i);
      for (int c = 0; c < group; c += 8, pairs += 4 * LANE_INPUTS) {
        __m128i v[4];
#pragma GCC unroll 4
        for (int i = 0; i < 4; ++i) v[i] = Word<BITS>::in_order(_mm_loadu_si128((const __m128i*)(integers[i] + c)));
        const __m128i low01 = _mm_unpacklo_epi32(v[0], v[1]), high01 = _mm_unpackhi_epi32(v[0], v[1]);
        const __m128i low23 = _mm_unpacklo_epi32(v[2], v[3]), high23 = _mm_unpackhi_epi32(v[2], v[3]);
        _mm_storeu_si128((__m128i*)pairs, _mm_unpacklo_epi64(low01, low23));
        _mm_storeu_si128((__m128i*)(pairs + LANE_INPUTS), _mm_unpackhi_epi64(low01, low23));
        _mm_storeu_si128((__m128i*)(pairs + 2 * LANE_INPUTS), _mm_unpacklo_epi64(high01, high23));
        _mm_storeu_si128((__m128i*)(pairs + 3 * LANE_INPUTS), _mm_unpackhi_epi64(high01, high23));
      }
    }
  }
}
