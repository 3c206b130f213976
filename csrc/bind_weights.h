// A weight as Python holds it, and the group of weights and adapters that one operation takes.
#pragma once
#include <memory>
#include <optional>
#include <vector>

#include "arguments.h"
#include "ops_linear.h"

namespace localsft {

// The panels of a weight, where they are kept, and the array that holds them.
struct WeightPanels {
  kernels::KeptPanels kept;
  py::array units;
};

// A matrix and the arrays it reads, kept alive.
struct Weight {
  Matrix matrix;
  std::vector<py::array> arrays;
  std::shared_ptr<WeightPanels> panels;  // matrix.kept points there
};

// Linears that read the same input, as the operations take them, checked once: the arrays of their weights, adapters
// and the adapters' gradients are kept alive.
struct Linears {
  std::vector<Member> members;
  int64_t inputs, rank;  // rank: of all adapters together
  bool trainable;        // every adapter has a place for its gradients
  std::vector<py::array> arrays;
  std::vector<std::shared_ptr<WeightPanels>> panels;
};

using Weights = std::vector<const Weight*>;
using Arrays = std::vector<py::array>;
using MaybeArrays = std::vector<std::optional<py::array>>;

// The weights of a group and their adapters; all must read K columns. Raises ValueError or TypeError as Arguments does.
std::vector<Member> members(const Arguments& args, const Weights& weights, const MaybeArrays& lora_a,
                            const MaybeArrays& lora_b, const std::vector<float>& scales, int64_t K);

}  // namespace localsft
