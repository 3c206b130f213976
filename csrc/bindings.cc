// The Python module. This and the bind_*.cc files are the only ones that know pybind11: check shapes and dtypes
// (arguments.h), release the GIL, call once.
#include "bindings.h"

#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include "context.h"

namespace py = pybind11;
using localsft::Context;

namespace {

template <typename T>
using Array = py::array_t<T, py::array::c_style>;

}  // namespace

PYBIND11_MODULE(_core, m) {
  m.doc() = "The CPU kernels of localsft.";
  m.def("available_isas", &localsft::available_isas,
        "ISAs that this build has and this machine can run, oldest first.");
  m.def(
      "isa_rates",
      [] {
        py::dict rates;
        for (const auto& rate : localsft::isa_rates()) rates[rate.isa.c_str()] = rate.flops;
        return rates;
      },
      "FLOP/s of each available ISA's register tile on one thread, measured once in a process.");
  m.def("fastest_isa", &localsft::fastest_isa,
        "The ISA of a Context that is given none, where LOCALSFT_ISA is not set.");

  py::class_<Context>(m, "Context", "The kernels of one ISA and a pool of threads.")
      .def(py::init([](const std::string& isa, int threads) {
             if (threads < 1) throw std::invalid_argument("threads must be at least 1");
             return new Context(isa, threads);
           }),
           py::arg("isa") = "", py::arg("threads") = 1)
      .def_property_readonly("isa", [](const Context& c) { return std::string(c.kernels.name); })
      .def_property_readonly("threads", [](const Context& c) { return c.pool.size(); })
      .def_property_readonly("act_bf16", [](const Context& c) { return c.kernels.act_bf16; })
      .def_property_readonly("scratch_bytes", [](const Context& c) { return c.scratch.bytes(); });

  m.def("exp", [](Context& c, const Array<float>& x) {
    Array<float> out(x.size());
    const float* in = x.data();
    float* result = out.mutable_data();
    const int64_t n = x.size();
    py::gil_scoped_release release;
    c.kernels.element.exp(in, result, n);
    return out;
  });

  localsft::bind_attention(m);
  localsft::bind_elements(m);
  localsft::bind_decode(m);
  localsft::bind_linear(m);
  localsft::bind_pack(m);
  localsft::bind_pieces(m);
  localsft::bind_spans(m);
}
