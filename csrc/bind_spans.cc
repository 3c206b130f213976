// Python's view of spans.h.
#include <pybind11/stl.h>

#include <string>
#include <string_view>
#include <tuple>
#include <utility>

#include "bindings.h"
#include "spans.h"

namespace localsft {

namespace py = pybind11;

namespace {

// The UTF-8 of a str, which owns it. Raises TypeError, and UnicodeEncodeError for a lone surrogate.
std::string_view utf8(py::handle text) {
  Py_ssize_t size = 0;
  const char* data = PyUnicode_AsUTF8AndSize(text.ptr(), &size);
  if (!data) throw py::error_already_set();
  return {data, size_t(size)};
}

py::list to_list(const std::vector<std::string>& texts) {
  py::list out(texts.size());
  for (size_t i = 0; i < texts.size(); ++i) out[i] = py::str(texts[i]);
  return out;
}

using ControlRow = std::tuple<std::string, int32_t, bool, bool>;

}  // namespace

void bind_spans(py::module_& m) {
  py::class_<SpanEncoder>(m, "SpanEncoder")
      .def(py::init([](const std::vector<ControlRow>& rows, std::vector<std::string> fixed) {
             std::vector<ControlText> controls;
             for (const auto& [text, id, lstrip, rstrip] : rows) controls.push_back({text, id, lstrip, rstrip});
             return SpanEncoder(std::move(controls), std::move(fixed));
           }),
           py::arg("controls"), py::arg("fixed"))
      .def(
          "encode",
          [](SpanEncoder& self, const py::list& texts, bool control, const std::string& guard) {
            py::list out(texts.size());
            std::string ids;
            for (size_t i = 0; i < texts.size(); ++i) {
              ids.clear();
              const bool known = self.encode(utf8(texts[i]), control, guard, ids);
              out[i] = known ? py::object(py::bytes(ids)) : py::none();
            }
            SpanEncoder::Missing missing = self.take_missing();
            return py::make_tuple(out, to_list(missing.heads), to_list(missing.tails));
          },
          py::arg("texts"), py::arg("control"), py::arg("guard") = "",
          "The ids of each text as bytes of int32, None where a piece is not known; the heads and the tails to learn.")
      .def(
          "learn",
          [](SpanEncoder& self, bool tail, const py::list& pieces, const py::list& ids) {
            if (pieces.size() != ids.size()) throw py::value_error("learn: as many ids as pieces");
            for (size_t i = 0; i < pieces.size(); ++i) self.learn(tail, utf8(pieces[i]), py::bytes(ids[i]));
          },
          py::arg("tail"), py::arg("pieces"), py::arg("ids"))
      .def("trim", &SpanEncoder::trim);
  m.def(
      "split_at_spaces",
      [](const py::str& text) {
        py::list out;
        split_at_spaces(utf8(text), [&](std::string_view piece) { out.append(py::str(piece.data(), piece.size())); });
        return out;
      },
      py::arg("text"), "The pieces between single spaces that have no whitespace beside them, at least one.");
}

}  // namespace localsft
