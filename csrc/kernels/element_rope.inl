// Rotary position embedding, the "rotate half" form: element i of a head turns together with element i + E/2.
// The backward is the inverse rotation (sign = -1). Decoding rotates floats.

template <typename T>
LOCALSFT_INLINE void turn(T* low, T* high, const float* cos, const float* sin, vf sign, int n) {
  const vf c = vload_n(cos, n), s = vmul(sign, vload_n(sin, n));
  const vf a = vget_n(low, n), b = vget_n(high, n);
  vput_n(low, vsub(vmul(a, c), vmul(b, s)), n);
  vput_n(high, vfma(a, s, vmul(b, c)), n);
}

template <typename T>
LOCALSFT_INLINE void rope_rows(T* x, const float* cos, const float* sin, float sign, int64_t heads, int64_t E,
                               int64_t begin, int64_t end) {
  const int64_t half = E / 2;
  const vf direction = vset(sign);
  for (int64_t row = begin; row < end; ++row) {
    const float *c = cos + row * half, *s = sin + row * half;
    for (int64_t head = 0; head < heads; ++head) {
      T* low = x + (row * heads + head) * E;
      int64_t i = 0;
      for (; i + LANES <= half; i += LANES) turn(low + i, low + half + i, c + i, s + i, direction, LANES);
      if (i < half) turn(low + i, low + half + i, c + i, s + i, direction, int(half - i));
    }
  }
}

static void rope(void* x, const float* cos, const float* sin, float sign, int64_t heads, int64_t E, int64_t begin,
                 int64_t end) {
  rope_rows((act_t*)x, cos, sin, sign, heads, E, begin, end);
}

static void rope_f32(float* x, const float* cos, const float* sin, int64_t heads, int64_t E, int64_t begin,
                     int64_t end) {
  rope_rows(x, cos, sin, 1.0f, heads, E, begin, end);
}
