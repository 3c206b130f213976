// What an ISA provides: plain function pointers over plain structs. No STL: this header is read by every per-ISA
// object.
//
// Letters: T tokens, S segments, N targets, D hidden, F feed-forward, H query heads, K key/value heads, E head size,
// V vocabulary, R LoRA rank, B bits, G quantization group.
#pragma once
#include <stdint.h>

#include "kernels/attention_table.h"
#include "kernels/element_table.h"
#include "kernels/gemm_table.h"

namespace localsft {
namespace kernels {

struct Table {
  const char* name;
  int lanes;      // float lanes of a vector
  bool act_bf16;  // activations are stored as bfloat16 (else float)
  GemmTable gemm;
  AttentionTable attention;
  ElementTable element;
};

}  // namespace kernels
}  // namespace localsft
