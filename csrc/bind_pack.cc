// Python's view of pack.h.
#include <string>

#include "arrays.h"
#include "bindings.h"
#include "pack.h"

namespace localsft {

void bind_pack(py::module_& m) {
  m.def(
      "pack_lengths",
      [](const Array<int64_t>& lengths, int64_t capacity) {
        if (lengths.ndim() != 1) throw py::value_error("pack_lengths: lengths must be (n,)");
        if (capacity < 1) throw py::value_error("pack_lengths: capacity must be at least 1");
        const int64_t n = lengths.size();
        const int64_t* data = lengths.data();
        for (int64_t i = 0; i < n; ++i)
          if (data[i] < 1 || data[i] > INT32_MAX)
            throw py::value_error("pack_lengths: length " + std::to_string(data[i]) + " is not in [1, 2^31)");
        std::vector<int64_t> bins;
        {
          py::gil_scoped_release release;
          bins = pack_lengths(data, n, capacity);
        }
        return to_array(bins);
      },
      py::arg("lengths"), py::arg("capacity"),
      "Best-fit decreasing: the bin int64 (n,) of each length. A length above the capacity gets a bin of its own.");

  py::class_<Forest>(m, "Forest", "A forest of segments over token sequences, in which a common prefix exists once.")
      .def_property_readonly("begins", [](const Forest& f) { return to_array(f.begins); })
      .def_property_readonly("ends", [](const Forest& f) { return to_array(f.ends); })
      .def_property_readonly("parents", [](const Forest& f) { return to_array(f.parents); })
      .def_property_readonly("last", [](const Forest& f) { return to_array(f.last); })
      .def(
          "rows",
          [](const Forest& f, const Array<int64_t>& starts) {
            const int64_t n = int64_t(f.last.size());
            if (starts.ndim() != 1 || starts.size() != n + 1)
              throw py::value_error("Forest.rows: starts must be (n+1,)");
            check_starts("Forest.rows", starts, starts.at(n), 1);
            for (int64_t i = 0; i < n; ++i) {
              const int64_t length = starts.at(i + 1) - starts.at(i);
              const auto last = size_t(f.last[size_t(i)]);
              if (length <= f.begins[last] || length > f.ends[last])
                throw py::value_error("Forest.rows: sequence " + std::to_string(i) +
                                      " has another length in the forest");
            }
            Array<int64_t> rows(starts.at(n));
            forest_rows(f, starts.data(), rows.mutable_data());
            return rows;
          },
          py::arg("starts"),
          "The row int64 (total,) of each token where the segments lie one after the other, of sequence i in "
          "[starts[i], starts[i+1]).")
      .def(
          "pack",
          [](const Forest& f, int64_t capacity) {
            if (capacity < 1) throw py::value_error("Forest.pack: capacity must be at least 1");
            std::vector<int64_t> bins;
            {
              py::gil_scoped_release release;
              bins = pack_forest(f, capacity);
            }
            return to_array(bins);
          },
          py::arg("capacity"),
          "The bin int64 (n,) of each sequence, so that a bin's forest has at most `capacity` tokens.");
  m.def(
      "prefix_forest",
      [](const Array<int32_t>& tokens, const Array<int64_t>& starts, int64_t min_shared) {
        if (tokens.ndim() != 1) throw py::value_error("prefix_forest: tokens must be (total,)");
        check_starts("prefix_forest", starts, tokens.size(), 1);
        const int32_t* ids = tokens.data();
        const int64_t* from = starts.data();
        const int64_t n = starts.size() - 1;
        py::gil_scoped_release release;
        return prefix_forest(ids, from, n, min_shared);
      },
      py::arg("tokens"), py::arg("starts"), py::arg("min_shared"),
      "The Forest of n sequences: sequence i is tokens[starts[i]:starts[i+1]].");
}

}  // namespace localsft
