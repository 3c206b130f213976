// Checks of what Python passes in: every array's dtype, layout and shape, before a pointer leaves this file.
// Only the bind*.cc files include it.
#pragma once
#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>

#include <cstdint>
#include <initializer_list>
#include <string>

#include "context.h"

namespace localsft {

namespace py = pybind11;

// The arguments of one call of operation `op`. A wrong dtype raises TypeError, a wrong shape ValueError; the message
// names the operation and the argument. `act` arrays are uint16 (bfloat16 bits) or float32, as the context's ISA stores
// them.
class Arguments {
 public:
  using Shape = std::initializer_list<int64_t>;

  Arguments(const char* op, const Context& ctx) : op_(op), act_bf16_(ctx.kernels.act_bf16) {}

  // The length of one axis of an array that must have `ndim` axes.
  int64_t dim(const py::array& a, const char* name, int axis, int ndim) const {
    if (a.ndim() != ndim) fail(name, "has " + std::to_string(a.ndim()) + " axes, expected " + std::to_string(ndim));
    return a.shape(axis);
  }

  template <typename T>
  const T* in(const py::array& a, const char* name, Shape shape) const {
    check_dtype<T>(a, name);
    check_shape(a, name, shape);
    return static_cast<const T*>(a.data());
  }
  template <typename T>
  T* out(py::array& a, const char* name, Shape shape) const {
    check_dtype<T>(a, name);
    check_shape(a, name, shape);
    check_writeable(a, name);
    return static_cast<T*>(a.mutable_data());
  }

  bool is_act(const py::array& a) const {
    return act_bf16_ ? py::isinstance<py::array_t<uint16_t>>(a) : py::isinstance<py::array_t<float>>(a);
  }
  const void* act(const py::array& a, const char* name, Shape shape) const {
    check_act(a, name);
    check_shape(a, name, shape);
    return a.data();
  }
  void* act_out(py::array& a, const char* name, Shape shape) const {
    check_act(a, name);
    check_shape(a, name, shape);
    check_writeable(a, name);
    return a.mutable_data();
  }

  // Row numbers (M,), each in [0, limit).
  const int32_t* rows(const py::array& a, const char* name, int64_t count, int64_t limit) const {
    const int32_t* rows = in<int32_t>(a, name, {count});
    for (int64_t i = 0; i < count; ++i)
      if (rows[i] < 0 || rows[i] >= limit)
        fail(name, "holds row " + std::to_string(rows[i]) + ", outside [0, " + std::to_string(limit) + ")");
    return rows;
  }

  void require(bool holds, const char* name, const std::string& rule) const {
    if (!holds) fail(name, rule);
  }
  [[noreturn]] void fail(const char* name, const std::string& what) const {
    throw py::value_error(std::string(op_) + ": " + name + " " + what);
  }
  [[noreturn]] void fail_type(const char* name, const std::string& what) const {
    throw py::type_error(std::string(op_) + ": " + name + " " + what);
  }

 private:
  static std::string dtype_name(const py::array& a) { return py::str(py::handle(a.dtype())); }

  template <typename T>
  void check_dtype(const py::array& a, const char* name) const {
    if (!py::isinstance<py::array_t<T>>(a))
      fail_type(name, "is " + dtype_name(a) + ", expected " + std::string(py::str(py::handle(py::dtype::of<T>()))));
  }
  void check_act(const py::array& a, const char* name) const {
    if (!is_act(a))
      fail_type(name, "is " + dtype_name(a) + ", expected " + (act_bf16_ ? "uint16 (bfloat16 bits)" : "float32"));
  }
  void check_shape(const py::array& a, const char* name, Shape shape) const {
    bool same = a.ndim() == py::ssize_t(shape.size());
    int axis = 0;
    if (same)
      for (int64_t n : shape) same = same && a.shape(axis++) == n;
    if (!same)
      fail(name,
           "has shape " + text(a.shape(), a.shape() + a.ndim()) + ", expected " + text(shape.begin(), shape.end()));
    if (!(a.flags() & py::array::c_style)) fail(name, "is not C-contiguous");
  }
  void check_writeable(const py::array& a, const char* name) const {
    if (!a.writeable()) fail(name, "is read-only");
  }
  template <typename I>
  static std::string text(I begin, I end) {
    std::string s = "(";
    for (I i = begin; i != end; ++i) s += (i == begin ? "" : ", ") + std::to_string(*i);
    return s + ")";
  }

  const char* op_;
  const bool act_bf16_;
};

}  // namespace localsft
