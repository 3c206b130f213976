// Matrix kernels of one ISA.
#pragma once
#include <stdint.h>

namespace localsft {
namespace kernels {

struct GemmTable {
  int unused;
};

}  // namespace kernels
}  // namespace localsft
