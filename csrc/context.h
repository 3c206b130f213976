// What every operation is given: the kernels of the chosen ISA and the threads. Nothing else is shared between calls.
#pragma once
#include <string>

#include "dispatch.h"
#include "threads.h"

namespace localsft {

struct Context {
  Context(const std::string& isa, int threads) : kernels(select_kernels(isa)), pool(threads) {}
  const kernels::Table& kernels;
  ThreadPool pool;
};

}  // namespace localsft
