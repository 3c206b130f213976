// Scores in units of log2, so that the exponential is a power of two, and the limits of what a row sees.

// 2^x for x at most a little above 0; NaN stays NaN. Relative error 3e-6 where the result is stored as bfloat16 (whose
// own rounding is 4e-3), else 1e-7. Far below 0 the result is 0, or the smallest normal where the ISA can't scale
// further.
LOCALSFT_INLINE vf vexp2(vf x) {
#if defined(LOCALSFT_KERNELS_avx512) || defined(LOCALSFT_KERNELS_avx512bf16)
  x = vmax(vset(-160.0f), x);
#else
  x = vmax(vset(-126.0f), x);
#endif
  const vf n = vround(x);
  const vf r = vsub(x, n);
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
  return vscale2(vfma(p, r, vset(1.0f)), n);
}

LOCALSFT_INLINE vf vtanh(vf x) { return vsub(vset(1.0f), vdiv(vset(2.0f), vadd(vset(1.0f), vexp(vadd(x, x))))); }

static const float LOG2_E = 1.44269504088896341f, LN_2 = 0.69314718055994531f;
static const float NEVER = -1e30f;  // below any score, yet finite: NEVER - NEVER is 0, not NaN
static const float MINUS_INFINITY = -__builtin_inff();

// From q·k to the score in units of log2, with one rule for forward and backward.
struct ScoreRule {
  vf linear;        // without a soft cap: scale·log2(e)
  vf inner, outer;  // with one: outer·tanh(inner·q·k), outer = softcap·log2(e), inner = scale / softcap
  bool capped;
  LOCALSFT_MEMBER explicit ScoreRule(const AttentionShape& s) {
    capped = s.softcap > 0;
    linear = vset(s.scale * LOG2_E);
    inner = capped ? vset(s.scale / s.softcap) : vzero();
    outer = vset(s.softcap * LOG2_E);
  }
};
LOCALSFT_INLINE vf score(const ScoreRule& rule, vf product) {
  return rule.capped ? vmul(rule.outer, vtanh(vmul(rule.inner, product))) : vmul(rule.linear, product);
}
// d score / d (scale·q·k) = 1 - tanh², from the score itself.
LOCALSFT_INLINE vf score_slope(const ScoreRule& rule, vf score) {
  const vf t = vdiv(score, rule.outer);
  return vsub(vset(1.0f), vmul(t, t));
}

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
