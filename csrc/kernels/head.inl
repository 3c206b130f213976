// The head's softmax, one row tile at a time, while its logits are still in the nearest cache.

static void head_tile(float* logits, int64_t stride, int rows, int columns, int64_t first, const float* shifts,
                      const int32_t* targets, HeadPartial* partials, uint32_t* packed) {
  const int steps = (columns + STEP - 1) / STEP,
            padded = (columns + STEP * LANES - 1) / (STEP * LANES) * (STEP * LANES);
  // Other threads read it for the product before: taking it back takes longer than the exponentials do.
  if (packed != nullptr) prefetch_to_write(packed, int64_t(steps) * GEMM_ROWS * 4);
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
    for (int c = 0; c < padded; c += STEP * LANES) {
      vf e[STEP];
#pragma GCC unroll 2
      for (int i = 0; i < STEP; ++i) {
        const vf x = vload(l + c + i * LANES);
        e[i] = vexp(vsub(x, shift));
        high = vmax(high, x);
        sum = vadd(sum, e[i]);
      }
      ustore((uint32_t*)l + c / STEP, uneighbours(e[0], e[STEP - 1]));
    }
    if (columns % STEP) ((act_t*)l)[columns] = 0;  // the other half of the last unit
    partial.sum = vsum(sum);
    partial.max = vmaximum(high);
  }
  if (packed == nullptr) return;
  for (int piece = 0; piece < GEMM_ROWS; piece += PIECE)
    for (int c = 0; c < columns; c += STEP * LANES) {
      vu units[PIECE];
#pragma GCC unroll 8
      for (int r = 0; r < PIECE; ++r)
        units[r] = piece + r < rows ? uload((const uint32_t*)(logits + (piece + r) * stride) + c / STEP) : uzero();
      store_steps(units, packed + c / STEP * GEMM_ROWS + piece, GEMM_ROWS, steps - c / STEP);
    }
}
