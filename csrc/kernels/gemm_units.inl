// The unit of the matrix kernels (see gemm_table.h) on this ISA: a vector of LANES units, its multiply-accumulate, and
// how units are made from floats.
//
//   STEP        columns or rows of the reduction in a unit
//   GEMM_ROWS × GEMM_VECTORS·LANES   the register tile
//   PIECE       rows that are transposed at a time; divides GEMM_ROWS and LANES
//   CACHED      units of packed panels that stay in the cache (about half of a usual L2) while the rows pass by
//   CHUNK       steps of the reduction that are multiplied at a time
//   BLOCK_ROWS  rows that one panel of a chunk meets before the next panel
//   LEAST_PANELS  of a task: 1 where packing a single one was timed, and is no slower than packing two
//
// A panel of a chunk meets BLOCK_ROWS rows in one call, which then come from L2, and so does the panel: the narrow tile
// of AVX2 wants 96 bytes of it every 6 cycles. Every chunk's sums are stored and read again: one short enough for the
// panel to stay in L1 (256) was slower on Zen 3, as 512 was beside 768 on Zen 5. A little more than 576 and 768 steps,
// so that those of the adapters still go into the last chunk. Where it was never timed, all panels of a task meet a row
// tile in turn.

#if defined(LOCALSFT_KERNELS_avx512bf16)

enum { STEP = 2, GEMM_ROWS = 8, GEMM_VECTORS = 3, PIECE = 8, CACHED = 832 * 192, CHUNK = 832, BLOCK_ROWS = 128 };
enum { LEAST_PANELS = 2 };
typedef __m512i vu;
LOCALSFT_INLINE vu uload(const uint32_t* p) { return _mm512_loadu_si512(p); }
LOCALSFT_INLINE void ustore(uint32_t* p, vu x) { _mm512_storeu_si512(p, x); }
LOCALSFT_INLINE void ustore_n(uint32_t* p, vu x, int n) { _mm512_mask_storeu_epi32(p, lanes_mask(n), x); }
LOCALSFT_INLINE vu uzero() { return _mm512_setzero_si512(); }
LOCALSFT_INLINE vu ubroadcast(const uint32_t* p) { return _mm512_set1_epi32(int(*p)); }
LOCALSFT_INLINE vf umultiply(vu a, vu b, vf c) { return _mm512_dpbf16_ps(c, (__m512bh)a, (__m512bh)b); }  // a·b + c
// Units of one row from its columns [0, LANES) and [LANES, 2·LANES).
LOCALSFT_INLINE vu uneighbours(vf first, vf second) { return (vu)_mm512_cvtne2ps_pbh(second, first); }
// Units whose first half comes from `even` and whose second half from `odd`, lane by lane.
LOCALSFT_INLINE vu uinterleave(vf even, vf odd) {
  const __m512i order = _mm512_set_epi16(31, 15, 30, 14, 29, 13, 28, 12, 27, 11, 26, 10, 25, 9, 24, 8, 23, 7, 22, 6, 21,
                                         5, 20, 4, 19, 3, 18, 2, 17, 1, 16, 0);
  return _mm512_permutexvar_epi16(order, (__m512i)_mm512_cvtne2ps_pbh(odd, even));
}
// The same from bfloat16 bits in memory; n lanes (columns) are read, n in [0, 2·LANES] and [0, LANES].
LOCALSFT_INLINE vu uneighbours_bf16(const uint16_t* p, int n) {
  return n >= 32 ? _mm512_loadu_si512(p) : _mm512_maskz_loadu_epi16(__mmask32((1ull << n) - 1), p);
}
LOCALSFT_INLINE vu uinterleave_bf16(const uint16_t* even, const uint16_t* odd, int n) {
  const __mmask16 mask = lanes_mask(n);
  const __m512i low = _mm512_cvtepu16_epi32(_mm256_maskz_loadu_epi16(mask, even));
  const __m512i high = _mm512_cvtepu16_epi32(_mm256_maskz_loadu_epi16(mask, odd));
  return _mm512_or_si512(low, _mm512_slli_epi32(high, 16));
}

#else  // a unit is a float

#if defined(LOCALSFT_KERNELS_avx512)
enum { STEP = 1, GEMM_ROWS = 8, GEMM_VECTORS = 3, PIECE = 8, CACHED = 832 * 192, CHUNK = 832, BLOCK_ROWS = 128 };
enum { LEAST_PANELS = 2 };
#elif defined(LOCALSFT_KERNELS_avx2)
enum { STEP = 1, GEMM_ROWS = 4, GEMM_VECTORS = 3, PIECE = 4, CACHED = 1 << 16, CHUNK = 640, BLOCK_ROWS = 128 };
enum { LEAST_PANELS = 1 };
#elif defined(LOCALSFT_KERNELS_neon)
enum { STEP = 1, GEMM_ROWS = 8, GEMM_VECTORS = 3, PIECE = 4, CACHED = 1 << 17, CHUNK = 512, BLOCK_ROWS = 8 };
enum { LEAST_PANELS = 2 };
#else
enum { STEP = 1, GEMM_ROWS = 4, GEMM_VECTORS = 2, PIECE = 4, CACHED = 1 << 17, CHUNK = 512, BLOCK_ROWS = 8 };
enum { LEAST_PANELS = 2 };
#endif
typedef vf vu;
LOCALSFT_INLINE vu uload(const uint32_t* p) { return vload((const float*)p); }
LOCALSFT_INLINE void ustore(uint32_t* p, vu x) { vstore((float*)p, x); }
LOCALSFT_INLINE void ustore_n(uint32_t* p, vu x, int n) { vstore_n((float*)p, x, n); }
LOCALSFT_INLINE vu uzero() { return vzero(); }
LOCALSFT_INLINE vu uneighbours(vf only, vf) { return only; }
LOCALSFT_INLINE vu ubroadcast(const uint32_t* p) { return vset(*(const float*)p); }
#if defined(LOCALSFT_KERNELS_avx2)
// The form that adds into the sum's own register. Left to choose, compilers also overwrite an operand and copy sums
// back every other step; without the copies products are 1.02 to 1.06 times as fast on Emerald Rapids. With the 32
// registers of AVX-512 it makes no difference, and attention's loops are better off with the compiler's choice.
LOCALSFT_INLINE vf umultiply(vu a, vu b, vf c) {
  asm("vfmadd231ps %1, %2, %0" : "+x"(c) : "x"(a), "x"(b));
  return c;
}
#else
LOCALSFT_INLINE vf umultiply(vu a, vu b, vf c) { return vfma(a, b, c); }
#endif

#endif

// Stores PIECE rows of LANES units each, transposed: dst[lane·width + row].
#if defined(LOCALSFT_KERNELS_avx512) || defined(LOCALSFT_KERNELS_avx512bf16)
LOCALSFT_INLINE void store_transposed(const vu rows[PIECE], uint32_t* dst, int64_t width) {
  __m512i pairs[8], quads[8];  // quads[c], quads[4 + c]: rows 0-3, 4-7 of lane 4·l + c in the 128-bit lane l
#pragma GCC unroll 4
  for (int i = 0; i < 8; i += 2) {
    pairs[i] = _mm512_unpacklo_epi32((__m512i)rows[i], (__m512i)rows[i + 1]);
    pairs[i + 1] = _mm512_unpackhi_epi32((__m512i)rows[i], (__m512i)rows[i + 1]);
  }
#pragma GCC unroll 2
  for (int i = 0; i < 8; i += 4) {
    quads[i] = _mm512_unpacklo_epi64(pairs[i], pairs[i + 2]);
    quads[i + 1] = _mm512_unpackhi_epi64(pairs[i], pairs[i + 2]);
    quads[i + 2] = _mm512_unpacklo_epi64(pairs[i + 1], pairs[i + 3]);
    quads[i + 3] = _mm512_unpackhi_epi64(pairs[i + 1], pairs[i + 3]);
  }
  const __m512i low = _mm512_setr_epi64(0, 1, 8, 9, 2, 3, 10, 11), high = _mm512_setr_epi64(4, 5, 12, 13, 6, 7, 14, 15);
#pragma GCC unroll 4
  for (int c = 0; c < 4; ++c) {
    const __m512i a = _mm512_permutex2var_epi64(quads[c], low, quads[4 + c]);   // lanes c and 4 + c
    const __m512i b = _mm512_permutex2var_epi64(quads[c], high, quads[4 + c]);  // lanes 8 + c and 12 + c
    _mm256_storeu_si256((__m256i*)(dst + c * width), _mm512_castsi512_si256(a));
    _mm256_storeu_si256((__m256i*)(dst + (4 + c) * width), _mm512_extracti64x4_epi64(a, 1));
    _mm256_storeu_si256((__m256i*)(dst + (8 + c) * width), _mm512_castsi512_si256(b));
    _mm256_storeu_si256((__m256i*)(dst + (12 + c) * width), _mm512_extracti64x4_epi64(b, 1));
  }
}
#elif defined(LOCALSFT_KERNELS_avx2)
LOCALSFT_INLINE void store_transposed(const vu rows[PIECE], uint32_t* dst, int64_t width) {
  const __m256 a = _mm256_unpacklo_ps(rows[0], rows[1]), b = _mm256_unpackhi_ps(rows[0], rows[1]);
  const __m256 c = _mm256_unpacklo_ps(rows[2], rows[3]), d = _mm256_unpackhi_ps(rows[2], rows[3]);
  // Lane c of the low half and lane 4 + c of the high half, rows 0-3.
  const __m256 quads[4] = {_mm256_shuffle_ps(a, c, 0x44), _mm256_shuffle_ps(a, c, 0xee), _mm256_shuffle_ps(b, d, 0x44),
                           _mm256_shuffle_ps(b, d, 0xee)};
#pragma GCC unroll 4
  for (int i = 0; i < 4; ++i) {
    _mm_storeu_ps((float*)(dst + i * width), _mm256_castps256_ps128(quads[i]));
    _mm_storeu_ps((float*)(dst + (4 + i) * width), _mm256_extractf128_ps(quads[i], 1));
  }
}
#elif defined(LOCALSFT_KERNELS_neon)
LOCALSFT_INLINE void store_transposed(const vu rows[PIECE], uint32_t* dst, int64_t width) {
  const float32x4x2_t a = vtrnq_f32(rows[0], rows[1]), b = vtrnq_f32(rows[2], rows[3]);
  vst1q_f32((float*)dst, vcombine_f32(vget_low_f32(a.val[0]), vget_low_f32(b.val[0])));
  vst1q_f32((float*)(dst + width), vcombine_f32(vget_low_f32(a.val[1]), vget_low_f32(b.val[1])));
  vst1q_f32((float*)(dst + 2 * width), vcombine_f32(vget_high_f32(a.val[0]), vget_high_f32(b.val[0])));
  vst1q_f32((float*)(dst + 3 * width), vcombine_f32(vget_high_f32(a.val[1]), vget_high_f32(b.val[1])));
}
#else
LOCALSFT_INLINE void store_transposed(const vu rows[PIECE], uint32_t* dst, int64_t width) {
  for (int lane = 0; lane < LANES; ++lane)
    for (int row = 0; row < PIECE; ++row) dst[lane * width + row] = float_to_bits(rows[row][lane]);
}
#endif
