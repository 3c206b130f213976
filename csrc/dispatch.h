// Which kernels run: chosen once, in one place, from what the CPU *and* the operating system support.
#pragma once
#include <string>
#include <vector>

#include "kernels/table.h"

namespace localsft {

// Names of the ISAs that this build has and this machine can run, oldest first.
std::vector<std::string> available_isas();

// FLOP/s of an ISA's register tile on one thread.
struct Rate {
  std::string isa;
  double flops;
};

// The rates of the available ISAs, in their order; measured (some milliseconds) at the first call in a process. An
// instruction that exists may be slow: Emerald Rapids multiplies bfloat16 at half of float's rate without AMX.
const std::vector<Rate>& isa_rates();

// The last of the available ISAs whose rate is near the highest.
std::string fastest_isa();

// The table for `isa`; an empty name means LOCALSFT_ISA from the environment, or fastest_isa() when that is unset.
// Throws std::invalid_argument for a name that is unknown or that this machine can't run.
const kernels::Table& select_kernels(const std::string& isa);

}  // namespace localsft
