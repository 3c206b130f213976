// The multiply-accumulate rate of the register tile when nothing is loaded or stored: the ceiling of every product.

// Runs `steps` steps of a full tile on registers; the result only keeps the compiler from removing the work.
static float peak(int64_t steps) {
  vf sums[GEMM_ROWS * GEMM_VECTORS];
  uint32_t one = float_to_bits(0.0f);
  asm volatile("" : "+r"(one));
  vu a = ubroadcast(&one), b = a;
#pragma GCC unroll 32
  for (int i = 0; i < GEMM_ROWS * GEMM_VECTORS; ++i)
    sums[i] = vset(float(i));  // different, or the compiler keeps only one
  for (int64_t step = 0; step < steps; ++step) {
#pragma GCC unroll 32
    for (int i = 0; i < GEMM_ROWS * GEMM_VECTORS; ++i) sums[i] = umultiply(a, b, sums[i]);
  }
  float total = 0;
  for (int i = 0; i < GEMM_ROWS * GEMM_VECTORS; ++i) total += vsum(sums[i]);
  return total;
}
