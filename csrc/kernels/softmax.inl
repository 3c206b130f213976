// Rows of logits: the statistics of the softmax, and the softmax itself scaled.

// max and Σ exp(x - max) over n floats.
static void softmax_stats(const float* x, int64_t n, float* max, float* sum) {
  vf high = vset(-__builtin_inff());
  int64_t i = 0;
  for (; i + LANES <= n; i += LANES) high = vmax(high, vload(x + i));
  float m = vmaximum(high);
  for (int64_t j = i; j < n; ++j) m = x[j] > m ? x[j] : m;
  vf total = vzero();
  const vf shift = vset(m);
  for (i = 0; i + LANES <= n; i += LANES) total = vadd(total, vexp(vsub(vload(x + i), shift)));
  float s = vsum(total);
  if (i < n) {
    float lanes[LANES];
    vstore(lanes, vexp(vsub(vload_n(x + i, int(n - i)), shift)));
    for (int64_t j = i; j < n; ++j) s += lanes[j - i];
  }
  *max = m;
  *sum = s;
}

// x = weight·exp(x - log_sum) in place.
static void softmax_scale(float* x, int64_t n, float log_sum, float weight) {
  const vf shift = vset(log_sum), w = vset(weight);
  int64_t i = 0;
  for (; i + LANES <= n; i += LANES) vstore(x + i, vmul(w, vexp(vsub(vload(x + i), shift))));
  if (i < n) vstore_n(x + i, vmul(w, vexp(vsub(vload_n(x + i, int(n - i)), shift))), int(n - i));
}
