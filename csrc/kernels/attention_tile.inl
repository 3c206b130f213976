// The one inner loop of attention: a small tile of products kept in registers.
//
// A *word* is what a reduction advances by: one float, or on a bfloat16 ISA a pair of neighbouring bfloat16. The left
// operand is broadcast word by word, the right operand is read by vectors of LANES words, so both kinds of ISA share
// every loop.

#if defined(LOCALSFT_KERNELS_avx512bf16)
typedef uint32_t word;
enum { WORD = 2 };  // values in a word
typedef __m512bh vwords;
LOCALSFT_INLINE vwords load_words(const word* p) { return (vwords)_mm512_loadu_si512(p); }
LOCALSFT_INLINE vf vdot(vf sum, const word* a, vwords b) {
  return _mm512_dpbf16_ps(sum, (vwords)_mm512_set1_epi32(int(*a)), b);
}
#else
typedef float word;
enum { WORD = 1 };
typedef vf vwords;
LOCALSFT_INLINE vwords load_words(const word* p) { return vload(p); }
LOCALSFT_INLINE vf vdot(vf sum, const word* a, vwords b) { return vfma(vset(*a), b, sum); }
#endif

#if defined(LOCALSFT_KERNELS_avx2) || defined(LOCALSFT_KERNELS_baseline)  // 16 vector registers
enum { TILE_ROWS = 4, PAIR_ROWS = 2, SUM_ROWS = 4, SUM_VECTORS = 3 };
#else  // 32
enum { TILE_ROWS = 8, PAIR_ROWS = 4, SUM_ROWS = 4, SUM_VECTORS = 4 };
#endif
enum { PANEL_VECTORS = 3, PANEL = PANEL_VECTORS * LANES };  // query rows side by side in the lanes

// Unrolled whole, so that an array of vectors indexed by the loop stays in registers.
#if defined(__clang__)
#define LOCALSFT_UNROLL _Pragma("unroll")
#else
#define LOCALSFT_UNROLL _Pragma("GCC unroll 8")
#endif

LOCALSFT_INLINE int64_t round_up(int64_t n, int64_t unit) { return (n + unit - 1) / unit * unit; }
LOCALSFT_INLINE int64_t at_most(int64_t a, int64_t b) { return a < b ? a : b; }
LOCALSFT_INLINE int64_t at_least(int64_t a, int64_t b) { return a > b ? a : b; }

// sums[r][v] += Σ_p a[r·a_row + p·a_step] · b[p·b_step + v·LANES ..], p in [0, P)
template <int R, int NV>
LOCALSFT_INLINE void tile(const word* a, int64_t a_row, int64_t a_step, const word* b, int64_t b_step, int64_t P,
                          vf (&sums)[R][NV]) {
  for (int64_t p = 0; p < P; ++p) {
    vwords right[NV];
    for (int v = 0; v < NV; ++v) right[v] = load_words(b + p * b_step + v * LANES);
    for (int r = 0; r < R; ++r)
      for (int v = 0; v < NV; ++v) sums[r][v] = vdot(sums[r][v], a + r * a_row + p * a_step, right[v]);
  }
}

// Keeps x in a register: compilers for x86 rather read it from memory at each use, and the reads would take longer than
// the multiplications.
LOCALSFT_INLINE void hold(vwords& x) {
#if defined(__x86_64__) && !defined(LOCALSFT_AVX512_EMULATED)
  asm("" : "+v"(x));
#else
  (void)x;
#endif
}

// Two tiles of products; in one loop where a tile alone has too few chains of additions to keep the units busy (two
// units with 4 cycles of latency ask for 8).
template <int R, int NV>
LOCALSFT_INLINE void tile_pair(const word* a, const word* b, const word* other_a, const word* other_b, int64_t a_row,
                               int64_t b_step, int64_t P, vf (&sums)[R][NV], vf (&other)[R][NV]) {
  if (R * NV >= 8) {
    tile<R, NV>(a, a_row, 1, b, b_step, P, sums);
    tile<R, NV>(other_a, a_row, 1, other_b, b_step, P, other);
    return;
  }
  for (int64_t p = 0; p < P; ++p) {
    vwords right[NV];
    for (int v = 0; v < NV; ++v) hold(right[v] = load_words(b + p * b_step + v * LANES));
    for (int r = 0; r < R; ++r)
      for (int v = 0; v < NV; ++v) sums[r][v] = vdot(sums[r][v], a + r * a_row + p, right[v]);
    for (int v = 0; v < NV; ++v) hold(right[v] = load_words(other_b + p * b_step + v * LANES));
    for (int r = 0; r < R; ++r)
      for (int v = 0; v < NV; ++v) other[r][v] = vdot(other[r][v], other_a + r * a_row + p, right[v]);
  }
}

// How a tile meets the sums that live in memory between blocks: c = tile, c + tile, or c·factor[v] + tile.
enum Meeting { SET, ADD, SCALE_ADD };
template <int R, int NV, Meeting MEETING>
LOCALSFT_INLINE void add_tile(const word* a, int64_t a_row, int64_t a_step, const word* b, int64_t b_step, int64_t P,
                              const float* factor, float* c, int64_t c_row) {
  vf sums[R][NV];
  for (int r = 0; r < R; ++r)
    for (int v = 0; v < NV; ++v) {
      sums[r][v] = MEETING == SET ? vzero() : vload(c + r * c_row + v * LANES);
      if (MEETING == SCALE_ADD) sums[r][v] = vmul(sums[r][v], vload(factor + v * LANES));
    }
  tile<R, NV>(a, a_row, a_step, b, b_step, P, sums);
  for (int r = 0; r < R; ++r)
    for (int v = 0; v < NV; ++v) vstore(c + r * c_row + v * LANES, sums[r][v]);
}
