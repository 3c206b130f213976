// x for decoding with digits (gemm_decode_digits.inl): each group as integers of its own scale, in digits, in the order
// in which the weight's words hold their columns.

enum { LANE_INPUTS = 2 };  // rows of x beside each other

// BITS: how a word (32 bits of a row of the weight) is multiplied: in steps of two, each with all digits of x.
template <int BITS>
struct Word;

// Step s: the columns s, 2 + s, 4 + s and 6 + s of a word's 8, with three digits of 8 bits. Pairs of products and sums
// of 8 of them (32 columns) fit 16 bits: 15·128·2·8 < 2^15.
template <>
struct Word<4> {
  enum { COLUMNS = 8, DIGITS = 3 };
  static constexpr float LARGEST = 8.3e6f;  // below 127·(1 + 2^8 + 2^16), also where it is rounded up
  template <int STEP>
  LOCALSFT_INLINE __m256i step(__m256i word) {
    return _mm256_and_si256(STEP == 0 ? word : _mm256_srli_epi16(word, 4), _mm256_set1_epi8(15));
  }
  LOCALSFT_INLINE __m256i multiply_add(__m256i q, __m256i digits, __m256i sum) {
    return _mm256_add_epi16(sum, _mm256_maddubs_epi16(q, digits));
  }
  LOCALSFT_INLINE vf total(const __m256i sums[DIGITS]) {
    const __m256i ones = _mm256_set1_epi16(1);
    const __m256i low =
        _mm256_add_epi32(_mm256_madd_epi16(sums[0], ones), _mm256_madd_epi16(sums[1], _mm256_set1_epi16(256)));
    const __m256i high = _mm256_madd_epi16(sums[2], ones);
    return vfma(_mm256_cvtepi32_ps(high), vset(65536.0f), _mm256_cvtepi32_ps(low));
  }
  // The digits of 8 columns, (2 steps, DIGITS) words of which the last two of `to` are nothing.
  LOCALSFT_INLINE void digits(__m256i x, __m128i to[2]) {
    // With a half added everywhere, the digits are bytes; without it, they are -128 to 127.
    const __m256i half = _mm256_set1_epi32(0x808080);
    const __m256i bytes = _mm256_xor_si256(_mm256_add_epi32(x, half), half);
    const __m256i pairs = _mm256_shuffle_epi8(
        bytes, _mm256_broadcastsi128_si256(_mm_setr_epi8(0, 8, 1, 9, 2, 10, 4, 12, 5, 13, 6, 14, 3, 3, 3, 3)));
    const __m128i first = _mm256_castsi256_si128(pairs), second = _mm256_extracti128_si256(pairs, 1);
    to[0] = _mm_unpacklo_epi16(first, second), to[1] = _mm_unpackhi_epi16(first, second);
  }
};

// Step s: the columns s and 2 + s of a word's 4, with two digits of 16 bits. 16 pairs of products fit 32 bits.
template <>
struct Word<8> {
  enum { COLUMNS = 4, DIGITS = 2 };
  static constexpr float LARGEST = 1073741824.0f;  // 2^30: x's 24 bits and more
  template <int STEP>
  LOCALSFT_INLINE __m256i step(__m256i word) {
    return STEP == 1 ? _mm256_srli_epi16(word, 8) : _mm256_and_si256(word, _mm256_set1_epi16(255));
  }
  LOCALSFT_INLINE __m256i multiply_add(__m256i q, __m256i digits, __m256i sum) {
    return _mm256_add_epi32(sum, _mm256_madd_epi16(q, digits));
  }
  LOCALSFT_INLINE vf total(const __m256i sums[DIGITS]) {
    return vfma(_mm256_cvtepi32_ps(sums[1]), vset(65536.0f), _mm256_cvtepi32_ps(sums[0]));
  }
  // The digits of 8 columns, (2 words, 2 steps, DIGITS).
  LOCALSFT_INLINE void digits(__m256i x, __m128i to[2]) {
    const __m256i half = _mm256_set1_epi32(0x8000);
    const __m256i halves = _mm256_xor_si256(_mm256_add_epi32(x, half), half);
    const __m256i words = _mm256_shuffle_epi8(
        halves, _mm256_broadcastsi128_si256(_mm_setr_epi8(0, 1, 8, 9, 2, 3, 10, 11, 4, 5, 12, 13, 6, 7, 14, 15)));
    to[0] = _mm256_castsi256_si128(words), to[1] = _mm256_extracti128_si256(words, 1);
  }
};

enum { STEPS = 2 };  // of a word

static int64_t lane_bytes(const Matrix* w) {  // no group is smaller than 16; 8 columns have 8 words of digits at most
  return (w->columns + 2 * (w->columns / 16)) * DECODE_MOST * 4;
}

// x as it is multiplied: of each group and each row of x the scale and the sum of its values, then the digits
// (inputs / LANE_INPUTS, words of the weight, STEPS, DIGITS, LANE_INPUTS).
template <int BITS, typename Float, typename Digits>
struct PackedLanes {
  enum { COLUMN_WORDS = STEPS * Word<BITS>::DIGITS };  // of digits, of a word's columns
  int64_t words;                                       // of digits, of a row of x
  Float *scales, *sums;                                // (groups, DECODE_MOST)
  Digits* digits;
  PackedLanes(const Matrix* w, int group, Digits* packed)
      : words(w->columns / Word<BITS>::COLUMNS * COLUMN_WORDS),
        scales((Float*)packed),
        sums(scales + w->columns / group * DECODE_MOST),
        digits(packed + 2 * (w->columns / group) * DECODE_MOST) {}
};

// to (columns) = one group of x as integers; its scale, and its sum, which is not finite where x isn't.
static void to_integers(const float* x, int columns, float limit, int32_t* to, float* scale, float* sum) {
  const vf sign = vset(-0.0f);
  vf most = vzero(), all = vzero();
  for (int k = 0; k < columns; k += LANES) {
    const vf value = vload(x + k);
    most = vmax(most, _mm256_andnot_ps(sign, value));
    all = vadd(all, value);
  }
  const float largest = vmaximum(most), smallest = 1e-28f;  // below it the scale's inverse is not a number any more
  const vf inverse = vset(largest > smallest ? limit / largest : 0.0f);
  for (int k = 0; k < columns; k += LANES)
    _mm256_storeu_si256((__m256i*)(to + k), _mm256_cvtps_epi32(vmul(vload(x + k), inverse)));
  *sum = vsum(all);
  *scale = largest / limit;
}

// The columns [first, last) of x.
template <int BITS>
static void pack_lanes(const Matrix* w, const float* x, int m, int64_t first, int64_t last, void* memory) {
  enum { EIGHT = STEPS * Word<BITS>::DIGITS * 8 / Word<BITS>::COLUMNS };  // words of digits of 8 columns
  const int group = group_in_block<BITS>(w);
  const PackedLanes<BITS, float, uint32_t> packed(w, group, (uint32_t*)memory);
  int32_t integers[LANE_INPUTS][LANE_GROUP];
  memset(integers, 0, sizeof integers);
  for (int begin = 0; begin < m; begin += LANE_INPUTS) {
    const int inputs = m - begin < LANE_INPUTS ? m - begin : int(LANE_INPUTS);
    uint32_t* to = packed.digits + (begin * packed.words + first / 8 * EIGHT * LANE_INPUTS);
    for (int64_t k = first; k < last; k += group) {
      const int64_t at = k / group * DECODE_MOST + begin;
      for (int i = 0; i < inputs; ++i)
        to_integers(x + (begin + i) * w->columns + k, group, Word<BITS>::LARGEST, integers[i], packed.scales + at + i,
                    packed.sums + at + i);
      for (int c = 0; c < group; c += 8, to += EIGHT * LANE_INPUTS) {
        __m128i a[2], b[2];
        Word<BITS>::digits(_mm256_loadu_si256((const __m256i*)(integers[0] + c)), a);
        Word<BITS>::digits(_mm256_loadu_si256((const __m256i*)(integers[1] + c)), b);
        _mm_storeu_si128((__m128i*)to, _mm_unpacklo_epi32(a[0], b[0]));
        _mm_storeu_si128((__m128i*)(to + 4), _mm_unpackhi_epi32(a[0], b[0]));
        _mm_storeu_si128((__m128i*)(to + 8), _mm_unpacklo_epi32(a[1], b[1]));
        if (EIGHT == 8) _mm_storeu_si128((__m128i*)(to + 12), _mm_unpackhi_epi32(a[1], b[1]));
      }
    }
  }
}
