// Which kernels run: chosen once, in one place, from what the CPU *and* the operating system support.
#pragma once
#include <string>
#include <vector>

#include "kernels/table.h"

namespace localsft {

// Names of the ISAs that this build has and this machine can run, slowest first.
std::vector<std::string> available_isas();

// The table for `isa`; an empty name means LOCALSFT_ISA from the environment, or the fastest available when that is
// unset. Throws std::invalid_argument for a name that is unknown or that this machine can't run.
const kernels::Table& select_kernels(const std::string& isa);

}  // namespace localsft
