// From products to probabilities, and the limits of what a row sees.

// 2^x, x at most a little above 0; a NaN stays a NaN. Relative error 3e-6 where the result is stored as bfloat16 (whose
// own rounding is 4e-3), else 1e-7. Far below 0 the result is the smallest normal.
LOCALSFT_INLINE vf vexp2(vf x) {
  x = vmax(vset(-126.0f), x);
  // Adding 1.5·2^23 rounds to a whole number n and leaves it in the low bits, where a shift makes an exponent of it:
  // cheaper than the instructions that round and scale, and on other ports than the polynomial.
  const vf magic = vset(12582912.0f);
  const vf shifted = vadd(x, magic);
  const vf r = vsub(x, vsub(shifted, magic));
#if defined(LOCALSFT_KERNELS_avx512bf16)
  vf p = vset(9.5828531689e-3f);
  p = vfma(p, r, vset(5.5906425036e-2f));
  p = vfma(p, r, vset(2.4024098611e-1f));
  p = vfma(p, r, vset(6.9312419337e-1f));
#else
  vf p = vset(1.3264727247e-3f);
  p = vfma(p, r, vset(9.6715126882e-3f));
  p = vfma(p, r, vset(5.5507337436e-2f));
  p = vfma(p, r, vset(2.4022242085e-1f));
  p = vfma(p, r, vset(6.9314697760e-1f));
#endif
  return vraise(vfma(p, r, vset(1.0f)), shifted);
}

// log x for x normal and > 0; a NaN stays a NaN. Relative error 2e-7 (Cephes' logf).
#if defined(LOCALSFT_KERNELS_avx512) || defined(LOCALSFT_KERNELS_avx512bf16)
LOCALSFT_INLINE vf vlog(vf x) {
  const vf mantissa = _mm512_getmant_ps(x, _MM_MANT_NORM_p75_1p5, _MM_MANT_SIGN_zero);
  const vf exponent = _mm512_getexp_ps(vdiv(x, mantissa));
  const vf r = vsub(mantissa, vset(1.0f)), square = vmul(r, r);
  vf p = vset(7.0376836292e-2f);
  p = vfma(p, r, vset(-1.1514610310e-1f));
  p = vfma(p, r, vset(1.1676998740e-1f));
  p = vfma(p, r, vset(-1.2420140846e-1f));
  p = vfma(p, r, vset(1.4249322787e-1f));
  p = vfma(p, r, vset(-1.6668057665e-1f));
  p = vfma(p, r, vset(2.0000714765e-1f));
  p = vfma(p, r, vset(-2.4999993993e-1f));
  p = vfma(p, r, vset(3.3333331174e-1f));
  p = vfma(vmul(p, r), square, vfma(vset(-0.5f), square, vmul(exponent, vset(-2.12194440e-4f))));
  return vfma(exponent, vset(0.693359375f), vadd(r, p));
}
#else
LOCALSFT_INLINE vf vlog(vf x) {
  float lanes[LANES];
  vstore(lanes, x);
  for (int i = 0; i < LANES; ++i) lanes[i] = __builtin_logf(lanes[i]);
  return vload(lanes);
}
#endif

LOCALSFT_INLINE vf vtanh(vf x) { return vsub(vset(1.0f), vdiv(vset(2.0f), vadd(vset(1.0f), vexp(vadd(x, x))))); }

static const float LOG2_E = 1.44269504088896341f, LN_2 = 0.69314718055994531f;
static const float NEVER = -1e30f;  // below any score, yet finite: NEVER - NEVER is 0, not NaN
static const float MINUS_INFINITY = -__builtin_inff();

// The score of a product q·k, in one unit for forward and backward: score·unit is the score of the model in units of
// log2. Without a soft cap the score is the product itself, with one it is tanh(inner·product).
struct ScoreRule {
  bool capped;
  vf inner;    // scale / softcap
  float unit;  // scale·log2(e), or softcap·log2(e); > 0
  LOCALSFT_MEMBER explicit ScoreRule(const AttentionShape& s) {
    capped = s.softcap > 0;
    inner = capped ? vset(s.scale / s.softcap) : vzero();
    unit = (capped ? s.softcap : s.scale) * LOG2_E;
  }
};
LOCALSFT_INLINE vf score(const ScoreRule& rule, vf product) {
  return rule.capped ? vtanh(vmul(rule.inner, product)) : product;
}
// d(model's score) / d(scale·product) where capped: 1 - tanh².
LOCALSFT_INLINE vf score_slope(vf score) { return vsub(vset(1.0f), vmul(score, score)); }

// What the rows of a chunk see: row r the positions [low[r], high[r]) of its path. Rows past the end repeat the last
// one.
static void visible_range(const AttentionShape& s, const AttentionChunk& chunk, int64_t n_padded, float* low,
                          float* high) {
  const int64_t group = s.heads / s.kv_heads;
  for (int64_t row = 0; row < n_padded; ++row) {
    const int64_t r = at_most(chunk.begin + row, chunk.end - 1);
    const int64_t position = chunk.q_rows[r / group] - chunk.shift;
    high[row] = float(position + 1);
    low[row] = s.window > 0 ? float(position + 1 - s.window) : 0.0f;
  }
}

// The keys of a block that a panel sees: [begin, end) some row sees, [all_begin, all_end) every row sees.
struct KeyRange {
  int64_t begin, end, all_begin, all_end;
};
LOCALSFT_INLINE KeyRange key_range(const AttentionKeys& keys, const float* low, const float* high) {
  KeyRange range;  // rows are in rising order of position
  range.begin = at_least(0, int64_t(low[0]) - keys.position);
  range.end = at_most(keys.count, int64_t(high[PANEL - 1]) - keys.position);
  range.all_begin = at_least(0, int64_t(low[PANEL - 1]) - keys.position);
  range.all_end = at_most(keys.count, int64_t(high[0]) - keys.position);
  return range;
}

// x where the key at `position` lies in the row's [low, high), else `hidden`.
LOCALSFT_INLINE vf where_visible(vf x, vf position, vf low, vf high, vf hidden) {
  return vselect_less(position, high, vselect_less(position, low, hidden, x), hidden);
}
