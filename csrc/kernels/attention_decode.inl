// One new token against a cache of keys: memory-bound, in float32 arithmetic on the stored activations.

static void decode(const AttentionShape& s, int64_t kv_head, const float* q, const void* k, const void* v,
                   int64_t begin, int64_t end, float* o, float* m, float* l, float* scores) {
  const int64_t group = s.heads / s.kv_heads, row_step = s.kv_heads * s.E, n = end - begin;
  const int64_t n_padded = round_up(n, LANES);
  const act_t* keys = (const act_t*)k + begin * row_step + kv_head * s.E;
  const act_t* values = (const act_t*)v + begin * row_step + kv_head * s.E;
  const ScoreRule rule(s);
  const vf unit = vset(rule.unit);
  for (int64_t key = 0; key < n; ++key)
    for (int64_t g = 0; g < group; ++g) {
      vf sum = vzero();
      for (int64_t e = 0; e < s.E; e += LANES) {
        const int lanes = int(at_most(s.E - e, LANES));
        sum = vfma(vload_n(q + g * s.E + e, lanes), vload_act_n(keys + key * row_step + e, lanes), sum);
      }
      scores[g * n_padded + key] = vsum(sum);
    }
  for (int64_t g = 0; g < group; ++g) {
    float* row = scores + g * n_padded;
    for (int64_t key = n; key < n_padded; ++key) row[key] = 0;
    vf highest = vset(NEVER);
    for (int64_t key = 0; key < n_padded; key += LANES) {
      vf x = vmul(unit, score(rule, vload(row + key)));
      if (key + LANES > n) {
        vstore(row + key, x);
        for (int64_t i = n; i < n_padded; ++i) row[i] = MINUS_INFINITY;
        x = vload(row + key);
      }
      vstore(row + key, x);
      highest = vmax(highest, x);
    }
    m[g] = vmaximum(highest);
    vf sum = vzero();
    for (int64_t key = 0; key < n_padded; key += LANES) {
      const vf p = vexp2(vsub(vload(row + key), vset(m[g])));
      sum = vadd(sum, p);
      vstore(row + key, p);
    }
    l[g] = vsum(sum);
    for (int64_t e = 0; e < s.E; e += LANES) vstore_n(o + g * s.E + e, vzero(), int(at_most(s.E - e, LANES)));
  }
  for (int64_t key = 0; key < n; ++key)
    for (int64_t e = 0; e < s.E; e += LANES) {
      const int lanes = int(at_most(s.E - e, LANES));
      const vf value = vload_act_n(values + key * row_step + e, lanes);
      for (int64_t g = 0; g < group; ++g) {
        float* out = o + g * s.E + e;
        vstore_n(out, vfma(vset(scores[g * n_padded + key]), value, vload_n(out, lanes)), lanes);
      }
    }
}
