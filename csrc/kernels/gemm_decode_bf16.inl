// Decoding with 4 and 8 bit weights where the ISA multiplies bfloat16. x is rounded to it, as for every other product
// of such an ISA; the integers q are exact in it, and scales and biases stay apart, in float:
//
//   x·w = Σ over groups of scale·(Σ q·x) + bias·(Σ x)
//
// Columns come in blocks of 128, of which each of the 16 lanes sums 8 neighbours in 4 steps: a group's scale then
// stands in its lanes, and a block costs one multiplication by scales. The order of the additions is the same for any
// number of rows of x, so what is generated for one prompt does not depend on the prompts that are decoded with it.

enum { BLOCK = 128, STEPS = 4, BLOCK_SPAN = 1024, BLOCK_GROUPS = BLOCK_SPAN / 16 };

LOCALSFT_INLINE __m512bh as_bf16(__m512i x) { return (__m512bh)x; }

// BITS: how a block's integers are read, in the order (8·lane + ...) of the steps.
template <int BITS>
struct BlockReader;

// A 16-bit lane k holds the columns 4k ... 4k + 3: step s takes 4k + s.
template <>
struct BlockReader<4> {
  const __m512i table;  // 0 ... 15 as bfloat16, twice: a lane's fifth bit belongs to its neighbour
  BlockReader() : table(integers()) {}
  static __m512i integers() {
    uint16_t values[32];
    for (int i = 0; i < 32; ++i) values[i] = float_to_bf16(float(i % 16));
    return _mm512_loadu_si512(values);
  }
  struct Raw {
    __m512i word;
  };
  inline __attribute__((always_inline)) Raw load(const uint8_t* p, int64_t columns) const {
    if (columns >= BLOCK) return {_mm512_loadu_si512(p)};
    return {_mm512_maskz_loadu_epi8((__mmask64(1) << (columns / 2)) - 1, p)};
  }
  inline __attribute__((always_inline)) __m512bh step(const Raw& raw, int s) const {
    return as_bf16(_mm512_permutexvar_epi16(_mm512_srli_epi16(raw.word, unsigned(4 * s)), table));
  }
  // The order of x: (STEPS, 32) from four vectors of 32 neighbours.
  static inline __attribute__((always_inline)) void arrange(const __m512i v[STEPS], uint16_t* to) {
    uint16_t index[32];
    for (int k = 0; k < 32; ++k) index[k] = uint16_t(k % 16 * 4);
    const __m512i first = _mm512_loadu_si512(index);
#pragma GCC unroll 4
    for (int s = 0; s < STEPS; ++s) {
      const __m512i at = _mm512_add_epi16(first, _mm512_set1_epi16(short(s)));
      _mm512_storeu_si512(to + 32 * s, _mm512_mask_blend_epi16(0xffff0000u, _mm512_permutex2var_epi16(v[0], at, v[1]),
                                                               _mm512_permutex2var_epi16(v[2], at, v[3])));
    }
  }
};

// A 16-bit lane k of the two loads holds the columns 2k and 2k + 1: step s takes the lanes 4j + s.
template <>
struct BlockReader<8> {
  __m512i lanes;
  BlockReader() {
    uint16_t index[32];
    for (int k = 0; k < 32; ++k) index[k] = uint16_t(k % 16 * 4);
    lanes = _mm512_loadu_si512(index);
  }
  struct Raw {
    __m512i low, high;
  };
  inline __attribute__((always_inline)) Raw load(const uint8_t* p, int64_t columns) const {
    if (columns >= BLOCK) return {_mm512_loadu_si512(p), _mm512_loadu_si512(p + 64)};
    const __mmask64 all = ~__mmask64(0);
    const __mmask64 low = columns >= 64 ? all : (__mmask64(1) << columns) - 1;
    const __mmask64 high = columns > 64 ? (__mmask64(1) << (columns - 64)) - 1 : 0;
    return {_mm512_maskz_loadu_epi8(low, p), _mm512_maskz_loadu_epi8(high, p + (columns > 64 ? 64 : 0))};
  }
  inline __attribute__((always_inline)) __m512bh step(const Raw& raw, int s) const {
    const __m512i at = _mm512_add_epi16(lanes, _mm512_set1_epi16(short(s)));
    const __m256i bytes = _mm512_castsi512_si256(_mm512_permutex2var_epi16(raw.low, at, raw.high));
    return _mm512_cvtne2ps_pbh(_mm512_cvtepi32_ps(_mm512_cvtepu8_epi32(_mm256_extracti128_si256(bytes, 1))),
                               _mm512_cvtepi32_ps(_mm512_cvtepu8_epi32(_mm256_castsi256_si128(bytes))));
  }
  static inline __attribute__((always_inline)) void arrange(const __m512i v[STEPS], uint16_t* to) {
    const __m512i first = _mm512_setr_epi32(0, 4, 8, 12, 16, 20, 24, 28, 0, 4, 8, 12, 16, 20, 24, 28);
#pragma GCC unroll 4
    for (int s = 0; s < STEPS; ++s) {
      const __m512i at = _mm512_add_epi32(first, _mm512_set1_epi32(s));
      _mm512_storeu_si512(to + 32 * s, _mm512_mask_blend_epi32(0xff00u, _mm512_permutex2var_epi32(v[0], at, v[1]),
                                                               _mm512_permutex2var_epi32(v[2], at, v[3])));
    }
  }
};

// The rows of x over a span of columns: rounded and arranged, and what is rounded summed over each group.
struct BlockInput {
  alignas(64) uint16_t x[DECODE_MOST][BLOCK_SPAN];
  alignas(64) float sums[DECODE_MOST][BLOCK_GROUPS];  // 0 beyond the last group
};

template <int BITS>
static void block_input(const float* x, int64_t x_stride, int m, int64_t columns, int group_log2, BlockInput* in) {
  alignas(64) float rounded[BLOCK_SPAN], pairs[BLOCK_GROUPS * LANES];
  const int64_t group = int64_t(1) << group_log2, groups = (columns + group - 1) >> group_log2;
  for (int i = 0; i < m; ++i, x += x_stride) {
    for (int64_t k = 0; k < columns; k += BLOCK) {
      __m512i v[STEPS];
#pragma GCC unroll 4
      for (int s = 0; s < STEPS; ++s) {
        vf half[2];
#pragma GCC unroll 2
        for (int h = 0; h < 2; ++h) {
          const int64_t left = columns - k - 32 * s - LANES * h;
          const float* p = x + k + 32 * s + LANES * h;
          half[h] = left >= LANES ? vload(p) : left > 0 ? vload_n(p, int(left)) : vzero();
        }
        v[s] = (__m512i)_mm512_cvtne2ps_pbh(half[1], half[0]);
        vstore(rounded + k + 32 * s, vload_bf16((const uint16_t*)&v[s]));
        vstore(rounded + k + 32 * s + LANES, vload_bf16((const uint16_t*)&v[s] + LANES));
      }
      BlockReader<BITS>::arrange(v, in->x[i] + k);
    }
    for (int64_t g = 0; g < groups; ++g) {
      vf sum = vload(rounded + g * group);
      for (int64_t k = LANES; k < group; k += LANES) sum = vadd(sum, vload(rounded + g * group + k));
      vstore(pairs + g * LANES, sum);
    }
    for (int64_t g = groups; g < (groups + LANES - 1) / LANES * LANES; ++g) vstore(pairs + g * LANES, vzero());
    for (int64_t g = 0; g < groups; g += LANES) vsums(pairs + g * LANES, in->sums[i] + g);
  }
}

// R rows of the weight over a span; rows that don't exist are the first one, scaled by 0.
template <int BITS, int R>
struct BlockRows {
  const uint8_t* data[R];
  float scale[R][BLOCK_GROUPS + LANES], bias[R][BLOCK_GROUPS + LANES];
  __m512i group_of_lane;
  int group_log2;

  // Scales of columns that don't exist are multiplied too, by sums that are 0: they must be finite.
  BlockRows() {
    memset(scale, 0, sizeof scale);
    memset(bias, 0, sizeof bias);
  }
  inline __attribute__((always_inline)) void seek(const Matrix* w, int64_t row, int count, int64_t begin,
                                                  int64_t columns) {
    const int64_t row_bytes = w->columns * BITS / 8;
    for (int r = 0; r < R; ++r)
      data[r] = (const uint8_t*)w->data + (row + (r < count ? r : 0)) * row_bytes + begin * BITS / 8;
    for (int r = count; r < R; ++r) {
      memset(scale[r], 0, sizeof scale[r]);
      memset(bias[r], 0, sizeof bias[r]);
    }
    group_log2 = w->group_log2;
    group_of_lane =
        _mm512_srl_epi32(_mm512_slli_epi32(_mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15), 3),
                         _mm_cvtsi32_si128(group_log2));
    switch (w->scale_kind) {
      case Kind::F32:
        return seek_scales<Kind::F32>(w, row, count, begin, columns);
      case Kind::F16:
        return seek_scales<Kind::F16>(w, row, count, begin, columns);
      default:
        return seek_scales<Kind::BF16>(w, row, count, begin, columns);
    }
  }
  template <Kind KIND>
  inline __attribute__((always_inline)) void seek_scales(const Matrix* w, int64_t row, int count, int64_t begin,
                                                         int64_t columns) {
    const int64_t groups = w->columns >> group_log2, first = begin >> group_log2;
    const int used = int((columns + (int64_t(1) << group_log2) - 1) >> group_log2);
    for (int r = 0; r < count; ++r) {
      const int64_t index = (row + r) * groups + first;
      load_floats<KIND>(w->scales, index, used, w->rows * groups, scale[r]);
      load_floats<KIND>(w->biases, index, used, w->rows * groups, bias[r]);
    }
  }
  inline __attribute__((always_inline)) void prefetch_next(const Matrix* w, int64_t columns) const {
    const int64_t ahead = R * w->columns * BITS / 8;
    for (int r = 0; r < R; ++r)
      for (int64_t at = 0; at < columns * BITS / 8; at += 64) __builtin_prefetch(data[r] + ahead + at);
  }
  // The scale of each lane in the block at column k of the span.
  inline __attribute__((always_inline)) vf scales(int r, int64_t k) const {
    return _mm512_permutexvar_ps(group_of_lane, vload(scale[r] + (k >> group_log2)));
  }
  inline __attribute__((always_inline)) int64_t groups(int64_t columns) const {
    return (columns + (int64_t(1) << group_log2) - 1) >> group_log2;
  }
  // Of the groups [g, g + LANES), those beyond `groups` are 0.
  inline __attribute__((always_inline)) vf biases_at(int r, int64_t g, int64_t groups) const {
    return vload_n(bias[r] + g, groups - g < LANES ? int(groups - g) : int(LANES));
  }
};

// One to three rows of x: the weight goes from memory to registers.
template <int BITS, int M>
static void block_few(const Matrix* w, int64_t begin, int64_t end, int64_t at, int64_t columns, const BlockInput& in,
                      float* out, int64_t out_stride) {
  enum { R = 4 };
  const BlockReader<BITS> reader;
  BlockRows<BITS, R> rows;
  for (int64_t n = begin; n < end; n += R) {
    const int count = end - n < R ? int(end - n) : int(R);
    rows.seek(w, n, count, at, columns);
    rows.prefetch_next(w, columns);
    vf total[R][M];
#pragma GCC unroll 4
    for (int r = 0; r < R; ++r)
#pragma GCC unroll 4
      for (int i = 0; i < M; ++i) total[r][i] = vzero();
    const int64_t groups = rows.groups(columns);
    for (int64_t g = 0; g < groups; g += LANES)
#pragma GCC unroll 4
      for (int r = 0; r < R; ++r) {
        const vf bias = rows.biases_at(r, g, groups);
#pragma GCC unroll 4
        for (int i = 0; i < M; ++i) total[r][i] = vfma(bias, vload(in.sums[i] + g), total[r][i]);
      }
    for (int64_t k = 0; k < columns; k += BLOCK) {
#pragma GCC unroll 4
      for (int r = 0; r < R; ++r) {
        const auto raw = reader.load(rows.data[r] + k * BITS / 8, columns - k);
        vf sum[M];
#pragma GCC unroll 4
        for (int i = 0; i < M; ++i) sum[i] = vzero();
#pragma GCC unroll 4
        for (int s = 0; s < STEPS; ++s) {
          const __m512bh q = reader.step(raw, s);
#pragma GCC unroll 4
          for (int i = 0; i < M; ++i)
            sum[i] = _mm512_dpbf16_ps(sum[i], q, as_bf16(_mm512_load_si512(in.x[i] + k + 32 * s)));
        }
        const vf scale = rows.scales(r, k);
#pragma GCC unroll 4
        for (int i = 0; i < M; ++i) total[r][i] = vfma(sum[i], scale, total[r][i]);
      }
    }
    for (int r = 0; r < count; ++r)
      for (int i = 0; i < M; ++i) {
        float* to = out + i * out_stride + n + r;
        *to = (at == 0 ? 0.0f : *to) + vsum(total[r][i]);
      }
  }
}

enum { MANY_ROWS = 3, MANY_INPUTS = 4 };

// Rows of the weight as they are multiplied: read once for all rows of x.
struct BlockBuffer {
  alignas(64) uint16_t q[MANY_ROWS][BLOCK_SPAN];
  alignas(64) float scale[MANY_ROWS][BLOCK_SPAN / BLOCK * LANES];
};

// total (MANY_ROWS, DECODE_MOST) vectors, of which M from `first` on are set: biases and blocks of a span.
template <int BITS, int M>
static void block_tile(const BlockRows<BITS, MANY_ROWS>& rows, const BlockBuffer& buffer, const BlockInput& in,
                       int first, int64_t columns, float* total) {
  vf kept[MANY_ROWS][M];
#pragma GCC unroll 3
  for (int r = 0; r < MANY_ROWS; ++r)
#pragma GCC unroll 4
    for (int i = 0; i < M; ++i) kept[r][i] = vzero();
  const int64_t groups = rows.groups(columns);
  for (int64_t g = 0; g < groups; g += LANES) {
    vf bias[MANY_ROWS];
#pragma GCC unroll 3
    for (int r = 0; r < MANY_ROWS; ++r) bias[r] = rows.biases_at(r, g, groups);
#pragma GCC unroll 4
    for (int i = 0; i < M; ++i) {
      const vf sums = vload(in.sums[first + i] + g);
#pragma GCC unroll 3
      for (int r = 0; r < MANY_ROWS; ++r) kept[r][i] = vfma(bias[r], sums, kept[r][i]);
    }
  }
  for (int64_t k = 0; k < columns; k += BLOCK) {
    vf sum[MANY_ROWS][M];
#pragma GCC unroll 3
    for (int r = 0; r < MANY_ROWS; ++r)
#pragma GCC unroll 4
      for (int i = 0; i < M; ++i) sum[r][i] = vzero();
#pragma GCC unroll 4
    for (int s = 0; s < STEPS; ++s) {
      __m512bh q[MANY_ROWS];
#pragma GCC unroll 3
      for (int r = 0; r < MANY_ROWS; ++r) q[r] = as_bf16(_mm512_load_si512(buffer.q[r] + k + 32 * s));
#pragma GCC unroll 4
      for (int i = 0; i < M; ++i) {
        const __m512bh x = as_bf16(_mm512_load_si512(in.x[first + i] + k + 32 * s));
#pragma GCC unroll 3
        for (int r = 0; r < MANY_ROWS; ++r) sum[r][i] = _mm512_dpbf16_ps(sum[r][i], q[r], x);
      }
    }
#pragma GCC unroll 3
    for (int r = 0; r < MANY_ROWS; ++r) {
      const vf scale = vload(buffer.scale[r] + k / BLOCK * LANES);
#pragma GCC unroll 4
      for (int i = 0; i < M; ++i) kept[r][i] = vfma(sum[r][i], scale, kept[r][i]);
    }
  }
#pragma GCC unroll 3
  for (int r = 0; r < MANY_ROWS; ++r)
#pragma GCC unroll 4
    for (int i = 0; i < M; ++i) vstore(total + (r * DECODE_MOST + first + i) * LANES, kept[r][i]);
}

template <int BITS>
static void block_many(const Matrix* w, int64_t begin, int64_t end, int64_t at, int64_t columns, const BlockInput& in,
                       int m, float* out, int64_t out_stride) {
  const BlockReader<BITS> reader;
  BlockRows<BITS, MANY_ROWS> rows;
  BlockBuffer buffer;
  alignas(64) float total[MANY_ROWS * DECODE_MOST * LANES] = {0}, results[DECODE_MOST + LANES];
  for (int64_t n = begin; n < end; n += MANY_ROWS) {
    const int count = end - n < MANY_ROWS ? int(end - n) : int(MANY_ROWS);
    rows.seek(w, n, count, at, columns);
    rows.prefetch_next(w, columns);
    for (int r = 0; r < MANY_ROWS; ++r) {
      for (int64_t k = 0; k < columns; k += BLOCK) {
        const auto raw = reader.load(rows.data[r] + k * BITS / 8, columns - k);
#pragma GCC unroll 4
        for (int s = 0; s < STEPS; ++s) _mm512_store_si512(buffer.q[r] + k + 32 * s, (__m512i)reader.step(raw, s));
        vstore(buffer.scale[r] + k / BLOCK * LANES, rows.scales(r, k));
      }
    }
    int first = 0;
    for (; m - first >= MANY_INPUTS; first += MANY_INPUTS)
      block_tile<BITS, MANY_INPUTS>(rows, buffer, in, first, columns, total);
    switch (m - first) {
      case 3:
        block_tile<BITS, 3>(rows, buffer, in, first, columns, total);
        break;
      case 2:
        block_tile<BITS, 2>(rows, buffer, in, first, columns, total);
        break;
      case 1:
        block_tile<BITS, 1>(rows, buffer, in, first, columns, total);
    }
    for (int r = 0; r < count; ++r) {
      for (int i = 0; i < m; i += LANES) vsums(total + (r * DECODE_MOST + i) * LANES, results + i);
      for (int i = 0; i < m; ++i) {
        float* to = out + i * out_stride + n + r;
        *to = (at == 0 ? 0.0f : *to) + results[i];
      }
    }
  }
}

// x arranged for decode_blocks: an array of spans.
template <int BITS>
static void pack_blocks(const Matrix* w, const float* x, int m, BlockInput* spans) {
  for (int64_t at = 0; at < w->columns; at += BLOCK_SPAN) {
    const int64_t columns = w->columns - at < BLOCK_SPAN ? w->columns - at : int64_t(BLOCK_SPAN);
    block_input<BITS>(x + at, w->columns, m, columns, w->group_log2, spans + at / BLOCK_SPAN);
  }
}

template <int BITS>
static void decode_blocks(const Matrix* w, int64_t begin, int64_t end, const BlockInput* spans, int m, float* out,
                          int64_t out_stride) {
  for (int64_t at = 0; at < w->columns; at += BLOCK_SPAN) {
    const int64_t columns = w->columns - at < BLOCK_SPAN ? w->columns - at : int64_t(BLOCK_SPAN);
    const BlockInput& in = spans[at / BLOCK_SPAN];
    switch (m) {
      case 1:
        block_few<BITS, 1>(w, begin, end, at, columns, in, out, out_stride);
        break;
      case 2:
        block_few<BITS, 2>(w, begin, end, at, columns, in, out, out_stride);
        break;
      case 3:
        block_few<BITS, 3>(w, begin, end, at, columns, in, out, out_stride);
        break;
      default:
        block_many<BITS>(w, begin, end, at, columns, in, m, out, out_stride);
    }
  }
}
