// Compiled once an ISA, with LOCALSFT_KERNELS set to its name and its own compiler flags; exports only table().
#include "kernels/simd.h"
#include "kernels/table.h"

#define LOCALSFT_TEXT2(x) #x
#define LOCALSFT_TEXT(x) LOCALSFT_TEXT2(x)

namespace localsft {
namespace kernels {
namespace LOCALSFT_KERNELS {

#include "kernels/attention.inl"
#include "kernels/element.inl"
#include "kernels/gemm.inl"

const Table* table() {
  static const Table the_table = {
      LOCALSFT_TEXT(LOCALSFT_KERNELS), LANES, ACT_BF16 != 0, gemm_table, attention_table, element_table,
  };
  return &the_table;
}

}  // namespace LOCALSFT_KERNELS
}  // namespace kernels
}  // namespace localsft
