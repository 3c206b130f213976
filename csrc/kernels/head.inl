// The head's softmax, one row tile at a time, while its logits are still in the nearest cache.

static void head_tile(float* logits, int64_t stride, int rows, int columns, int64_t first, const float* shifts,
                      const int32_t* targets, HeadPartial* partials, uint32_t* packed) {
  const int padded = (columns + STEP * LANES - 1) / (STEP * LANES) * (STEP * LANES);
  for (int r = 0; r < rows; ++r) {
    float* l = logits + r * stride;
    HeadPartial& partial = partials[r];
    const int64_t target = targets[r] - first;
    partial.beaten = 0;
    if (target >= 0 && target < columns) {
      for (int c = 0; c < columns; ++c) partial.beaten |= c < target ? l[c] >= l[target] : l[c] > l[target];
      l[target] = -__builtin_inff();
    }
    for (int c = columns; c < padded; ++c) l[c] = -__builtin_inff();
    const vf shift = vset(shifts[r]);
    vf sum = vzero(), high = vset(-__builtin_inff());
    for (int c = 0; c < padded; c += LANES) {
      const vf x = vload(l + c), e = vexp(vsub(x, shift));
      high = vmax(high, x);
      sum = vadd(sum, e);
      vstore(l + c, e);
    }
    partial.sum = vsum(sum);
    partial.max = vmaximum(high);
  }
  if (packed == nullptr) return;
  const Matrix e = {Kind::F32, rows, columns, logits, stride, nullptr, nullptr, Kind::F32, 0, 0, nullptr, 0, rows};
  pack_across(&e, 0, rows, GEMM_ROWS, 0, columns, 1.0f, GEMM_ROWS, packed, 0);
}
