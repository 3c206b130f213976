// The vector type of this ISA and the few operations the kernels are written in. Everything is static inline inside the
// ISA's own namespace, so that no two ISAs can share a symbol.
//
// vf: LANES floats. act_t: how activations are stored (bfloat16 bits where the ISA multiplies bfloat16, else float).
// A partial load fills missing lanes with 0; a partial store leaves memory past n untouched.
#pragma once
#include <stdint.h>
#include <string.h>

#if defined(LOCALSFT_AVX512_EMULATED) && (defined(LOCALSFT_KERNELS_avx512) || defined(LOCALSFT_KERNELS_avx512bf16))
#include "avx512_emulated.h"  // of the tests
#elif defined(LOCALSFT_KERNELS_avx2) || defined(LOCALSFT_KERNELS_avx512) || defined(LOCALSFT_KERNELS_avx512bf16)
#include <immintrin.h>
#elif defined(LOCALSFT_KERNELS_neon)
#include <arm_neon.h>
#endif

#define LOCALSFT_INLINE static inline __attribute__((always_inline, unused))
// Members are always inlined: an object of an ISA has no symbols that another could share.
#define LOCALSFT_MEMBER inline __attribute__((always_inline))

namespace localsft {
namespace kernels {
namespace LOCALSFT_KERNELS {

LOCALSFT_INLINE float bits_to_float(uint32_t bits) {
  float value;
  memcpy(&value, &bits, 4);
  return value;
}
LOCALSFT_INLINE uint32_t float_to_bits(float value) {
  uint32_t bits;
  memcpy(&bits, &value, 4);
  return bits;
}
LOCALSFT_INLINE float bf16_to_float(uint16_t h) { return bits_to_float(uint32_t(h) << 16); }
// Round to nearest even; a NaN stays a (quiet) NaN.
LOCALSFT_INLINE uint16_t float_to_bf16(float value) {
  const uint32_t bits = float_to_bits(value);
  if ((bits & 0x7fffffffu) > 0x7f800000u) return uint16_t((bits >> 16) | 0x40);
  return uint16_t((bits + 0x7fffu + ((bits >> 16) & 1)) >> 16);
}
LOCALSFT_INLINE float f16_to_float(uint16_t h) {
  const uint32_t sign = uint32_t(h & 0x8000) << 16;
  const uint32_t magnitude = h & 0x7fff;
  if (magnitude >= 0x7c00) return bits_to_float(sign | 0x7f800000u | ((magnitude & 0x3ff) << 13));
  // Scale by 2^112 in floating point: exact for normals and denormals alike.
  return bits_to_float(sign | float_to_bits(bits_to_float(magnitude << 13) * bits_to_float(0x77800000u)));
}

#if defined(LOCALSFT_KERNELS_avx512) || defined(LOCALSFT_KERNELS_avx512bf16)

enum { LANES = 16 };
typedef __m512 vf;
LOCALSFT_INLINE __mmask16 lanes_mask(int n) { return __mmask16((1u << n) - 1u); }  // n in [0, 16]
LOCALSFT_INLINE vf vzero() { return _mm512_setzero_ps(); }
LOCALSFT_INLINE vf vset(float x) { return _mm512_set1_ps(x); }
LOCALSFT_INLINE vf vload(const float* p) { return _mm512_loadu_ps(p); }
LOCALSFT_INLINE vf vload_n(const float* p, int n) { return _mm512_maskz_loadu_ps(lanes_mask(n), p); }
LOCALSFT_INLINE void vstore(float* p, vf x) { _mm512_storeu_ps(p, x); }
LOCALSFT_INLINE void vstore_n(float* p, vf x, int n) { _mm512_mask_storeu_ps(p, lanes_mask(n), x); }
LOCALSFT_INLINE vf vadd(vf a, vf b) { return _mm512_add_ps(a, b); }
LOCALSFT_INLINE vf vsub(vf a, vf b) { return _mm512_sub_ps(a, b); }
LOCALSFT_INLINE vf vmul(vf a, vf b) { return _mm512_mul_ps(a, b); }
LOCALSFT_INLINE vf vdiv(vf a, vf b) { return _mm512_div_ps(a, b); }
LOCALSFT_INLINE vf vmax(vf a, vf b) { return _mm512_max_ps(a, b); }
LOCALSFT_INLINE vf vmin(vf a, vf b) { return _mm512_min_ps(a, b); }
LOCALSFT_INLINE vf vfma(vf a, vf b, vf c) { return _mm512_fmadd_ps(a, b, c); }  // a·b + c
LOCALSFT_INLINE vf vselect_less(vf a, vf b, vf x, vf y) {
  return _mm512_mask_blend_ps(_mm512_cmp_ps_mask(a, b, _CMP_LT_OQ), y, x);
}  // a < b ? x : y
LOCALSFT_INLINE vf vsqrt(vf a) { return _mm512_sqrt_ps(a); }
LOCALSFT_INLINE float vsum(vf a) { return _mm512_reduce_add_ps(a); }
// to[i] = vsum(vector i) of LANES vectors in memory: the same additions, for all of them at once.
LOCALSFT_INLINE void vsums(const float* vectors, float* to) {
  vf v[16];
#pragma GCC unroll 16
  for (int i = 0; i < 16; ++i) v[i] = vload(vectors + i * 16);
#pragma GCC unroll 8
  for (int i = 0; i < 8; ++i)  // two vectors' 8 partial sums each: 2i, 2i + 1
    v[i] = vadd(_mm512_shuffle_f32x4(v[2 * i], v[2 * i + 1], 0x44), _mm512_shuffle_f32x4(v[2 * i], v[2 * i + 1], 0xee));
#pragma GCC unroll 4
  for (int i = 0; i < 4; ++i)  // 4 partial sums each, in the 128-bit lanes: 4i ... 4i + 3
    v[i] = vadd(_mm512_shuffle_f32x4(v[2 * i], v[2 * i + 1], 0x88), _mm512_shuffle_f32x4(v[2 * i], v[2 * i + 1], 0xdd));
#pragma GCC unroll 2
  for (int i = 0; i < 2; ++i) {  // lane l: 2 partial sums of 8i + l and of 8i + 4 + l
    const __m512d a = _mm512_castps_pd(v[2 * i]), b = _mm512_castps_pd(v[2 * i + 1]);
    v[i] = vadd(_mm512_castpd_ps(_mm512_unpacklo_pd(a, b)), _mm512_castpd_ps(_mm512_unpackhi_pd(a, b)));
  }
  const vf sums = vadd(_mm512_shuffle_ps(v[0], v[1], 0x88), _mm512_shuffle_ps(v[0], v[1], 0xdd));
  const __m512i order = _mm512_setr_epi32(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15);
  vstore(to, _mm512_permutexvar_ps(order, sums));
}
LOCALSFT_INLINE float vmaximum(vf a) { return _mm512_reduce_max_ps(a); }
LOCALSFT_INLINE vf vround(vf a) { return _mm512_roundscale_ps(a, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC); }
LOCALSFT_INLINE vf vscale2(vf a, vf n) { return _mm512_scalef_ps(a, n); }  // a·2^n, n a whole number
// a·2^n for a normal result and shifted = n + 1.5·2^23, whose low bits are n.
LOCALSFT_INLINE vf vraise(vf a, vf shifted) {
  const __m512i exponent = _mm512_slli_epi32(_mm512_castps_si512(shifted), 23);
  return _mm512_castsi512_ps(_mm512_add_epi32(_mm512_castps_si512(a), exponent));
}
LOCALSFT_INLINE vf vload_bf16(const uint16_t* p) {
  return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(_mm256_loadu_si256((const __m256i*)p)), 16));
}
LOCALSFT_INLINE vf vload_bf16_n(const uint16_t* p, int n) {
  return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(_mm256_maskz_loadu_epi16(lanes_mask(n), p)), 16));
}
LOCALSFT_INLINE vf vload_f16(const uint16_t* p) { return _mm512_cvtph_ps(_mm256_loadu_si256((const __m256i*)p)); }
LOCALSFT_INLINE vf vload_f16_n(const uint16_t* p, int n) {
  return _mm512_cvtph_ps(_mm256_maskz_loadu_epi16(lanes_mask(n), p));
}
LOCALSFT_INLINE __m256i to_bf16_bits(vf x) {
#if defined(LOCALSFT_KERNELS_avx512bf16)
  return (__m256i)_mm512_cvtneps_pbh(x);
#else
  const __m512i bits = _mm512_castps_si512(x);
  const __m512i odd = _mm512_and_si512(_mm512_srli_epi32(bits, 16), _mm512_set1_epi32(1));
  __m512i rounded = _mm512_add_epi32(bits, _mm512_add_epi32(odd, _mm512_set1_epi32(0x7fff)));
  const __mmask16 nan = _mm512_cmp_ps_mask(x, x, _CMP_UNORD_Q);
  rounded = _mm512_mask_mov_epi32(rounded, nan, _mm512_set1_epi32(0x7fc00000));
  return _mm512_cvtepi32_epi16(_mm512_srli_epi32(rounded, 16));
#endif
}
LOCALSFT_INLINE void vstore_bf16(uint16_t* p, vf x) { _mm256_storeu_si256((__m256i*)p, to_bf16_bits(x)); }
LOCALSFT_INLINE void vstore_bf16_n(uint16_t* p, vf x, int n) {
  _mm256_mask_storeu_epi16(p, lanes_mask(n), to_bf16_bits(x));
}

#elif defined(LOCALSFT_KERNELS_avx2)

enum { LANES = 8 };
typedef __m256 vf;
LOCALSFT_INLINE __m256i lanes_mask(int n) {  // n in [0, 8]
  return _mm256_cmpgt_epi32(_mm256_set1_epi32(n), _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7));
}
LOCALSFT_INLINE vf vzero() { return _mm256_setzero_ps(); }
LOCALSFT_INLINE vf vset(float x) { return _mm256_set1_ps(x); }
LOCALSFT_INLINE vf vload(const float* p) { return _mm256_loadu_ps(p); }
LOCALSFT_INLINE void vstore(float* p, vf x) { _mm256_storeu_ps(p, x); }
// Whole vectors apart: a masked store takes a dozen cycles on some processors, whatever the mask.
LOCALSFT_INLINE vf vload_n(const float* p, int n) {
  return n >= LANES ? vload(p) : _mm256_maskload_ps(p, lanes_mask(n));
}
LOCALSFT_INLINE void vstore_n(float* p, vf x, int n) {
  if (n >= LANES)
    vstore(p, x);
  else
    _mm256_maskstore_ps(p, lanes_mask(n), x);
}
LOCALSFT_INLINE vf vadd(vf a, vf b) { return _mm256_add_ps(a, b); }
LOCALSFT_INLINE vf vsub(vf a, vf b) { return _mm256_sub_ps(a, b); }
LOCALSFT_INLINE vf vmul(vf a, vf b) { return _mm256_mul_ps(a, b); }
LOCALSFT_INLINE vf vdiv(vf a, vf b) { return _mm256_div_ps(a, b); }
LOCALSFT_INLINE vf vmax(vf a, vf b) { return _mm256_max_ps(a, b); }
LOCALSFT_INLINE vf vmin(vf a, vf b) { return _mm256_min_ps(a, b); }
LOCALSFT_INLINE vf vfma(vf a, vf b, vf c) { return _mm256_fmadd_ps(a, b, c); }
LOCALSFT_INLINE vf vselect_less(vf a, vf b, vf x, vf y) {
  return _mm256_blendv_ps(y, x, _mm256_cmp_ps(a, b, _CMP_LT_OQ));
}
LOCALSFT_INLINE vf vsqrt(vf a) { return _mm256_sqrt_ps(a); }
LOCALSFT_INLINE float vsum(vf a) {
  __m128 x = _mm_add_ps(_mm256_castps256_ps128(a), _mm256_extractf128_ps(a, 1));
  x = _mm_add_ps(x, _mm_movehl_ps(x, x));
  return _mm_cvtss_f32(_mm_add_ss(x, _mm_shuffle_ps(x, x, 1)));
}
// to[i] = vsum(vector i) of LANES vectors in memory: the same additions, for all of them at once.
LOCALSFT_INLINE void vsums(const float* vectors, float* to) {
  vf v[8];
#pragma GCC unroll 8
  for (int i = 0; i < 8; ++i) v[i] = vload(vectors + i * 8);
#pragma GCC unroll 4
  for (int i = 0; i < 4; ++i)  // 4 partial sums of vector i and of vector 4 + i
    v[i] = vadd(_mm256_permute2f128_ps(v[i], v[4 + i], 0x20), _mm256_permute2f128_ps(v[i], v[4 + i], 0x31));
#pragma GCC unroll 2
  for (int i = 0; i < 4; i += 2) {  // 2 partial sums each of i, i + 1, 4 + i, 5 + i
    const __m256d a = _mm256_castps_pd(v[i]), b = _mm256_castps_pd(v[i + 1]);
    v[i] = vadd(_mm256_castpd_ps(_mm256_unpacklo_pd(a, b)), _mm256_castpd_ps(_mm256_unpackhi_pd(a, b)));
  }
  vstore(to, vadd(_mm256_shuffle_ps(v[0], v[2], 0x88), _mm256_shuffle_ps(v[0], v[2], 0xdd)));
}
LOCALSFT_INLINE float vmaximum(vf a) {
  __m128 x = _mm_max_ps(_mm256_castps256_ps128(a), _mm256_extractf128_ps(a, 1));
  x = _mm_max_ps(x, _mm_movehl_ps(x, x));
  return _mm_cvtss_f32(_mm_max_ss(x, _mm_shuffle_ps(x, x, 1)));
}
LOCALSFT_INLINE vf vround(vf a) { return _mm256_round_ps(a, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC); }
LOCALSFT_INLINE vf vscale2(vf a, vf n) {  // n in [-126, 127]
  const __m256i exponent = _mm256_slli_epi32(_mm256_add_epi32(_mm256_cvtps_epi32(n), _mm256_set1_epi32(127)), 23);
  return _mm256_mul_ps(a, _mm256_castsi256_ps(exponent));
}
LOCALSFT_INLINE vf vraise(vf a, vf shifted) {
  const __m256i exponent = _mm256_slli_epi32(_mm256_castps_si256(shifted), 23);
  return _mm256_castsi256_ps(_mm256_add_epi32(_mm256_castps_si256(a), exponent));
}
LOCALSFT_INLINE vf vload_bf16(const uint16_t* p) {
  return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(_mm_loadu_si128((const __m128i*)p)), 16));
}
LOCALSFT_INLINE vf vload_f16(const uint16_t* p) { return _mm256_cvtph_ps(_mm_loadu_si128((const __m128i*)p)); }
LOCALSFT_INLINE void vstore_bf16(uint16_t* p, vf x) {
  const __m256i bits = _mm256_castps_si256(x);
  const __m256i odd = _mm256_and_si256(_mm256_srli_epi32(bits, 16), _mm256_set1_epi32(1));
  __m256i rounded = _mm256_add_epi32(bits, _mm256_add_epi32(odd, _mm256_set1_epi32(0x7fff)));
  const __m256 nan = _mm256_cmp_ps(x, x, _CMP_UNORD_Q);
  rounded = _mm256_blendv_epi8(rounded, _mm256_set1_epi32(0x7fc00000), _mm256_castps_si256(nan));
  rounded = _mm256_srli_epi32(rounded, 16);
  const __m128i packed = _mm_packus_epi32(_mm256_castsi256_si128(rounded), _mm256_extracti128_si256(rounded, 1));
  _mm_storeu_si128((__m128i*)p, packed);
}

#elif defined(LOCALSFT_KERNELS_neon)

enum { LANES = 4 };
typedef float32x4_t vf;
LOCALSFT_INLINE vf vzero() { return vdupq_n_f32(0); }
LOCALSFT_INLINE vf vset(float x) { return vdupq_n_f32(x); }
LOCALSFT_INLINE vf vload(const float* p) { return vld1q_f32(p); }
LOCALSFT_INLINE void vstore(float* p, vf x) { vst1q_f32(p, x); }
LOCALSFT_INLINE vf vadd(vf a, vf b) { return vaddq_f32(a, b); }
LOCALSFT_INLINE vf vsub(vf a, vf b) { return vsubq_f32(a, b); }
LOCALSFT_INLINE vf vmul(vf a, vf b) { return vmulq_f32(a, b); }
LOCALSFT_INLINE vf vdiv(vf a, vf b) { return vdivq_f32(a, b); }
LOCALSFT_INLINE vf vmax(vf a, vf b) { return vmaxq_f32(a, b); }
LOCALSFT_INLINE vf vmin(vf a, vf b) { return vminq_f32(a, b); }
LOCALSFT_INLINE vf vfma(vf a, vf b, vf c) { return vfmaq_f32(c, a, b); }
LOCALSFT_INLINE vf vselect_less(vf a, vf b, vf x, vf y) { return vbslq_f32(vcltq_f32(a, b), x, y); }
LOCALSFT_INLINE vf vsqrt(vf a) { return vsqrtq_f32(a); }
LOCALSFT_INLINE float vsum(vf a) { return vaddvq_f32(a); }
LOCALSFT_INLINE float vmaximum(vf a) { return vmaxvq_f32(a); }
LOCALSFT_INLINE vf vround(vf a) { return vrndnq_f32(a); }
LOCALSFT_INLINE vf vscale2(vf a, vf n) {  // n in [-126, 127]
  const int32x4_t exponent = vshlq_n_s32(vaddq_s32(vcvtq_s32_f32(n), vdupq_n_s32(127)), 23);
  return vmulq_f32(a, vreinterpretq_f32_s32(exponent));
}
LOCALSFT_INLINE vf vraise(vf a, vf shifted) {
  const int32x4_t exponent = vshlq_n_s32(vreinterpretq_s32_f32(shifted), 23);
  return vreinterpretq_f32_s32(vaddq_s32(vreinterpretq_s32_f32(a), exponent));
}
LOCALSFT_INLINE vf vload_bf16(const uint16_t* p) { return vreinterpretq_f32_u32(vshll_n_u16(vld1_u16(p), 16)); }
LOCALSFT_INLINE vf vload_f16(const uint16_t* p) { return vcvt_f32_f16(vreinterpret_f16_u16(vld1_u16(p))); }
LOCALSFT_INLINE void vstore_bf16(uint16_t* p, vf x) {
  for (int i = 0; i < 4; ++i) p[i] = float_to_bf16(x[i]);
}

#else  // baseline: the compiler's portable vectors (SSE2 on x86-64), multiplications and additions rounded apart

enum { LANES = 4 };
typedef float vf __attribute__((vector_size(16)));
typedef int32_t vi __attribute__((vector_size(16)));
LOCALSFT_INLINE vf vset(float x) { return vf{x, x, x, x}; }
LOCALSFT_INLINE vf vzero() { return vset(0.0f); }
LOCALSFT_INLINE vf vload(const float* p) {
  vf x;
  memcpy(&x, p, sizeof x);
  return x;
}
LOCALSFT_INLINE void vstore(float* p, vf x) { memcpy(p, &x, sizeof x); }
LOCALSFT_INLINE vf vadd(vf a, vf b) { return a + b; }
LOCALSFT_INLINE vf vsub(vf a, vf b) { return a - b; }
LOCALSFT_INLINE vf vmul(vf a, vf b) { return a * b; }
LOCALSFT_INLINE vf vdiv(vf a, vf b) { return a / b; }
LOCALSFT_INLINE vf vselect(vi mask, vf a, vf b) { return (vf)(((vi)a & mask) | ((vi)b & ~mask)); }
LOCALSFT_INLINE vf vmax(vf a, vf b) { return vselect(a > b, a, b); }
LOCALSFT_INLINE vf vmin(vf a, vf b) { return vselect(a < b, a, b); }
LOCALSFT_INLINE vf vfma(vf a, vf b, vf c) { return a * b + c; }
LOCALSFT_INLINE vf vselect_less(vf a, vf b, vf x, vf y) { return vselect(a < b, x, y); }
LOCALSFT_INLINE vf vsqrt(vf a) {
  vf x;
  for (int i = 0; i < 4; ++i) x[i] = __builtin_sqrtf(a[i]);
  return x;
}
LOCALSFT_INLINE float vsum(vf a) { return (a[0] + a[2]) + (a[1] + a[3]); }
LOCALSFT_INLINE float vmaximum(vf a) {
  const float x = a[0] > a[1] ? a[0] : a[1], y = a[2] > a[3] ? a[2] : a[3];
  return x > y ? x : y;
}
LOCALSFT_INLINE vf vround(vf a) {  // |a| < 2^22: adding 1.5·2^23 leaves no room for a fraction
  const vf magic = vset(12582912.0f);
  return (a + magic) - magic;
}
LOCALSFT_INLINE vf vscale2(vf a, vf n) {  // n in [-126, 127]
  vi exponent;
  for (int i = 0; i < 4; ++i) exponent[i] = (int32_t(n[i]) + 127) << 23;
  return a * (vf)exponent;
}
LOCALSFT_INLINE vf vraise(vf a, vf shifted) { return (vf)((vi)a + ((vi)shifted << 23)); }
LOCALSFT_INLINE vf vload_bf16(const uint16_t* p) {
  return vf{bf16_to_float(p[0]), bf16_to_float(p[1]), bf16_to_float(p[2]), bf16_to_float(p[3])};
}
LOCALSFT_INLINE vf vload_f16(const uint16_t* p) {
  return vf{f16_to_float(p[0]), f16_to_float(p[1]), f16_to_float(p[2]), f16_to_float(p[3])};
}
LOCALSFT_INLINE void vstore_bf16(uint16_t* p, vf x) {
  for (int i = 0; i < 4; ++i) p[i] = float_to_bf16(x[i]);
}

#endif

// Partial loads and stores where the ISA has no masks for them; of whole vectors as such.
#if defined(LOCALSFT_KERNELS_neon) || defined(LOCALSFT_KERNELS_baseline)
LOCALSFT_INLINE vf vload_n(const float* p, int n) {
  if (n >= LANES) return vload(p);
  float lanes[LANES] = {0};
  memcpy(lanes, p, size_t(n) * 4);
  return vload(lanes);
}
LOCALSFT_INLINE void vstore_n(float* p, vf x, int n) {
  if (n >= LANES) return vstore(p, x);
  float lanes[LANES];
  vstore(lanes, x);
  memcpy(p, lanes, size_t(n) * 4);
}
#endif
#if defined(LOCALSFT_KERNELS_neon) || defined(LOCALSFT_KERNELS_baseline)
// to[i] = vsum(vector i) of LANES vectors in memory.
LOCALSFT_INLINE void vsums(const float* vectors, float* to) {
  for (int i = 0; i < LANES; ++i) to[i] = vsum(vload(vectors + i * LANES));
}
#endif
#if !defined(LOCALSFT_KERNELS_avx512) && !defined(LOCALSFT_KERNELS_avx512bf16)
LOCALSFT_INLINE vf vload_bf16_n(const uint16_t* p, int n) {
  if (n >= LANES) return vload_bf16(p);
  uint16_t lanes[LANES] = {0};
  memcpy(lanes, p, size_t(n) * 2);
  return vload_bf16(lanes);
}
LOCALSFT_INLINE vf vload_f16_n(const uint16_t* p, int n) {
  if (n >= LANES) return vload_f16(p);
  uint16_t lanes[LANES] = {0};
  memcpy(lanes, p, size_t(n) * 2);
  return vload_f16(lanes);
}
LOCALSFT_INLINE void vstore_bf16_n(uint16_t* p, vf x, int n) {
  if (n >= LANES) return vstore_bf16(p, x);
  uint16_t lanes[LANES];
  vstore_bf16(lanes, x);
  memcpy(p, lanes, size_t(n) * 2);
}
#endif

#if defined(LOCALSFT_KERNELS_avx512bf16)
typedef uint16_t act_t;
enum { ACT_BF16 = 1 };
LOCALSFT_INLINE float act_to_float(act_t a) { return bf16_to_float(a); }
LOCALSFT_INLINE act_t float_to_act(float x) { return float_to_bf16(x); }
LOCALSFT_INLINE vf vload_act(const act_t* p) { return vload_bf16(p); }
LOCALSFT_INLINE vf vload_act_n(const act_t* p, int n) { return vload_bf16_n(p, n); }
LOCALSFT_INLINE void vstore_act(act_t* p, vf x) { vstore_bf16(p, x); }
LOCALSFT_INLINE void vstore_act_n(act_t* p, vf x, int n) { vstore_bf16_n(p, x, n); }
#else
typedef float act_t;
enum { ACT_BF16 = 0 };
LOCALSFT_INLINE float act_to_float(act_t a) { return a; }
LOCALSFT_INLINE act_t float_to_act(float x) { return x; }
LOCALSFT_INLINE vf vload_act(const act_t* p) { return vload(p); }
LOCALSFT_INLINE vf vload_act_n(const act_t* p, int n) { return vload_n(p, n); }
LOCALSFT_INLINE void vstore_act(act_t* p, vf x) { vstore(p, x); }
LOCALSFT_INLINE void vstore_act_n(act_t* p, vf x, int n) { vstore_n(p, x, n); }
#endif

// Loads and stores that take the stored type from the pointer: floats, or bfloat16 bits.
LOCALSFT_INLINE vf vget_n(const float* p, int n) { return vload_n(p, n); }
LOCALSFT_INLINE vf vget_n(const uint16_t* p, int n) { return vload_bf16_n(p, n); }
LOCALSFT_INLINE void vput(float* p, vf x) { vstore(p, x); }
LOCALSFT_INLINE void vput(uint16_t* p, vf x) { vstore_bf16(p, x); }
LOCALSFT_INLINE void vput_n(float* p, vf x, int n) { vstore_n(p, x, n); }
LOCALSFT_INLINE void vput_n(uint16_t* p, vf x, int n) { vstore_bf16_n(p, x, n); }

// e^x to about 2 ulp. Cephes' expf: x = n·ln2 + r, |r| <= ln2/2, then a degree-6 polynomial. Below -87.3 the result is
// the smallest normal or less, which every user here (softmax, sigmoid) treats as 0; above 88 it is clamped, not
// infinite. A NaN stays a NaN: vmax and vmin return their second argument then.
LOCALSFT_INLINE vf vexp(vf x) {
  x = vmin(vset(88.0f), vmax(vset(-87.0f), x));
  const vf n = vround(vmul(x, vset(1.44269504088896341f)));
  vf r = vfma(n, vset(-0.693359375f), x);
  r = vfma(n, vset(2.12194440e-4f), r);
  vf p = vset(1.9875691500e-4f);
  p = vfma(p, r, vset(1.3981999507e-3f));
  p = vfma(p, r, vset(8.3334519073e-3f));
  p = vfma(p, r, vset(4.1665795894e-2f));
  p = vfma(p, r, vset(1.6666665459e-1f));
  p = vfma(p, r, vset(5.0000001201e-1f));
  return vscale2(vadd(vfma(vmul(p, r), r, r), vset(1.0f)), n);
}

// Brings the cache lines of `bytes` bytes at p nearer; they need not exist.
LOCALSFT_INLINE void prefetch(const void* p, int64_t bytes) {
  const uintptr_t stop = (uintptr_t)p + uintptr_t(bytes);
  for (uintptr_t at = (uintptr_t)p / 64 * 64; at < stop; at += 64) __builtin_prefetch((const void*)at);
}
// The same for lines that will be written, which other threads may have.
LOCALSFT_INLINE void prefetch_to_write(void* p, int64_t bytes) {
  const uintptr_t stop = (uintptr_t)p + uintptr_t(bytes);
  for (uintptr_t at = (uintptr_t)p / 64 * 64; at < stop; at += 64)
#if defined(__x86_64__) && !defined(LOCALSFT_KERNELS_baseline)
    asm volatile("prefetchw %0" : : "m"(*(const char*)at));  // the builtin's is another, unless the target names it
#else
    __builtin_prefetch((const void*)at, 1);
#endif
}

}  // namespace LOCALSFT_KERNELS
}  // namespace kernels
}  // namespace localsft
