// Dropout whose mask is a function of (seed, row, column): nothing is stored, the backward draws the same bits again.
//
// Philox4x32-10 (Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", SC 2011): counter (column / 4, row), key
// seed, four draws a counter. Integer arithmetic in plain loops that the compiler vectorizes: the same mask on every
// ISA.

enum { PHILOX = 16 };  // counters drawn together

// draws[4·c + word] of the counters first .. first + PHILOX - 1 of one row, word by word: draws[word][counter].
static void philox(uint64_t seed, uint64_t row, uint32_t first, uint32_t (*draws)[PHILOX]) {
  uint32_t* x0 = draws[0];
  uint32_t* x1 = draws[1];
  uint32_t* x2 = draws[2];
  uint32_t* x3 = draws[3];
  for (int i = 0; i < PHILOX; ++i) {
    x0[i] = first + uint32_t(i);
    x1[i] = uint32_t(row);
    x2[i] = uint32_t(row >> 32);
    x3[i] = 0;
  }
  uint32_t key0 = uint32_t(seed), key1 = uint32_t(seed >> 32);
  for (int round = 0; round < 10; ++round) {
    for (int i = 0; i < PHILOX; ++i) {
      const uint64_t a = uint64_t(x0[i]) * 0xD2511F53u, b = uint64_t(x2[i]) * 0xCD9E8D57u;
      x0[i] = uint32_t(b >> 32) ^ x1[i] ^ key0;
      x2[i] = uint32_t(a >> 32) ^ x3[i] ^ key1;
      x1[i] = uint32_t(b);
      x3[i] = uint32_t(a);
    }
    key0 += 0x9E3779B9u;
    key1 += 0xBB67AE85u;
  }
}

// factors[0 .. 4·PHILOX): scale where kept, 0 where dropped, for the columns from `column` (a multiple of 4) on.
static void dropout_factors(Dropout mask, int64_t row, int64_t column, float* factors) {
  uint32_t draws[4][PHILOX];
  philox(mask.seed, uint64_t(row), uint32_t(column / 4), draws);
  for (int i = 0; i < PHILOX; ++i)
    for (int word = 0; word < 4; ++word) factors[4 * i + word] = draws[word][i] >= mask.threshold ? mask.scale : 0.0f;
}

static void dropout(const void* x, Dropout mask, void* out, int64_t K, int64_t begin, int64_t end) {
  float factors[4 * PHILOX];
  for (int64_t row = begin; row < end; ++row)
    for (int64_t column = 0; column < K; column += 4 * PHILOX) {
      dropout_factors(mask, row, column, factors);
      const int64_t width = K - column < 4 * PHILOX ? K - column : 4 * PHILOX;
      const act_t* in = (const act_t*)x + row * K + column;
      act_t* result = (act_t*)out + row * K + column;
      for (int64_t i = 0; i < width; i += LANES) {
        const int n = width - i < LANES ? int(width - i) : int(LANES);
        vstore_act_n(result + i, vmul(vload_act_n(in + i, n), vload(factors + i)), n);
      }
    }
}

static void dropout_add(const float* dx_lora, Dropout mask, void* dx, bool dx_is_act, int64_t K, int64_t begin,
                        int64_t end) {
  float factors[4 * PHILOX];
  for (int64_t row = begin; row < end; ++row)
    for (int64_t column = 0; column < K; column += 4 * PHILOX) {
      dropout_factors(mask, row, column, factors);
      const int64_t width = K - column < 4 * PHILOX ? K - column : 4 * PHILOX;
      const int64_t at = row * K + column;
      for (int64_t i = 0; i < width; i += LANES) {
        const int n = width - i < LANES ? int(width - i) : int(LANES);
        const vf share = vmul(vload_n(dx_lora + at + i, n), vload(factors + i));
        if (dx_is_act) {
          act_t* to = (act_t*)dx + at + i;
          vstore_act_n(to, vadd(vload_act_n(to, n), share), n);
        } else {
          float* to = (float*)dx + at + i;
          vstore_n(to, vadd(vload_n(to, n), share), n);
        }
      }
    }
}
