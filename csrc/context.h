// What every operation is given: the kernels of the chosen ISA, the threads and their working memory. Nothing else is
// shared between calls. One operation at a time: a Context belongs to one caller.
#pragma once
#include <string>

#include "dispatch.h"
#include "scratch.h"
#include "threads.h"

namespace localsft {

struct Context {
  Context(const std::string& isa, int threads) : kernels(select_kernels(isa)), pool(threads), scratch(threads) {}
  const kernels::Table& kernels;
  ThreadPool pool;
  Scratch scratch;
};

}  // namespace localsft
