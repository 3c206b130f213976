// Element-wise and row-wise kernels of one ISA: norms, rotary embedding, SwiGLU, softmax cross-entropy, AdamW.
// `act` pointers hold bfloat16 bits or floats, as Table::act_bf16 says. Each works on the rows [begin, end).
#pragma once
#include <stdint.h>

namespace localsft {
namespace kernels {

struct ElementTable {
  // out = e^x for n floats; for tests of the polynomial.
  void (*exp)(const float* x, float* out, int64_t n);
};

}  // namespace kernels
}  // namespace localsft
