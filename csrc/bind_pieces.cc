// Python's view of pieces.h.
#include <string>

#include "arrays.h"
#include "bindings.h"
#include "pieces.h"

namespace localsft {

void bind_pieces(py::module_& m) {
  m.def(
      "text_pieces",
      [](const Array<uint32_t>& codes, const Array<int64_t>& starts, int64_t length) {
        if (codes.ndim() != 1) throw py::value_error("text_pieces: codes must be (total,)");
        if (length < 1) throw py::value_error("text_pieces: length must be at least 1");
        check_starts("text_pieces", starts, codes.size(), 0);
        const uint32_t* data = codes.data();
        const int64_t* from = starts.data();
        const int64_t n = starts.size() - 1;
        Sets sets;
        {
          py::gil_scoped_release release;
          sets = text_pieces(data, from, n, length);
        }
        return py::make_tuple(to_array(sets.members), to_array(sets.starts));
      },
      py::arg("codes"), py::arg("starts"), py::arg("length"),
      "Hashes uint32 (P,) of the pieces of n texts, ascending and once each, and where each text's start, int64 "
      "(n+1,).");
  m.def(
      "jaccard",
      [](const Array<uint32_t>& members, const Array<int64_t>& starts, const Array<int64_t>& one,
         const Array<int64_t>& other) {
        if (members.ndim() != 1 || one.ndim() != 1 || other.ndim() != 1 || one.size() != other.size())
          throw py::value_error("jaccard: members must be (P,), one and other (m,) both");
        check_starts("jaccard", starts, members.size(), 0);
        const int64_t m = one.size(), n = starts.size() - 1;
        for (int64_t k = 0; k < m; ++k)
          if (one.at(k) < 0 || one.at(k) >= n || other.at(k) < 0 || other.at(k) >= n)
            throw py::value_error("jaccard: pair " + std::to_string(k) + " names a set that is not there");
        Array<float> out(m);
        float* result = out.mutable_data();
        const uint32_t* data = members.data();
        const int64_t *from = starts.data(), *left = one.data(), *right = other.data();
        py::gil_scoped_release release;
        jaccard(data, from, left, right, m, result);
        return out;
      },
      py::arg("members"), py::arg("starts"), py::arg("one"), py::arg("other"),
      "Jaccard similarity float32 (m,) of the sets one[k] and other[k].");
  m.def(
      "nearest_sets",
      [](const Array<uint32_t>& members, const Array<int64_t>& starts, int64_t base, const Array<float>& weights,
         const Array<int64_t>& queries, float threshold, int64_t enough) {
        if (members.ndim() != 1 || queries.ndim() != 1 || weights.ndim() != 1)
          throw py::value_error("nearest_sets: members must be (P,), weights (V,), queries (q,)");
        check_starts("nearest_sets", starts, members.size(), 0);
        const int64_t n = starts.size() - 1, q = queries.size();
        int shift = 32;
        while (shift > 8 && int64_t(1) << (32 - shift) < weights.size()) --shift;
        if (int64_t(1) << (32 - shift) != weights.size())
          throw py::value_error("nearest_sets: weights must be (V,) with V a power of two up to 2^24");
        if (shift == 32) throw py::value_error("nearest_sets: weights must be at least 2");
        if (base < 0 || base > n) throw py::value_error("nearest_sets: base must be at most the number of sets");
        if (enough < 0) throw py::value_error("nearest_sets: enough must not be negative");
        for (int64_t k = 0; k < q; ++k)
          if (queries.at(k) < 0 || queries.at(k) >= n)
            throw py::value_error("nearest_sets: query " + std::to_string(k) + " names a set that is not there");
        const uint32_t* data = members.data();
        const int64_t *from = starts.data(), *asked = queries.data();
        const float* weight = weights.data();
        Nearest nearest;
        {
          py::gil_scoped_release release;
          nearest = nearest_sets(data, from, base, shift, weight, asked, q, threshold, enough);
        }
        return py::make_tuple(to_array(nearest.best), to_array(nearest.found_query), to_array(nearest.found_set));
      },
      py::arg("members"), py::arg("starts"), py::arg("base"), py::arg("weights"), py::arg("queries"),
      py::arg("threshold"), py::arg("enough"),
      "Highest cosine float32 (q,) of each query among the first `base` sets, and the pairs (place of the query, set) "
      "int64 (f,) (f,) of cosines >= threshold, at most `enough` (0: all) for a query, which is searched no further "
      "then. A member counts as the term member >> (32 - log2 V), with weights float32 (V,).");
}

}  // namespace localsft
