// Python's view of ops_attention.h.
#include <pybind11/stl.h>

#include <variant>
#include <vector>

#include "arguments.h"
#include "bindings.h"
#include "ops_attention.h"

namespace localsft {

using py::arg;
using py::array;

namespace {

kernels::AttentionShape shape_of(const Arguments& args, const array& q, int64_t heads, int64_t kv_heads, double scale,
                                 int64_t window, double softcap) {
  const int64_t width = args.dim(q, "q", 1, 2);
  args.require(heads > 0 && width % (2 * heads) == 0, "heads", "must divide q's columns into heads of even size");
  args.require(kv_heads > 0 && heads % kv_heads == 0, "kv_heads", "must divide heads");
  args.require(scale > 0, "scale", "must be above 0");
  args.require(window >= 0, "window", "must be at least 0");
  args.require(softcap >= 0, "softcap", "must be at least 0");
  return {heads, kv_heads, width / heads, static_cast<float>(scale), static_cast<float>(softcap), window};
}

Segments segments_of(const Arguments& args, const array& starts, const array& parents, int64_t T) {
  const int64_t S = args.dim(parents, "segment_parents", 0, 1);
  const int32_t* starts_ = args.in<int32_t>(starts, "segment_starts", {S + 1});
  const int32_t* parents_ = args.in<int32_t>(parents, "segment_parents", {S});
  args.require(starts_[0] == 0 && starts_[S] == T, "segment_starts", "must run from 0 to " + std::to_string(T));
  for (int64_t s = 0; s < S; ++s) {
    args.require(starts_[s] <= starts_[s + 1], "segment_starts", "must rise");
    args.require(parents_[s] >= -1 && parents_[s] < s, "segment_parents", "must be -1 or an earlier segment");
  }
  return {starts_, parents_, S};
}

const int32_t* ascending_rows(const Arguments& args, const array& q_rows, int64_t Mq, int64_t T) {
  const int32_t* rows = args.rows(q_rows, "q_rows", Mq, T);
  for (int64_t i = 1; i < Mq; ++i) args.require(rows[i - 1] <= rows[i], "q_rows", "must be ascending");
  return rows;
}

void attention_of_python(Context& ctx, const array& q, const array& k, const array& v, const array& q_rows,
                         const array& segment_starts, const array& segment_parents, array out, array lse, int64_t heads,
                         int64_t kv_heads, double scale, int64_t window, double softcap) {
  const Arguments args("attention", ctx);
  const kernels::AttentionShape shape = shape_of(args, q, heads, kv_heads, scale, window, softcap);
  const int64_t Mq = args.dim(q, "q", 0, 2), T = args.dim(k, "k", 0, 2), kv_width = kv_heads * shape.E;
  const Segments segments = segments_of(args, segment_starts, segment_parents, T);
  const int32_t* rows = ascending_rows(args, q_rows, Mq, T);
  const void* q_ = args.act(q, "q", {Mq, heads * shape.E});
  const void* k_ = args.act(k, "k", {T, kv_width});
  const void* v_ = args.act(v, "v", {T, kv_width});
  void* out_ = args.act_out(out, "out", {Mq, heads * shape.E});
  float* lse_ = args.out<float>(lse, "lse", {Mq, heads});
  py::gil_scoped_release release;
  attention(ctx, shape, segments, q_, k_, v_, rows, Mq, out_, lse_);
}

void attention_backward_of_python(Context& ctx, const array& q, const array& k, const array& v, const array& out,
                                  const array& lse, const array& d_out, const array& q_rows,
                                  const array& segment_starts, const array& segment_parents, array dq, array dk,
                                  array dv, int64_t heads, int64_t kv_heads, double scale, int64_t window,
                                  double softcap) {
  const Arguments args("attention_backward", ctx);
  const kernels::AttentionShape shape = shape_of(args, q, heads, kv_heads, scale, window, softcap);
  const int64_t Mq = args.dim(q, "q", 0, 2), T = args.dim(k, "k", 0, 2), width = heads * shape.E,
                kv_width = kv_heads * shape.E;
  const Segments segments = segments_of(args, segment_starts, segment_parents, T);
  const int32_t* rows = ascending_rows(args, q_rows, Mq, T);
  const void* q_ = args.act(q, "q", {Mq, width});
  const void* k_ = args.act(k, "k", {T, kv_width});
  const void* v_ = args.act(v, "v", {T, kv_width});
  const void* out_ = args.act(out, "out", {Mq, width});
  const float* lse_ = args.in<float>(lse, "lse", {Mq, heads});
  const void* d_out_ = args.act(d_out, "d_out", {Mq, width});
  void* dq_ = args.act_out(dq, "dq", {Mq, width});
  void* dk_ = args.act_out(dk, "dk", {T, kv_width});
  void* dv_ = args.act_out(dv, "dv", {T, kv_width});
  py::gil_scoped_release release;
  attention_backward(ctx, shape, segments, q_, k_, v_, out_, lse_, d_out_, rows, Mq, dq_, dk_, dv_);
}

using Cache = std::variant<array, std::vector<array>>;

// One (capacity, kv_width) array a row, or one (B, capacity, kv_width) array -> a pointer a row; lengths must fit.
std::vector<const void*> cache_rows(const Arguments& args, const Cache& cache, const char* name, int64_t B,
                                    int64_t kv_width, const int32_t* lengths) {
  std::vector<const void*> rows;
  const auto check = [&](int64_t b, int64_t capacity) {
    args.require(lengths[b] <= capacity, name,
                 "holds " + std::to_string(capacity) + " tokens, fewer than lengths says");
  };
  if (const auto* whole = std::get_if<array>(&cache)) {
    const int64_t capacity = args.dim(*whole, name, 1, 3);
    const auto* base = static_cast<const char*>(args.act(*whole, name, {B, capacity, kv_width}));
    for (int64_t b = 0; b < B; ++b) {
      check(b, capacity);
      rows.push_back(base + b * capacity * kv_width * whole->itemsize());
    }
    return rows;
  }
  const auto& list = std::get<std::vector<array>>(cache);
  args.require(int64_t(list.size()) == B, name, "must have one array for each row of q");
  for (int64_t b = 0; b < B; ++b) {
    const int64_t capacity = args.dim(list[size_t(b)], name, 0, 2);
    rows.push_back(args.act(list[size_t(b)], name, {capacity, kv_width}));
    check(b, capacity);
  }
  return rows;
}

void attention_decode_of_python(Context& ctx, const array& q, const Cache& k_cache, const Cache& v_cache,
                                const array& lengths, array out, int64_t heads, int64_t kv_heads, double scale,
                                int64_t window, double softcap) {
  const Arguments args("attention_decode", ctx);
  const kernels::AttentionShape shape = shape_of(args, q, heads, kv_heads, scale, window, softcap);
  const int64_t B = args.dim(q, "q", 0, 2), width = heads * shape.E;
  const float* q_ = args.in<float>(q, "q", {B, width});
  const int32_t* lengths_ = args.in<int32_t>(lengths, "lengths", {B});
  for (int64_t b = 0; b < B; ++b) args.require(lengths_[b] >= 1, "lengths", "must be at least 1");
  const auto k_ = cache_rows(args, k_cache, "k_cache", B, kv_heads * shape.E, lengths_);
  const auto v_ = cache_rows(args, v_cache, "v_cache", B, kv_heads * shape.E, lengths_);
  float* out_ = args.out<float>(out, "out", {B, width});
  py::gil_scoped_release release;
  attention_decode(ctx, shape, q_, k_.data(), v_.data(), lengths_, B, out_);
}

}  // namespace

void bind_attention(py::module_& m) {
  m.def("attention", attention_of_python, arg("ctx"), arg("q"), arg("k"), arg("v"), arg("q_rows"),
        arg("segment_starts"), arg("segment_parents"), arg("out"), arg("lse"), arg("heads"), arg("kv_heads"),
        arg("scale"), arg("window") = 0, arg("softcap") = 0.0,
        "Attention over a forest of segments: q act (Mq, H·E) of the tokens q_rows (Mq,), k and v act (T, K·E) -> out "
        "act (Mq, H·E), "
        "lse float32 (Mq, H). A token sees its own segment causally and all tokens of its ancestors; with a window, "
        "only the last "
        "`window` positions of its path.");
  m.def("attention_backward", attention_backward_of_python, arg("ctx"), arg("q"), arg("k"), arg("v"), arg("out"),
        arg("lse"), arg("d_out"), arg("q_rows"), arg("segment_starts"), arg("segment_parents"), arg("dq"), arg("dk"),
        arg("dv"), arg("heads"), arg("kv_heads"), arg("scale"), arg("window") = 0, arg("softcap") = 0.0,
        "The gradients of attention: dq act (Mq, H·E), dk and dv act (T, K·E), overwritten; 0 for keys that no query "
        "sees.");
  m.def("attention_decode", attention_decode_of_python, arg("ctx"), arg("q"), arg("k_cache"), arg("v_cache"),
        arg("lengths"), arg("out"), arg("heads"), arg("kv_heads"), arg("scale"), arg("window") = 0,
        arg("softcap") = 0.0,
        "One token a row, q float32 (B, H·E), against the first lengths[b] tokens of its cache, act (B, capacity, K·E) "
        "or a list of "
        "(capacity, K·E) -> out float32 (B, H·E).");
}

}  // namespace localsft
