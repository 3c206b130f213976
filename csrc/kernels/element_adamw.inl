// AdamW (Loshchilov & Hutter, "Decoupled weight decay regularization", ICLR 2019), as torch.optim.AdamW computes it,
// and the squared norm that clipping needs.

LOCALSFT_INLINE void adamw_part(float* p, float* g, float* m, float* v, const AdamW& s, int n) {
  const vf grad = vmul(vload_n(g, n), vset(s.grad_scale));
  const vf mean = vfma(vset(s.rest1), vsub(grad, vload_n(m, n)), vload_n(m, n));
  const vf square = vfma(vmul(grad, grad), vset(s.rest2), vmul(vload_n(v, n), vset(s.beta2)));
  const vf root = vfma(vsqrt(square), vset(s.root_scale), vset(s.eps));
  const vf decayed = vmul(vload_n(p, n), vset(s.decay));
  vstore_n(g, vzero(), n);
  vstore_n(m, mean, n);
  vstore_n(v, square, n);
  vstore_n(p, vsub(decayed, vdiv(vmul(mean, vset(s.step_size)), root)), n);
}

static void adamw(float* p, float* g, float* m, float* v, AdamW settings, int64_t begin, int64_t end) {
  int64_t i = begin;
  for (; i + LANES <= end; i += LANES) adamw_part(p + i, g + i, m + i, v + i, settings, LANES);
  if (i < end) adamw_part(p + i, g + i, m + i, v + i, settings, int(end - i));
}

static double squared_norm(const float* g, int64_t n) {
  enum { SUMS = 16 };
  double sums[SUMS] = {0};
  int64_t i = 0;
  for (; i + SUMS <= n; i += SUMS)
    for (int lane = 0; lane < SUMS; ++lane) sums[lane] += double(g[i + lane]) * double(g[i + lane]);
  for (int lane = 0; i < n; ++i, ++lane) sums[lane] += double(g[i]) * double(g[i]);
  double total = 0;
  for (int lane = 0; lane < SUMS; ++lane) total += sums[lane];
  return total;
}
