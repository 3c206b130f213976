// Reading a row of a Matrix as vectors of floats, whatever it is stored as.

// How LANES quantized values lie in memory. Values of B bits are packed little-end first and 8 of them take B whole
// bytes, so a vector's values start at a whole byte (half-way through one for odd B and 4 lanes). Each value spans at
// most two bytes: a byte shuffle brings them to its lane, a shift and a mask leave the value.
struct Unpack {
  int bits;
#if defined(LOCALSFT_KERNELS_avx512) || defined(LOCALSFT_KERNELS_avx512bf16)
  __m512i bytes, shift, mask;
#elif defined(LOCALSFT_KERNELS_avx2)
  __m256i bytes, shift, mask;
#elif defined(LOCALSFT_KERNELS_neon)
  uint8x16_t bytes[2];  // for a vector at an even and at an odd multiple of 4 columns
  int32x4_t shift[2];
  uint32x4_t mask;
#endif
};

#if !defined(LOCALSFT_KERNELS_baseline)
// The bytes (absent: 0x80, which reads as 0) and the shift of each lane, for values that start `first_bit` into a byte.
static void unpack_controls(int bits, int first_bit, uint8_t bytes[4 * LANES], uint32_t shifts[LANES]) {
  for (int lane = 0; lane < LANES; ++lane) {
    const int bit = first_bit + lane * bits;
    bytes[4 * lane] = uint8_t(bit / 8);
    bytes[4 * lane + 1] = bit % 8 + bits > 8 ? uint8_t(bit / 8 + 1) : 0x80;
    bytes[4 * lane + 2] = bytes[4 * lane + 3] = 0x80;
    shifts[lane] = uint32_t(bit % 8);
  }
}
#endif

static inline Unpack make_unpack(int bits) {
  Unpack u;
  u.bits = bits;
#if defined(LOCALSFT_KERNELS_baseline)
#else
  uint8_t bytes[4 * LANES];
  uint32_t shifts[LANES];
  unpack_controls(bits, 0, bytes, shifts);
#if defined(LOCALSFT_KERNELS_avx512) || defined(LOCALSFT_KERNELS_avx512bf16)
  u.bytes = _mm512_loadu_si512(bytes);
  u.shift = _mm512_loadu_si512(shifts);
  u.mask = _mm512_set1_epi32((1 << bits) - 1);
#elif defined(LOCALSFT_KERNELS_avx2)
  u.bytes = _mm256_loadu_si256((const __m256i*)bytes);
  u.shift = _mm256_loadu_si256((const __m256i*)shifts);
  u.mask = _mm256_set1_epi32((1 << bits) - 1);
#elif defined(LOCALSFT_KERNELS_neon)
  u.mask = vdupq_n_u32((1u << bits) - 1);
  for (int odd = 0; odd < 2; ++odd) {
    unpack_controls(bits, odd * (4 * bits % 8), bytes, shifts);
    u.bytes[odd] = vld1q_u8(bytes);
    u.shift[odd] = vnegq_s32(vreinterpretq_s32_u32(vld1q_u32(shifts)));
  }
#endif
#endif
  return u;
}

// Bytes that unpack_vector reads, used or not.
enum { UNPACK_READS = LANES == 8 ? 8 : 16 };

// Values [k, k + LANES) of the row that starts at `row`, as floats; k is a multiple of LANES.
LOCALSFT_INLINE vf unpack_vector_unchecked(const Unpack& u, const uint8_t* p, int64_t k) {
#if defined(LOCALSFT_KERNELS_avx512) || defined(LOCALSFT_KERNELS_avx512bf16)
  (void)k;
  const __m512i bytes = _mm512_shuffle_epi8(_mm512_broadcast_i32x4(_mm_loadu_si128((const __m128i*)p)), u.bytes);
  return _mm512_cvtepi32_ps(_mm512_and_si512(_mm512_srlv_epi32(bytes, u.shift), u.mask));
#elif defined(LOCALSFT_KERNELS_avx2)
  (void)k;
  int64_t word;
  memcpy(&word, p, 8);
  const __m256i bytes = _mm256_shuffle_epi8(_mm256_set1_epi64x(word), u.bytes);
  return _mm256_cvtepi32_ps(_mm256_and_si256(_mm256_srlv_epi32(bytes, u.shift), u.mask));
#elif defined(LOCALSFT_KERNELS_neon)
  const int odd = int(k / LANES) & 1;
  const uint32x4_t bytes = vreinterpretq_u32_u8(vqtbl1q_u8(vld1q_u8(p), u.bytes[odd]));
  return vcvtq_f32_u32(vandq_u32(vshlq_u32(bytes, u.shift[odd]), u.mask));
#else
  vf x;
  for (int lane = 0; lane < LANES; ++lane) {
    const int bit = int(k * u.bits % 8) + lane * u.bits;
    uint32_t word = p[bit / 8];
    if (bit % 8 + u.bits > 8) word |= uint32_t(p[bit / 8 + 1]) << 8;
    x[lane] = float((word >> (bit % 8)) & ((1u << u.bits) - 1));
  }
  return x;
#endif
}

LOCALSFT_INLINE vf unpack_vector(const Unpack& u, const uint8_t* row, int64_t k, const uint8_t* end) {
  const uint8_t* p = row + k * u.bits / 8;
#if !defined(LOCALSFT_KERNELS_baseline)
  if (__builtin_expect(end - p < UNPACK_READS, 0)) {  // never read past the array: it may end a memory-mapped file
    uint8_t copy[UNPACK_READS] = {0};
    memcpy(copy, p, size_t(end - p));
    return unpack_vector_unchecked(u, copy, k);
  }
#else
  (void)end;
#endif
  return unpack_vector_unchecked(u, p, k);
}

// `count` floats from element `index` on of an array of kind F32, F16 or BF16, count <= LANES.
LOCALSFT_INLINE vf load_kind(Kind kind, const void* data, int64_t index, int count) {
  if (kind == Kind::F16) return vload_f16_n((const uint16_t*)data + index, count);
  if (kind == Kind::BF16) return vload_bf16_n((const uint16_t*)data + index, count);
  return vload_n((const float*)data + index, count);
}

enum { MAX_GROUPS = 32 };  // groups of a row that a RowReader holds at a time: 512 columns or more

// Reads COUNT neighbouring rows of a matrix over a range of columns.
template <Kind KIND, int COUNT>
struct RowReader {
  const Matrix* m;
  int64_t row;  // the first of the COUNT rows
  int rows;     // how many of them exist; the others read as 0
  int64_t first_group;
  Unpack unpack;
  const uint8_t* end;
  int64_t row_bytes;
  float scale[KIND == Kind::AFFINE ? COUNT : 1][MAX_GROUPS + LANES];
  float bias[KIND == Kind::AFFINE ? COUNT : 1][MAX_GROUPS + LANES];

  inline __attribute__((always_inline)) void open(const Matrix* matrix) {
    m = matrix;
    if (KIND == Kind::AFFINE) {
      unpack = make_unpack(m->bits);
      row_bytes = m->columns * m->bits / 8;
      end = (const uint8_t*)m->data + m->rows * row_bytes;
    }
  }
  // Columns that seek() makes readable, from a multiple of it on.
  inline __attribute__((always_inline)) int64_t span() const {
    return KIND == Kind::AFFINE ? int64_t(MAX_GROUPS) << m->group_log2 : INT64_MAX / 2;
  }
  // Rows [first, first + count) and columns [begin, end).
  inline __attribute__((always_inline)) void seek(int64_t first, int count, int64_t begin, int64_t stop) {
    row = first;
    rows = count;
    if (KIND != Kind::AFFINE) return;
    first_group = begin >> m->group_log2;
    const int64_t groups = m->columns >> m->group_log2;
    const int used = int(((stop - 1) >> m->group_log2) + 1 - first_group);
    for (int r = 0; r < count; ++r) {
      const int64_t index = (row + r) * groups + first_group;
      for (int g = 0; g < used; g += LANES) {
        const int n = used - g < LANES ? used - g : LANES;
        vstore(&scale[r][g], load_kind(m->scale_kind, m->scales, index + g, n));
        vstore(&bias[r][g], load_kind(m->scale_kind, m->biases, index + g, n));
      }
    }
  }
  // Columns [k, k + n) of row r as floats, 0 beyond n; k is a multiple of LANES for AFFINE; n <= 0 reads nothing.
  inline __attribute__((always_inline)) vf floats(int r, int64_t k, int64_t n) const {
    if (r >= rows || n <= 0) return vzero();
    const int64_t index = (row + r) * m->stride + k;
    const int some = n < LANES ? int(n) : LANES;
    switch (KIND) {
      case Kind::F32:
        return n >= LANES ? vload((const float*)m->data + index) : vload_n((const float*)m->data + index, some);
      case Kind::F16:
        return n >= LANES ? vload_f16((const uint16_t*)m->data + index)
                          : vload_f16_n((const uint16_t*)m->data + index, some);
      case Kind::BF16:
        return n >= LANES ? vload_bf16((const uint16_t*)m->data + index)
                          : vload_bf16_n((const uint16_t*)m->data + index, some);
      case Kind::AFFINE: {
        const int64_t g = (k >> m->group_log2) - first_group;
        const vf q = unpack_vector(unpack, (const uint8_t*)m->data + (row + r) * row_bytes, k, end);
        return vfma(vset(scale[r][g]), q, vset(bias[r][g]));
      }
    }
    return vzero();
  }
};

static void read_row_affine(const Matrix* m, int64_t row, float* out) {
  RowReader<Kind::AFFINE, 1> reader;
  reader.open(m);
  for (int64_t begin = 0; begin < m->columns; begin += reader.span()) {
    const int64_t end = begin + reader.span() < m->columns ? begin + reader.span() : m->columns;
    reader.seek(row, 1, begin, end);
    for (int64_t k = begin; k < end; k += LANES) vstore(out + k, reader.floats(0, k, end - k));
  }
}

// out (columns,) = row `row` of m as floats.
static void read_row(const Matrix* m, int64_t row, float* out) {
  if (m->kind == Kind::AFFINE) {
    read_row_affine(m, row, out);
    return;
  }
  for (int64_t k = 0; k < m->columns; k += LANES) {
    const int n = m->columns - k < LANES ? int(m->columns - k) : LANES;
    vstore_n(out + k, load_kind(m->kind, m->data, row * m->stride + k, n), n);
  }
}
