// RMS norm over rows of D: out = x·rstd·weight, rstd = 1/sqrt(mean(x²) + eps), and its mirror.

LOCALSFT_INLINE float root_of_mean(float sum_of_squares, int64_t D, float eps) {
  return 1.0f / __builtin_sqrtf(sum_of_squares / float(D) + eps);
}

LOCALSFT_INLINE void scale_row(const act_t* x, const float* weight, float rstd, act_t* out, int64_t D) {
  const vf r = vset(rstd);
  int64_t i = 0;
  for (; i + LANES <= D; i += LANES) vstore_act(out + i, vmul(vmul(vload_act(x + i), r), vload(weight + i)));
  if (i < D) {
    const int n = int(D - i);
    vstore_act_n(out + i, vmul(vmul(vload_act_n(x + i, n), r), vload_n(weight + i, n)), n);
  }
}

// The norm is taken of h as rounded to act, so that rms_norm_again recomputes the same bits from what is kept.
static void rms_norm(const float* h, const float* weight, float eps, void* saved, float* rstd, void* out, int64_t D,
                     int64_t begin, int64_t end) {
  for (int64_t row = begin; row < end; ++row) {
    const float* x = h + row * D;
    act_t* kept = (act_t*)saved + row * D;
    vf sum0 = vzero(), sum1 = vzero();
    int64_t i = 0;
    for (; i + 2 * LANES <= D; i += 2 * LANES) {
      vstore_act(kept + i, vload(x + i));
      vstore_act(kept + i + LANES, vload(x + i + LANES));
      const vf a = vload_act(kept + i), b = vload_act(kept + i + LANES);
      sum0 = vfma(a, a, sum0);
      sum1 = vfma(b, b, sum1);
    }
    for (; i < D; i += LANES) {
      const int n = D - i < LANES ? int(D - i) : int(LANES);
      vstore_act_n(kept + i, vload_n(x + i, n), n);
      const vf a = vload_act_n(kept + i, n);
      sum0 = vfma(a, a, sum0);
    }
    rstd[row] = root_of_mean(vsum(vadd(sum0, sum1)), D, eps);
    scale_row(kept, weight, rstd[row], (act_t*)out + row * D, D);
  }
}

static void rms_norm_again(const void* saved, const float* weight, const float* rstd, void* out, int64_t D,
                           int64_t begin, int64_t end) {
  for (int64_t row = begin; row < end; ++row)
    scale_row((const act_t*)saved + row * D, weight, rstd[row], (act_t*)out + row * D, D);
}

// With n = x·rstd and g = dy·weight:  dx += rstd·(g - n·mean(g·n)).
static void rms_norm_backward(const void* dy, const void* saved, const float* weight, const float* rstd, float* dx,
                              int64_t D, int64_t begin, int64_t end) {
  for (int64_t row = begin; row < end; ++row) {
    const act_t* x = (const act_t*)saved + row * D;
    const act_t* d = (const act_t*)dy + row * D;
    float* out = dx + row * D;
    const float r = rstd[row];
    vf sum0 = vzero(), sum1 = vzero();
    int64_t i = 0;
    for (; i + 2 * LANES <= D; i += 2 * LANES) {
      sum0 = vfma(vmul(vload_act(d + i), vload(weight + i)), vload_act(x + i), sum0);
      sum1 = vfma(vmul(vload_act(d + i + LANES), vload(weight + i + LANES)), vload_act(x + i + LANES), sum1);
    }
    for (; i < D; i += LANES) {
      const int n = D - i < LANES ? int(D - i) : int(LANES);
      sum0 = vfma(vmul(vload_act_n(d + i, n), vload_n(weight + i, n)), vload_act_n(x + i, n), sum0);
    }
    const vf scale = vset(r);
    const vf along = vset(-(vsum(vadd(sum0, sum1)) * r / float(D)) * r * r);  // of x: -rstd²·mean(g·n)
    i = 0;
    for (; i + LANES <= D; i += LANES) {
      const vf g = vmul(vload_act(d + i), vload(weight + i));
      vstore(out + i, vfma(along, vload_act(x + i), vfma(scale, g, vload(out + i))));
    }
    if (i < D) {
      const int n = int(D - i);
      const vf g = vmul(vload_act_n(d + i, n), vload_n(weight + i, n));
      vstore_n(out + i, vfma(along, vload_act_n(x + i, n), vfma(scale, g, vload_n(out + i, n))), n);
    }
  }
}

static void rms_norm_f32(const float* h, const float* weight, float eps, float* out, int64_t D, int64_t begin,
                         int64_t end) {
  for (int64_t row = begin; row < end; ++row) {
    const float* x = h + row * D;
    vf sum = vzero();
    for (int64_t i = 0; i < D; i += LANES) {
      const vf a = vload_n(x + i, D - i < LANES ? int(D - i) : int(LANES));
      sum = vfma(a, a, sum);
    }
    const vf r = vset(root_of_mean(vsum(sum), D, eps));
    for (int64_t i = 0; i < D; i += LANES) {
      const int n = D - i < LANES ? int(D - i) : int(LANES);
      vstore_n(out + row * D + i, vmul(vmul(vload_n(x + i, n), r), vload_n(weight + i, n)), n);
    }
  }
}
