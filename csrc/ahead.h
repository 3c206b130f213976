// What a thread will read of its next weights, fetched by the register tile while it multiplies the present ones:
// weights come from memory, mostly, and packing them takes twice as long when it has to wait for them.
#pragma once
#include <cstddef>
#include <cstdint>
#include <vector>

#include "kernels/gemm_table.h"

namespace localsft {

// Stretches of memory, one after the other. A guess that turns out wrong costs what it fetches, never a result.
class AheadQueue {
 public:
  // The rows [row, row + rows) of m over the columns [begin, end), with their scales and biases.
  void add(const kernels::Matrix& m, int64_t row, int64_t rows, int64_t begin, int64_t end);
  // `count` units of kept panels.
  void add(const uint32_t* units, int64_t count) { add_block(units, 1, count * 4, count * 4); }
  // The first stretch that is not fetched yet, for a kernel to go on with; null where all are.
  kernels::Ahead* next();

 private:
  // `rows` times `bytes` bytes, `stride` apart.
  void add_block(const void* first, int64_t rows, int64_t bytes, int64_t stride);

  std::vector<kernels::Ahead> stretches_;
  size_t at_ = 0;
};

}  // namespace localsft
