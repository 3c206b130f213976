// x[i] lane j -> x[j] lane i: LANES vectors as a square of 32-bit elements.

#if defined(LOCALSFT_KERNELS_avx512) || defined(LOCALSFT_KERNELS_avx512bf16)

LOCALSFT_INLINE void transpose(vf (&x)[LANES]) {
  vf pairs[LANES], quads[LANES];
  for (int i = 0; i < 8; ++i) {
    pairs[2 * i] = _mm512_unpacklo_ps(x[2 * i], x[2 * i + 1]);
    pairs[2 * i + 1] = _mm512_unpackhi_ps(x[2 * i], x[2 * i + 1]);
  }
  for (int i = 0; i < 16; i += 4)  // quads[i + j]: in its part l of four lanes, rows i..i+3 of column 4l + j
    for (int half = 0; half < 2; ++half) {
      const __m512d a = _mm512_castps_pd(pairs[i + half]), b = _mm512_castps_pd(pairs[i + 2 + half]);
      quads[i + 2 * half] = _mm512_castpd_ps(_mm512_unpacklo_pd(a, b));
      quads[i + 2 * half + 1] = _mm512_castpd_ps(_mm512_unpackhi_pd(a, b));
    }
  for (int j = 0; j < 4; ++j) {
    const vf even_low = _mm512_shuffle_f32x4(quads[j], quads[4 + j], 0x88);
    const vf even_high = _mm512_shuffle_f32x4(quads[8 + j], quads[12 + j], 0x88);
    const vf odd_low = _mm512_shuffle_f32x4(quads[j], quads[4 + j], 0xdd);
    const vf odd_high = _mm512_shuffle_f32x4(quads[8 + j], quads[12 + j], 0xdd);
    x[j] = _mm512_shuffle_f32x4(even_low, even_high, 0x88);
    x[4 + j] = _mm512_shuffle_f32x4(odd_low, odd_high, 0x88);
    x[8 + j] = _mm512_shuffle_f32x4(even_low, even_high, 0xdd);
    x[12 + j] = _mm512_shuffle_f32x4(odd_low, odd_high, 0xdd);
  }
}

#elif defined(LOCALSFT_KERNELS_avx2)

LOCALSFT_INLINE void transpose(vf (&x)[LANES]) {
  vf quads[LANES];
  for (int i = 0; i < 8; i += 4) {  // quads[i + j]: in its half l, rows i..i+3 of column 4l + j
    const vf low0 = _mm256_unpacklo_ps(x[i], x[i + 1]), high0 = _mm256_unpackhi_ps(x[i], x[i + 1]);
    const vf low1 = _mm256_unpacklo_ps(x[i + 2], x[i + 3]), high1 = _mm256_unpackhi_ps(x[i + 2], x[i + 3]);
    quads[i] = _mm256_shuffle_ps(low0, low1, 0x44);
    quads[i + 1] = _mm256_shuffle_ps(low0, low1, 0xee);
    quads[i + 2] = _mm256_shuffle_ps(high0, high1, 0x44);
    quads[i + 3] = _mm256_shuffle_ps(high0, high1, 0xee);
  }
  for (int j = 0; j < 4; ++j) {
    x[j] = _mm256_permute2f128_ps(quads[j], quads[4 + j], 0x20);
    x[4 + j] = _mm256_permute2f128_ps(quads[j], quads[4 + j], 0x31);
  }
}

#else

LOCALSFT_INLINE void transpose(vf (&x)[LANES]) {
  float square[LANES][LANES], turned[LANES][LANES];
  for (int i = 0; i < LANES; ++i) vstore(square[i], x[i]);
  for (int i = 0; i < LANES; ++i)
    for (int j = 0; j < LANES; ++j) turned[j][i] = square[i][j];
  for (int i = 0; i < LANES; ++i) x[i] = vload(turned[i]);
}

#endif
