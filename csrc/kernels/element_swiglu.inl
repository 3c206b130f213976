// SwiGLU: out = silu(gate)·up, silu(g) = g·sigmoid(g), and its mirror. In the backward the outputs may be the inputs.

LOCALSFT_INLINE vf vsigmoid(vf x) { return vdiv(vset(1.0f), vadd(vset(1.0f), vexp(vsub(vzero(), x)))); }

template <typename T>
LOCALSFT_INLINE void swiglu_part(const T* gate, const T* up, T* out, int n) {
  const vf g = vget_n(gate, n);
  vput_n(out, vmul(vmul(g, vsigmoid(g)), vget_n(up, n)), n);
}

template <typename T>
LOCALSFT_INLINE void swiglu_range(const T* gate, const T* up, T* out, int64_t begin, int64_t end) {
  int64_t i = begin;
  for (; i + LANES <= end; i += LANES) swiglu_part(gate + i, up + i, out + i, LANES);
  if (i < end) swiglu_part(gate + i, up + i, out + i, int(end - i));
}

static void swiglu(const void* gate, const void* up, void* out, int64_t begin, int64_t end) {
  swiglu_range((const act_t*)gate, (const act_t*)up, (act_t*)out, begin, end);
}

static void swiglu_f32(const float* gate, const float* up, float* out, int64_t begin, int64_t end) {
  swiglu_range(gate, up, out, begin, end);
}

// d_up = dy·silu(g), d_gate = dy·up·silu'(g), silu'(g) = s·(1 + g·(1 - s)), s = sigmoid(g).
LOCALSFT_INLINE void swiglu_backward_part(const act_t* dy, const act_t* gate, const act_t* up, act_t* d_gate,
                                          act_t* d_up, int n) {
  const vf d = vload_act_n(dy, n), g = vload_act_n(gate, n), u = vload_act_n(up, n);
  const vf s = vsigmoid(g);
  const vf slope = vmul(s, vfma(g, vsub(vset(1.0f), s), vset(1.0f)));
  vstore_act_n(d_gate, vmul(vmul(d, u), slope), n);
  vstore_act_n(d_up, vmul(vmul(d, g), s), n);
}

static void swiglu_backward(const void* dy, const void* gate, const void* up, void* d_gate, void* d_up, int64_t begin,
                            int64_t end) {
  const act_t *d = (const act_t*)dy, *g = (const act_t*)gate, *u = (const act_t*)up;
  act_t *dg = (act_t*)d_gate, *du = (act_t*)d_up;
  int64_t i = begin;
  for (; i + LANES <= end; i += LANES) swiglu_backward_part(d + i, g + i, u + i, dg + i, du + i, LANES);
  if (i < end) swiglu_backward_part(d + i, g + i, u + i, dg + i, du + i, int(end - i));
}
