// Element-wise and row-wise kernels; see element_table.h.

static void exp_floats(const float* x, float* out, int64_t n) {
  int64_t i = 0;
  for (; i + LANES <= n; i += LANES) vstore(out + i, vexp(vload(x + i)));
  if (i < n) vstore_n(out + i, vexp(vload_n(x + i, int(n - i))), int(n - i));
}

static void add_floats(const float* x, float* out, int64_t n) {
  int64_t i = 0;
  for (; i + LANES <= n; i += LANES) vstore(out + i, vadd(vload(out + i), vload(x + i)));
  if (i < n) vstore_n(out + i, vadd(vload_n(out + i, int(n - i)), vload_n(x + i, int(n - i))), int(n - i));
}

#include "kernels/element_adamw.inl"
#include "kernels/element_dropout.inl"
#include "kernels/element_norm.inl"
#include "kernels/element_rope.inl"
#include "kernels/element_swiglu.inl"

static const ElementTable element_table = {
    exp_floats,      rms_norm,   rms_norm_again, rms_norm_backward, rms_norm_f32, rope,         swiglu,
    swiglu_backward, add_floats, dropout,        dropout_add,       adamw,        squared_norm,
};
