// Arrays without a context, as the packing and the pieces take and give them. Only the bind*.cc files include it.
#pragma once
#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>

#include <cstdint>
#include <string>
#include <vector>

namespace localsft {

namespace py = pybind11;

template <typename T>
using Array = py::array_t<T, py::array::c_style>;

template <typename T>
Array<T> to_array(const std::vector<T>& values) {
  return Array<T>(py::ssize_t(values.size()), values.data());
}

// n parts of `total` items, laid end to end: starts (n+1,) from 0 to total, each part with at least `least` items (0 or
// 1). Raises ValueError.
inline void check_starts(const char* op, const Array<int64_t>& starts, int64_t total, int64_t least) {
  const std::string head = std::string(op) + ": ";
  if (starts.ndim() != 1 || starts.size() < 1) throw py::value_error(head + "starts must be (n+1,)");
  const int64_t n = starts.size() - 1;
  if (starts.at(0) != 0 || starts.at(n) != total)
    throw py::value_error(head + "starts must go from 0 to " + std::to_string(total));
  for (int64_t i = 0; i < n; ++i)
    if (starts.at(i + 1) < starts.at(i) + least)
      throw py::value_error(head + "part " + std::to_string(i) + (least ? " is empty" : " ends before it starts"));
}

}  // namespace localsft
