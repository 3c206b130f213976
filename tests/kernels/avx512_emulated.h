// AVX-512 on processors without it, for tests: SIMDe's intrinsics under their own names, and here what SIMDe 0.7 lacks
// or hands on to the compiler's own. Nothing but the kernels of the build option LOCALSFT_EMULATE_AVX512 includes this.
#pragma once
#include <math.h>
#include <stdint.h>
#include <string.h>
#define SIMDE_ENABLE_NATIVE_ALIASES
#include <simde/x86/avx512.h>
#include <simde/x86/f16c.h>
#include <simde/x86/fma.h>

namespace emulated {

#define LOCALSFT_EMULATED_INLINE static inline __attribute__((always_inline, unused))

template <typename To, typename From>
LOCALSFT_EMULATED_INLINE To as(const From& from) {
  static_assert(sizeof(To) == sizeof(From), "the same bits, another type");
  To to;
  memcpy(&to, &from, sizeof to);
  return to;
}

// A masked load reads no lane that its mask leaves out, and makes it 0; a masked store leaves such a lane's memory
// alone.
template <typename Vector, typename Lane>
LOCALSFT_EMULATED_INLINE Vector load(uint32_t mask, const void* from) {
  Lane lanes[sizeof(Vector) / sizeof(Lane)] = {0};
  for (unsigned i = 0; i < sizeof(Vector) / sizeof(Lane); ++i)
    if (mask >> i & 1) memcpy(lanes + i, static_cast<const Lane*>(from) + i, sizeof(Lane));
  return as<Vector>(lanes);
}
template <typename Lane, typename Vector>
LOCALSFT_EMULATED_INLINE void store(void* to, uint32_t mask, Vector vector) {
  Lane lanes[sizeof(Vector) / sizeof(Lane)];
  memcpy(lanes, &vector, sizeof vector);
  for (unsigned i = 0; i < sizeof(Vector) / sizeof(Lane); ++i)
    if (mask >> i & 1) memcpy(static_cast<Lane*>(to) + i, lanes + i, sizeof(Lane));
}

// Sixteen lanes of one type, each made one of another by `function`.
template <typename To, typename From, typename ToVector, typename FromVector, typename Function>
LOCALSFT_EMULATED_INLINE ToVector lanes(FromVector vector, Function function) {
  From from[16];
  To to[16];
  memcpy(from, &vector, sizeof from);
  for (int i = 0; i < 16; ++i) to[i] = function(from[i]);
  return as<ToVector>(to);
}
template <typename To, typename From, typename ToVector, typename FromVector>
LOCALSFT_EMULATED_INLINE ToVector convert(FromVector vector) {
  return lanes<To, From, ToVector>(vector, [](From value) { return To(value); });
}

LOCALSFT_EMULATED_INLINE __m512 from_f16(__m256i halves) {
  const __m256 floats[2] = {_mm256_cvtph_ps(_mm256_castsi256_si128(halves)),
                            _mm256_cvtph_ps(_mm256_extracti128_si256(halves, 1))};
  return as<__m512>(floats);
}

// VCVTNE2PS2BF16 and VCVTNEPS2BF16 (Intel's manual, volume 2): to nearest even, a NaN quiet, a denormal 0.
LOCALSFT_EMULATED_INLINE uint16_t bf16_bits(float value) {
  const uint32_t bits = as<uint32_t>(value);
  if ((bits & 0x7fffffffu) > 0x7f800000u) return uint16_t((bits >> 16) | 0x40);
  if ((bits & 0x7f800000u) == 0) return uint16_t((bits >> 16) & 0x8000);
  return uint16_t((bits + 0x7fffu + ((bits >> 16) & 1)) >> 16);
}
LOCALSFT_EMULATED_INLINE __m256bh to_bf16(__m512 vector) { return lanes<uint16_t, float, __m256bh>(vector, bf16_bits); }
LOCALSFT_EMULATED_INLINE __m512bh to_bf16(__m512 high, __m512 low) {
  const __m256bh halves[2] = {to_bf16(low), to_bf16(high)};
  return as<__m512bh>(halves);
}

// Lane i with lane i + 8, then + 4, + 2, + 1: the compilers' order.
template <typename Function>
LOCALSFT_EMULATED_INLINE float reduce(__m512 vector, Function function) {
  float v[16];
  memcpy(v, &vector, sizeof v);
  for (int n = 8; n; n /= 2)
    for (int i = 0; i < n; ++i) v[i] = function(v[i], v[i + n]);
  return v[0];
}
LOCALSFT_EMULATED_INLINE float sum(__m512 vector) {
  return reduce(vector, [](float a, float b) { return a + b; });
}
LOCALSFT_EMULATED_INLINE float maximum(__m512 vector) {
  return reduce(vector, [](float a, float b) { return a > b ? a : b; });
}

LOCALSFT_EMULATED_INLINE __m512 shuffle(__m512 a, __m512 b, int order) {
  __m128 from[2][4], to[4];
  memcpy(from[0], &a, sizeof a), memcpy(from[1], &b, sizeof b);
  for (int i = 0; i < 4; ++i) to[i] = from[i / 2][order >> 2 * i & 3];
  return as<__m512>(to);
}

// Of positive normal numbers, which are all that the kernels ask for: the exponent, and the mantissa in [0.75, 1.5).
LOCALSFT_EMULATED_INLINE __m512 exponent(__m512 vector) { return lanes<float, float, __m512>(vector, logbf); }
LOCALSFT_EMULATED_INLINE __m512 mantissa(__m512 vector) {
  return lanes<uint32_t, uint32_t, __m512>(
      vector, [](uint32_t bits) { return (bits & 0x7fffffu) | (bits & 0x400000u ? 0x3f000000u : 0x3f800000u); });
}

}  // namespace emulated

#undef _mm_maskz_loadu_epi8
#undef _mm256_maskz_loadu_epi16
#undef _mm512_maskz_loadu_epi16
#undef _mm512_maskz_loadu_ps
#undef _mm256_mask_storeu_epi16
#undef _mm512_mask_storeu_epi32
#undef _mm512_mask_storeu_ps
#define _mm_maskz_loadu_epi8(mask, from) emulated::load<__m128i, uint8_t>(mask, from)
#define _mm256_maskz_loadu_epi16(mask, from) emulated::load<__m256i, uint16_t>(mask, from)
#define _mm512_maskz_loadu_epi16(mask, from) emulated::load<__m512i, uint16_t>(mask, from)
#define _mm512_maskz_loadu_ps(mask, from) emulated::load<__m512, float>(mask, from)
#define _mm256_mask_storeu_epi16(to, mask, vector) emulated::store<uint16_t>(to, mask, vector)
#define _mm512_mask_storeu_epi32(to, mask, vector) emulated::store<uint32_t>(to, mask, vector)
#define _mm512_mask_storeu_ps(to, mask, vector) emulated::store<float>(to, mask, vector)

#undef _mm512_cvtepi32_ps
#undef _mm512_cvtepu16_epi32
#undef _mm512_cvtepu8_epi32
#undef _mm512_cvtepi32_epi16
#undef _mm512_cvtph_ps
#undef _mm512_cvtneps_pbh
#undef _mm512_cvtne2ps_pbh
#define _mm512_cvtepi32_ps(vector) emulated::convert<float, int32_t, __m512>(vector)
#define _mm512_cvtepu16_epi32(vector) emulated::convert<uint32_t, uint16_t, __m512i>(vector)
#define _mm512_cvtepu8_epi32(vector) emulated::convert<uint32_t, uint8_t, __m512i>(vector)
#define _mm512_cvtepi32_epi16(vector) emulated::convert<uint16_t, uint32_t, __m256i>(vector)
#define _mm512_cvtph_ps(halves) emulated::from_f16(halves)
#define _mm512_cvtneps_pbh(vector) emulated::to_bf16(vector)
#define _mm512_cvtne2ps_pbh(high, low) emulated::to_bf16(high, low)

#undef _mm512_reduce_add_ps
#undef _mm512_reduce_max_ps
#undef _mm512_shuffle_f32x4
#undef _mm512_getexp_ps
#undef _mm512_getmant_ps
#define _mm512_reduce_add_ps(vector) emulated::sum(vector)
#define _mm512_reduce_max_ps(vector) emulated::maximum(vector)
#define _mm512_shuffle_f32x4(a, b, order) emulated::shuffle(a, b, order)
#define _mm512_getexp_ps(vector) emulated::exponent(vector)
#define _mm512_getmant_ps(vector, interval, sign) emulated::mantissa(vector)
