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

static void round_to_act(const float* x, void* out, int64_t begin, int64_t end) {
  act_t* o = (act_t*)out;
  int64_t i = begin;
  for (; i + LANES <= end; i += LANES) vstore_act(o + i, vload(x + i));
  if (i < end) vstore_act_n(o + i, vload_n(x + i, int(end - i)), int(end - i));
}

#include "kernels/element_adamw.inl"
#include "kernels/element_columns.inl"
#include "kernels/element_dropout.inl"
#include "kernels/element_norm.inl"
#include "kernels/element_rope.inl"
#include "kernels/element_swiglu.inl"

static const ElementTable element_table = {
    exp_floats,   rms_norm,        rms_norm_again, rms_norm_backward, rms_norm_f32,  rope,
    swiglu,       swiglu_backward, add_floats,     dropout,           dropout_add,   adamw,
    squared_norm, round_to_act,    rope_f32,       swiglu_f32,        scale_columns, column_dots,
};
