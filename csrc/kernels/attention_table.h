// Attention kernels of one ISA.
#pragma once
#include <stdint.h>

namespace localsft {
namespace kernels {

struct AttentionTable {
  int unused;
};

}  // namespace kernels
}  // namespace localsft
