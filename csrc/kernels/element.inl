// Element-wise and row-wise kernels; see element_table.h.

static void exp_floats(const float* x, float* out, int64_t n) {
  int64_t i = 0;
  for (; i + LANES <= n; i += LANES) vstore(out + i, vexp(vload(x + i)));
  if (i < n) vstore_n(out + i, vexp(vload_n(x + i, int(n - i))), int(n - i));
}
