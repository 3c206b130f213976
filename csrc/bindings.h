// The groups of operations that bindings.cc puts together, one bind_*.cc file each. Only these files know pybind11.
#pragma once
#include <pybind11/pybind11.h>

namespace localsft {

void bind_attention(pybind11::module_& m);
void bind_decode(pybind11::module_& m);
void bind_elements(pybind11::module_& m);
void bind_linear(pybind11::module_& m);
void bind_pack(pybind11::module_& m);
void bind_pieces(pybind11::module_& m);
void bind_spans(pybind11::module_& m);

}  // namespace localsft
