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

// Values [k, k + LANES) of a row as floats, k a multiple of LANES; p: the byte where they start. Reads UNPACK_READS
// bytes. BITS: 4 or 8 if that is known, else 0.
enum { UNPACK_READS = 16 };
template <int BITS>
LOCALSFT_INLINE vf unpack_values(const Unpack& u, const uint8_t* p, int64_t k) {
#if defined(LOCALSFT_KERNELS_avx512) || defined(LOCALSFT_KERNELS_avx512bf16)
  (void)k;
  if (BITS == 8) return _mm512_cvtepi32_ps(_mm512_cvtepu8_epi32(_mm_loadu_si128((const __m128i*)p)));
  const __m512i bytes = _mm512_shuffle_epi8(_mm512_broadcast_i32x4(_mm_loadu_si128((const __m128i*)p)), u.bytes);
  return _mm512_cvtepi32_ps(_mm512_and_si512(_mm512_srlv_epi32(bytes, u.shift), u.mask));
#elif defined(LOCALSFT_KERNELS_avx2)
  (void)k;
  if (BITS == 8) return _mm256_cvtepi32_ps(_mm256_cvtepu8_epi32(_mm_loadl_epi64((const __m128i*)p)));
  if (BITS == 4) {  // 8 values in 32 bits
    const __m256i word = _mm256_broadcastd_epi32(_mm_loadu_si32(p)),
                  shift = _mm256_setr_epi32(0, 4, 8, 12, 16, 20, 24, 28);
    return _mm256_cvtepi32_ps(_mm256_and_si256(_mm256_srlv_epi32(word, shift), u.mask));
  }
  const __m256i bytes = _mm256_shuffle_epi8(_mm256_broadcastq_epi64(_mm_loadl_epi64((const __m128i*)p)), u.bytes);
  return _mm256_cvtepi32_ps(_mm256_and_si256(_mm256_srlv_epi32(bytes, u.shift), u.mask));
#elif defined(LOCALSFT_KERNELS_neon)
  const int odd = BITS == 8 ? 0 : int(k / LANES) & 1;
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

// The values of one row's group, scale·q + bias. On AVX-512 those of 4 bits are looked up in a register that holds all
// 16 of them: the same bits in fewer instructions.
template <int BITS>
struct GroupValues {
#if defined(LOCALSFT_KERNELS_avx512) || defined(LOCALSFT_KERNELS_avx512bf16)
  enum { BY_TABLE = BITS == 4 };
  vf table;
#endif
  vf scale, bias;

  LOCALSFT_MEMBER GroupValues() {}
  LOCALSFT_MEMBER GroupValues(float s, float b) : scale(vset(s)), bias(vset(b)) {
#if defined(LOCALSFT_KERNELS_avx512) || defined(LOCALSFT_KERNELS_avx512bf16)
    table = vfma(scale, _mm512_setr_ps(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15), bias);
#endif
  }
  // Of the columns [k, k + LANES), whose bits start at p; reads UNPACK_READS bytes.
  LOCALSFT_MEMBER vf at(const Unpack& unpack, const uint8_t* p, int64_t k) const {
#if defined(LOCALSFT_KERNELS_avx512) || defined(LOCALSFT_KERNELS_avx512bf16)
    if (BY_TABLE) {
      uint32_t low, high;
      memcpy(&low, p, 4);
      memcpy(&high, p + 4, 4);
      const __m512i bits = _mm512_mask_set1_epi32(_mm512_set1_epi32(int(low)), 0xff00, int(high)),
                    shift = _mm512_setr_epi32(0, 4, 8, 12, 16, 20, 24, 28, 0, 4, 8, 12, 16, 20, 24, 28);
      return _mm512_permutexvar_ps(_mm512_srlv_epi32(bits, shift), table);  // which takes the low 4 bits
    }
#endif
    return vfma(scale, unpack_values<BITS>(unpack, p, k), bias);
  }
};

LOCALSFT_INLINE vf unpack_vector(const Unpack& u, const uint8_t* p, int64_t k) {
  return u.bits == 8 ? unpack_values<8>(u, p, k) : unpack_values<0>(u, p, k);
}

// Elements [index, index + LANES) of an array of kind F32, F16 or BF16.
template <Kind KIND>
LOCALSFT_INLINE vf load_whole(const void* data, int64_t index) {
  if (KIND == Kind::F32) return vload((const float*)data + index);
  const uint16_t* p = (const uint16_t*)data + index;
  return KIND == Kind::F16 ? vload_f16(p) : vload_bf16(p);
}

// Elements [index, index + count) of an array of `total` floats of kind F32, F16 or BF16, as floats in whole vectors:
// out is written up to a multiple of LANES, but nothing past the array is read.
template <Kind KIND>
LOCALSFT_INLINE void load_floats(const void* data, int64_t index, int count, int64_t total, float* out) {
  for (int i = 0; i < count; i += LANES) {
    const int64_t at = index + i;
    const int n = total - at >= LANES ? int(LANES) : int((total - at) & (LANES - 1));
    if (KIND == Kind::F32) {
      const float* p = (const float*)data + at;
      vstore(out + i, n == LANES ? vload(p) : vload_n(p, n));
    } else if (KIND == Kind::F16) {
      const uint16_t* p = (const uint16_t*)data + at;
      vstore(out + i, n == LANES ? vload_f16(p) : vload_f16_n(p, n));
    } else {
      const uint16_t* p = (const uint16_t*)data + at;
      vstore(out + i, n == LANES ? vload_bf16(p) : vload_bf16_n(p, n));
    }
  }
}

// The same for `rows` rows, the elements `stride` and the floats `out_stride` apart.
template <Kind KIND>
LOCALSFT_INLINE void load_rows(const void* data, int64_t index, int64_t stride, int rows, int count, int64_t total,
                               float* out, int64_t out_stride) {
  if (index + (rows - 1) * stride + count + LANES <= total) {
    for (int r = 0; r < rows; ++r)
      for (int i = 0; i < count; i += LANES)
        vstore(out + r * out_stride + i, load_whole<KIND>(data, index + r * stride + i));
    return;
  }
  for (int r = 0; r < rows; ++r) load_floats<KIND>(data, index + r * stride, count, total, out + r * out_stride);
}

// Columns that a reader looks at at a time. Decoding and packing 576 in one piece was faster than in two on AVX2 and
// AVX-512, and more than that was not.
enum { READER_SPAN = 576 };
static const float no_row[READER_SPAN + 2 * LANES] = {0};

// Reads COUNT neighbouring rows of a dense matrix; rows that don't exist read as 0.
template <Kind KIND, int ROWS>
struct DenseReader {
  enum { COUNT = ROWS, SPAN = READER_SPAN, SCALED = KIND == Kind::F32, QUANTIZED = 0 };
  const uint8_t* data[COUNT];  // of the first column

  DenseReader(const Matrix*) {}
  // Rows [row, row + count) and columns [begin, end), at most SPAN of them.
  LOCALSFT_MEMBER void seek(const Matrix* m, int64_t row, int count, int64_t begin, int64_t) {
    for (int r = 0; r < COUNT; ++r)
      data[r] = r < count ? (const uint8_t*)m->data + ((row + r) * m->stride + begin) * (KIND == Kind::F32 ? 4 : 2)
                          : (const uint8_t*)no_row;
  }
  // Where the bits of `column` of a row start; bytes from row to row, and of so many columns.
  LOCALSFT_MEMBER const uint8_t* row_data(const Matrix* m, int64_t row, int64_t column) const {
    return (const uint8_t*)m->data + row * row_bytes(m) + bytes_of(column);
  }
  LOCALSFT_MEMBER int64_t row_bytes(const Matrix* m) const { return bytes_of(m->stride); }
  LOCALSFT_MEMBER int64_t bytes_of(int64_t columns) const { return columns * (KIND == Kind::F32 ? 4 : 2); }
  // Columns [k, k + n) from `begin` on, of row r, as floats; n > 0 is cut to LANES, lanes beyond it are 0.
  LOCALSFT_MEMBER vf floats(int r, int64_t k, int64_t n) const {
    if (KIND == Kind::F32) {
      const float* p = (const float*)data[r] + k;
      return n >= LANES ? vload(p) : vload_n(p, int(n));
    }
    const uint16_t* p = (const uint16_t*)data[r] + k;
    if (KIND == Kind::F16) return n >= LANES ? vload_f16(p) : vload_f16_n(p, int(n));
    return n >= LANES ? vload_bf16(p) : vload_bf16_n(p, int(n));
  }
};

// The scales and biases of ROWS neighbouring rows of an affine matrix, as floats, over at most READER_SPAN columns.
template <int ROWS>
struct GroupScales {
  enum { GROUPS = (READER_SPAN / 16 + LANES) / LANES * LANES };  // no group is smaller than 16
  const int group_log2;
  int offset;  // of the first column in its group
  alignas(LANES * 4) float scale[ROWS][GROUPS], bias[ROWS][GROUPS];

  explicit GroupScales(const Matrix* m) : group_log2(m->group_log2) {}
  // Of the rows [row, row + count) and the columns [begin, end); further rows stay as they are.
  LOCALSFT_MEMBER void load(const Matrix* m, int64_t row, int count, int64_t begin, int64_t end) {
    switch (m->scale_kind) {
      case Kind::F32:
        return load_kind<Kind::F32>(m, row, count, begin, end);
      case Kind::F16:
        return load_kind<Kind::F16>(m, row, count, begin, end);
      default:
        return load_kind<Kind::BF16>(m, row, count, begin, end);
    }
  }
  template <Kind KIND>
  LOCALSFT_MEMBER void load_kind(const Matrix* m, int64_t row, int count, int64_t begin, int64_t end) {
    const int64_t groups = m->columns >> group_log2, first = begin >> group_log2, total = m->rows * groups;
    const int used = int(((end - 1) >> group_log2) + 1 - first);
    offset = int(begin - (first << group_log2));
    load_rows<KIND>(m->scales, row * groups + first, groups, count, used, total, scale[0], GROUPS);
    load_rows<KIND>(m->biases, row * groups + first, groups, count, used, total, bias[0], GROUPS);
  }
  // A row that does not exist: any bits, scaled by 0.
  LOCALSFT_MEMBER void clear(int r) {
    memset(scale[r], 0, sizeof scale[r]);
    memset(bias[r], 0, sizeof bias[r]);
  }
  // Of the k-th column from `begin` on.
  LOCALSFT_MEMBER int group(int64_t k) const { return int((offset + k) >> group_log2); }
};

// The same for an affine-quantized matrix, whose columns are read in whole vectors.
template <int ROWS>
struct AffineReader : GroupScales<ROWS> {
  enum { COUNT = ROWS, SPAN = READER_SPAN, SCALED = 0, QUANTIZED = 1 };
  const uint8_t*
      data[COUNT];  // where the first column's bits start; UNPACK_READS bytes past the last one's are readable
  const int bits;
  Unpack unpack;
  uint8_t copy[COUNT][SPAN + UNPACK_READS];

  AffineReader(const Matrix* m) : GroupScales<ROWS>(m), bits(m->bits), unpack(make_unpack(m->bits)) {}
  // `begin` is a multiple of LANES.
  LOCALSFT_MEMBER void seek(const Matrix* m, int64_t row, int count, int64_t begin, int64_t end) {
    const int64_t row_bytes = m->columns * bits / 8, size = ((end - begin) * bits + 7) / 8;
    const uint8_t* first = (const uint8_t*)m->data + row * row_bytes + begin * bits / 8;
    const uint8_t* stop = (const uint8_t*)m->data + m->rows * row_bytes;
    for (int r = 0; r < count; ++r) data[r] = first + r * row_bytes;
    for (int r = count; r-- > 0 && stop - data[r] < size + UNPACK_READS;) {  // the array may end a memory-mapped file
      memcpy(copy[r], data[r], size_t(size));
      memset(copy[r] + size, 0, UNPACK_READS);
      data[r] = copy[r];
    }
    for (int r = count; r < COUNT; ++r) {  // rows that don't exist
      data[r] = copy[r];
      memset(copy[r], 0, sizeof copy[r]);
      this->clear(r);
    }
    this->load(m, row, count, begin, end);
  }
  LOCALSFT_MEMBER const uint8_t* row_data(const Matrix* m, int64_t row, int64_t column) const {
    return (const uint8_t*)m->data + row * row_bytes(m) + bytes_of(column);
  }
  LOCALSFT_MEMBER int64_t row_bytes(const Matrix* m) const { return bytes_of(m->columns); }
  LOCALSFT_MEMBER int64_t bytes_of(int64_t columns) const { return columns * bits / 8; }
  LOCALSFT_MEMBER const uint8_t* at(int r, int64_t k) const { return data[r] + k * bits / 8; }
  LOCALSFT_MEMBER vf floats(int r, int64_t k, int64_t) const {
    const int g = this->group(k);
    return vfma(vset(this->scale[r][g]), unpack_vector(unpack, at(r, k), k), vset(this->bias[r][g]));
  }
};

// The same where the bits of a value are known when it is compiled: nearly always 4.
template <int ROWS, int BITS>
struct BitsReader : AffineReader<ROWS> {
  BitsReader(const Matrix* m) : AffineReader<ROWS>(m) {}
  LOCALSFT_MEMBER GroupValues<BITS> group_values(int r, int64_t k) const {
    const uint64_t g = uint64_t(this->offset + k) >> this->group_log2;
    return {this->scale[r][g], this->bias[r][g]};
  }
  LOCALSFT_MEMBER const uint8_t* at(int r, int64_t k) const { return this->data[r] + uint64_t(k) * BITS / 8; }
  LOCALSFT_MEMBER vf floats(int r, int64_t k, int64_t) const {
    return group_values(r, k).at(this->unpack, at(r, k), k);
  }
};

template <typename Reader>
static void read_row_with(const Matrix* m, int64_t row, float* out) {
  Reader reader(m);
  for (int64_t begin = 0; begin < m->columns; begin += Reader::SPAN) {
    const int64_t n = m->columns - begin < Reader::SPAN ? m->columns - begin : int64_t(Reader::SPAN);
    reader.seek(m, row, 1, begin, begin + n);
    for (int64_t k = 0; k < n; k += LANES) {
      const vf x = reader.floats(0, k, n - k);
      if (n - k >= LANES)
        vstore(out + begin + k, x);
      else
        vstore_n(out + begin + k, x, int(n - k));
    }
  }
}

// out (columns,) = row `row` of m as floats.
static void read_row(const Matrix* m, int64_t row, float* out) {
  switch (m->kind) {
    case Kind::F32:
      return read_row_with<DenseReader<Kind::F32, 1>>(m, row, out);
    case Kind::F16:
      return read_row_with<DenseReader<Kind::F16, 1>>(m, row, out);
    case Kind::BF16:
      return read_row_with<DenseReader<Kind::BF16, 1>>(m, row, out);
    case Kind::AFFINE:
      return read_row_with<AffineReader<1>>(m, row, out);
  }
}
