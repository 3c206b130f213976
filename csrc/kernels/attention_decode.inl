// One new token against a cache of keys, in float32 arithmetic on the stored activations. The cache is read once: for
// LANES keys at a time their words are turned so that keys sit in the lanes, and all query heads of the group use them.

enum { DECODE_VECTORS = 4 };  // vectors of E that are summed together

#if defined(LOCALSFT_KERNELS_avx512bf16)
LOCALSFT_INLINE vf low_of_words(vf words) {
  return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_castps_si512(words), 16));
}
LOCALSFT_INLINE vf high_of_words(vf words) {
  return _mm512_castsi512_ps(_mm512_and_si512(_mm512_castps_si512(words), _mm512_set1_epi32(int(0xffff0000u))));
}
#endif

// scores[g][key] = q[g]·k[key] for `count` <= LANES keys and NG heads; the lanes beyond are 0.
template <int NG>
static void decode_products(const float* q, const act_t* k, int64_t row_step, int count, int64_t E, float* scores,
                            int64_t score_step) {
  vf sums[NG];
  LOCALSFT_UNROLL for (int g = 0; g < NG; ++g) sums[g] = vzero();
  const int64_t width = E / WORD;
  for (int64_t w = 0; w < width; w += LANES) {
    const int words = int(at_most(width - w, LANES));
    vf square[LANES];
    for (int i = 0; i < LANES; ++i)
      square[i] = i < count ? vload_n((const float*)(k + i * row_step + w * WORD), words) : vzero();
    transpose(square);
    for (int i = 0; i < words; ++i) {
      const float* at = q + (w + i) * WORD;
#if defined(LOCALSFT_KERNELS_avx512bf16)
      const vf low = low_of_words(square[i]), high = high_of_words(square[i]);
      LOCALSFT_UNROLL for (int g = 0; g < NG; ++g) sums[g] =
          vfma(vset(at[g * E + 1]), high, vfma(vset(at[g * E]), low, sums[g]));
#else
      LOCALSFT_UNROLL for (int g = 0; g < NG; ++g) sums[g] = vfma(vset(at[g * E]), square[i], sums[g]);
#endif
    }
  }
  LOCALSFT_UNROLL for (int g = 0; g < NG; ++g) vstore(scores + g * score_step, sums[g]);
}

// o[g] = Σ_key p[g][key]·v[key] for NG heads.
template <int NG, int NV>
static void decode_values(const float* p, int64_t p_step, const act_t* v, int64_t row_step, int64_t n, int lanes,
                          int64_t E, float* o) {
  vf sums[NG][NV];
  LOCALSFT_UNROLL for (int g = 0; g < NG; ++g) LOCALSFT_UNROLL for (int i = 0; i < NV; ++i) sums[g][i] = vzero();
  for (int64_t key = 0; key < n; ++key) {
    vf value[NV];  // of a single vector, only `lanes` lanes exist
    LOCALSFT_UNROLL for (int i = 0; i < NV; ++i) value[i] =
        NV == 1 ? vload_act_n(v + key * row_step, lanes) : vload_act(v + key * row_step + i * LANES);
    LOCALSFT_UNROLL for (int g = 0; g < NG; ++g) LOCALSFT_UNROLL for (int i = 0; i < NV; ++i) sums[g][i] =
        vfma(vset(p[g * p_step + key]), value[i], sums[g][i]);
  }
  LOCALSFT_UNROLL for (int g = 0; g < NG; ++g) LOCALSFT_UNROLL for (int i = 0; i < NV; ++i)
      vstore_n(o + g * E + i * LANES, sums[g][i], NV == 1 ? lanes : int(LANES));
}

// scores [g][n_padded] of one head -> probabilities relative to the largest; m in units of log2.
static void decode_softmax(const ScoreRule& rule, float* row, int64_t n, int64_t n_padded, float* m, float* l) {
  const vf unit = vset(rule.unit);
  vf highest = vset(NEVER), sum = vzero();
  for (int64_t key = 0; key < n_padded; key += LANES) vstore(row + key, vmul(unit, score(rule, vload(row + key))));
  for (int64_t key = n; key < n_padded; ++key) row[key] = MINUS_INFINITY;
  for (int64_t key = 0; key < n_padded; key += LANES) highest = vmax(highest, vload(row + key));
  *m = vmaximum(highest);
  for (int64_t key = 0; key < n_padded; key += LANES) {
    const vf p = vexp2(vsub(vload(row + key), vset(*m)));
    sum = vadd(sum, p);
    vstore(row + key, p);
  }
  *l = vsum(sum);
}

template <int NG>
static void decode_heads(const AttentionShape& s, const float* q, const act_t* k, const act_t* v, int64_t n, float* o,
                         float* m, float* l, float* scores) {
  const int64_t row_step = s.kv_heads * s.E, n_padded = round_up(n, LANES);
  const ScoreRule rule(s);
  const int64_t row_bytes = s.E * int64_t(sizeof(act_t));
  for (int64_t key = 0; key < n; key += LANES) {
    for (int i = 0; i < LANES; ++i) {  // the caches of several answers come from memory
      prefetch(k + (key + LANES + i) * row_step, row_bytes);
      prefetch(v + (key + i) * row_step, row_bytes);
    }
    decode_products<NG>(q, k + key * row_step, row_step, int(at_most(n - key, LANES)), s.E, scores + key, n_padded);
  }
  for (int g = 0; g < NG; ++g) decode_softmax(rule, scores + g * n_padded, n, n_padded, m + g, l + g);
  int64_t e = 0;
  for (; e + DECODE_VECTORS * LANES <= s.E; e += DECODE_VECTORS * LANES)
    decode_values<NG, DECODE_VECTORS>(scores, n_padded, v + e, row_step, n, LANES, s.E, o + e);
  for (; e < s.E; e += LANES)
    decode_values<NG, 1>(scores, n_padded, v + e, row_step, n, int(at_most(s.E - e, LANES)), s.E, o + e);
}

static void decode(const AttentionShape& s, int64_t kv_head, const float* q, const void* k, const void* v,
                   int64_t begin, int64_t end, float* o, float* m, float* l, float* scores) {
  const int64_t group = s.heads / s.kv_heads, at = (begin * s.kv_heads + kv_head) * s.E;
  const act_t *keys = (const act_t*)k + at, *values = (const act_t*)v + at;
  for (int64_t g = 0; g < group; g += ATTENTION_DECODE_HEADS) {
    const float* head = q + g * s.E;
    float* out = o + g * s.E;
    switch (at_most(group - g, ATTENTION_DECODE_HEADS)) {
      case 1:
        decode_heads<1>(s, head, keys, values, end - begin, out, m + g, l + g, scores);
        break;
      case 2:
        decode_heads<2>(s, head, keys, values, end - begin, out, m + g, l + g, scores);
        break;
      case 3:
        decode_heads<3>(s, head, keys, values, end - begin, out, m + g, l + g, scores);
        break;
      default:
        decode_heads<4>(s, head, keys, values, end - begin, out, m + g, l + g, scores);
    }
  }
}
