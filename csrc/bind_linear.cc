// Python's view of ops_linear.h and ops_head.h, and of the weights they read.
#include <pybind11/stl.h>

#include <optional>
#include <vector>

#include "ahead.h"
#include "arguments.h"
#include "bind_weights.h"
#include "bindings.h"
#include "ops_head.h"
#include "ops_linear.h"
#include "panels.h"

namespace localsft {

using py::arg;
using py::array;

// The weights of a group and their adapters; all must read K columns.
std::vector<Member> members(const Arguments& args, const Weights& weights, const MaybeArrays& lora_a,
                            const MaybeArrays& lora_b, const std::vector<float>& scales, int64_t K) {
  const size_t n = weights.size();
  args.require(n > 0, "weights", "is empty");
  args.require(lora_a.size() == n && lora_b.size() == n && scales.size() == n, "lora_a, lora_b, scales",
               "must be as many as weights");
  std::vector<Member> group(n);
  for (size_t i = 0; i < n; ++i) {
    Member& member = group[i];
    args.require(weights[i] != nullptr, "weights", "holds None");
    member.weight = weights[i]->matrix;
    args.require(member.weight.columns == K, "weights", "must have as many columns as x");
    args.require(lora_a[i].has_value() == lora_b[i].has_value(), "lora_a, lora_b",
                 "must both be given or both be None");
    if (!lora_a[i].has_value()) continue;
    Adapter& adapter = member.adapter;
    adapter.rank = args.dim(*lora_a[i], "lora_a", 0, 2);
    adapter.a = args.in<float>(*lora_a[i], "lora_a", {adapter.rank, K});
    adapter.b = args.in<float>(*lora_b[i], "lora_b", {adapter.rank, member.weight.rows});
    adapter.scale = scales[i];
  }
  return group;
}

namespace {

[[noreturn]] void fail(const char* op, const std::string& what) {
  throw py::value_error(std::string(op) + ": " + what);
}

// float32, float16, or uint16 holding bfloat16 bits.
Kind float_kind(const char* op, const char* name, const array& a, bool bf16) {
  if (!(a.flags() & array::c_style)) fail(op, std::string(name) + " is not C-contiguous");
  if (a.ndim() != 2) fail(op, std::string(name) + " must have 2 axes");
  if (bf16 && py::isinstance<py::array_t<uint16_t>>(a)) return Kind::BF16;
  if (!bf16 && py::isinstance<py::array_t<float>>(a)) return Kind::F32;
  if (!bf16 && a.dtype().kind() == 'f' && a.itemsize() == 2) return Kind::F16;
  throw py::type_error(std::string(op) + ": " + name + " must be float32, float16, or uint16 with the bf16 flag");
}

Weight weight_of(Matrix m, Arrays arrays) {
  auto panels = std::make_shared<WeightPanels>();
  m.kept = &panels->kept;
  return {m, std::move(arrays), std::move(panels)};
}

Weight dense_weight(const array& data, bool bf16) {
  const Kind kind = float_kind("dense_weight", "array", data, bf16);
  return weight_of(dense(kind, data.data(), data.shape(0), data.shape(1)), {data});
}

Weight affine_weight(const array& packed, const array& scales, const array& biases, int bits, int group_size,
                     bool bf16_scales) {
  const char* op = "affine_weight";
  if (!py::isinstance<py::array_t<uint32_t>>(packed)) throw py::type_error("affine_weight: packed must be uint32");
  if (packed.ndim() != 2 || !(packed.flags() & array::c_style)) fail(op, "packed must be C-contiguous with 2 axes");
  if (bits < 2 || bits > 8) fail(op, "bits must be 2 to 8");
  if (group_size < 16 || group_size > 1024 || (group_size & (group_size - 1)) != 0)
    fail(op, "group_size must be a power of two from 16 to 1024");
  const int64_t n = packed.shape(0), k = packed.shape(1) * 32 / bits;
  if (packed.shape(1) * 32 % bits != 0 || k % group_size != 0) fail(op, "a row of packed does not hold whole groups");
  const Kind kind = float_kind(op, "scales", scales, bf16_scales);
  if (float_kind(op, "biases", biases, bf16_scales) != kind)
    throw py::type_error("affine_weight: biases and scales differ in dtype");
  for (const array* a : {&scales, &biases})
    if (a->shape(0) != n || a->shape(1) != k / group_size)
      fail(op, "scales and biases must have shape (N, K / group_size)");
  Matrix m = dense(Kind::AFFINE, packed.data(), n, k);
  m.scales = scales.data();
  m.biases = biases.data();
  m.scale_kind = kind;
  m.bits = bits;
  while ((1 << m.group_log2) < group_size) ++m.group_log2;
  return weight_of(m, {packed, scales, biases});
}

// No arrays at all stand for None for each.
MaybeArrays or_none(const MaybeArrays& arrays, size_t n) { return arrays.empty() ? MaybeArrays(n) : arrays; }

Linears linears(const Context& ctx, const Weights& weights, const MaybeArrays& lora_a, const MaybeArrays& lora_b,
                const std::vector<float>& scales, const MaybeArrays& d_lora_a, const MaybeArrays& d_lora_b) {
  const Arguments args("linears", ctx);
  const size_t n = weights.size();
  args.require(n > 0 && weights[0] != nullptr, "weights", "is empty or holds None");
  const int64_t K = weights[0]->matrix.columns;
  const MaybeArrays a = or_none(lora_a, n), b = or_none(lora_b, n);
  MaybeArrays d_a = or_none(d_lora_a, n), d_b = or_none(d_lora_b, n);
  args.require(d_a.size() == n && d_b.size() == n, "d_lora_a, d_lora_b", "must be as many as weights");
  Linears group{members(args, weights, a, b, scales.empty() ? std::vector<float>(n) : scales, K),
                K,
                0,
                !d_lora_a.empty(),
                {},
                {}};
  for (size_t i = 0; i < n; ++i) {
    for (const array& part : weights[i]->arrays) group.arrays.push_back(part);
    group.panels.push_back(weights[i]->panels);
    Adapter& adapter = group.members[i].adapter;
    const bool adapted = adapter.rank > 0, gradients = adapted && group.trainable;
    args.require(d_a[i].has_value() == gradients && d_b[i].has_value() == gradients, "d_lora_a, d_lora_b",
                 "must be given for all adapters or for none");
    if (adapted) group.arrays.insert(group.arrays.end(), {*a[i], *b[i]});
    group.rank += adapter.rank;
    if (!gradients) continue;
    adapter.d_a = args.out<float>(*d_a[i], "d_lora_a", {adapter.rank, K});
    adapter.d_b = args.out<float>(*d_b[i], "d_lora_b", {adapter.rank, group.members[i].weight.rows});
    group.arrays.insert(group.arrays.end(), {*d_a[i], *d_b[i]});
  }
  return group;
}

// An output that is act or float32; only float32 may be added to.
Out output(const Arguments& args, array& a, const char* name, int64_t rows, int64_t columns, bool add) {
  if (py::isinstance<py::array_t<float>>(a)) return {args.out<float>(a, name, {rows, columns}), columns, false, add};
  args.require(!add, name, "must be float32 when add is true");
  return {args.act_out(a, name, {rows, columns}), columns, true, false};
}

// Addresses, one in each cache line that is fetched ahead of packing these rows and columns.
std::vector<uintptr_t> lines_ahead(const Weight& weight, int64_t row, int64_t rows, int64_t begin, int64_t end) {
  AheadQueue queue;
  queue.add(weight.matrix, row, rows, begin, end);
  std::vector<uintptr_t> lines;
  while (kernels::Ahead* ahead = queue.next())
    for (; ahead->count > 0; --ahead->count, ahead->at += ahead->stride)
      lines.push_back(reinterpret_cast<uintptr_t>(ahead->at));
  return lines;
}

void bind_weights(py::module_& m) {
  py::class_<Weight>(m, "Weight", "A matrix (N, K) to multiply with: a view that keeps its arrays alive.")
      .def("lines_ahead", &lines_ahead, arg("row"), arg("rows"), arg("begin"), arg("end"),
           "An address in each cache line that is fetched before the rows [row, row + rows) over the columns [begin, "
           "end) are packed: what a test can see of it, since a wrong one would only cost time.")
      .def(
          "panel_units", [](const Weight& w, const Context& ctx) { return panel_units(ctx, w.matrix); }, arg("ctx"),
          "How many uint32 keep_panels takes.")
      .def(
          "keep_panels",
          [](Weight& w, Context& ctx, array units) {
            const Arguments args("keep_panels", ctx);
            auto* to = args.out<uint32_t>(units, "units", {panel_units(ctx, w.matrix)});
            w.panels->kept = {};
            kernels::KeptPanels kept;
            {
              py::gil_scoped_release release;
              kept = keep_panels(ctx, w.matrix, to);
            }
            *w.panels = {kept, std::move(units)};
          },
          arg("ctx"), arg("units"),
          "Packs the weight once for all training products with kernels of this ISA, also of Linears that exist "
          "already: the same results, without unpacking it each time. units uint32 (panel_units(ctx),) is kept alive; "
          "nobody else may write to it.")
      .def_property_readonly("shape", [](const Weight& w) { return py::make_tuple(w.matrix.rows, w.matrix.columns); });
  m.def("dense_weight", &dense_weight, arg("array"), arg("bf16") = false,
        "A weight (N, K) from float32, float16, or uint16 holding bfloat16 bits (bf16=True).");
  m.def("affine_weight", &affine_weight, arg("packed"), arg("scales"), arg("biases"), arg("bits"), arg("group_size"),
        arg("bf16_scales") = false,
        "A weight (N, K) = scale·q + bias per group of inputs; packed uint32 (N, K·bits/32), little-end first.");
}

void bind_linear_group(py::module_& m) {
  py::class_<Linears>(m, "Linears", "Linears that read the same input, with their adapters and their gradients.");
  m.def("linears", &linears, arg("ctx"), arg("weights"), arg("lora_a") = MaybeArrays(), arg("lora_b") = MaybeArrays(),
        arg("scales") = std::vector<float>(), arg("d_lora_a") = MaybeArrays(), arg("d_lora_b") = MaybeArrays(),
        "W_i (N_i, K) of each linear; lora_a[i] float32 (R_i, K), lora_b[i] float32 (R_i, N_i), or None; d_lora_a, "
        "d_lora_b of the same shapes take the gradients. The arrays are kept alive.");
  m.def(
      "linear_forward",
      [](Context& ctx, const array& x, const Linears& linears, Arrays outs, array u, bool add,
         const std::optional<array>& x_lora) {
        const Arguments args("linear_forward", ctx);
        const auto& group = linears.members;
        const int64_t M = args.dim(x, "x", 0, 2), K = linears.inputs;
        args.require(outs.size() == group.size(), "outs", "must be as many as linears");
        const void* x_ = args.act(x, "x", {M, K});
        const void* x_lora_ = x_lora ? args.act(*x_lora, "x_lora", {M, K}) : x_;
        float* u_ = args.out<float>(u, "u", {M, linears.rank});
        std::vector<Out> outs_;
        for (size_t i = 0; i < group.size(); ++i)
          outs_.push_back(output(args, outs[i], "outs", M, group[i].weight.rows, add));
        py::gil_scoped_release release;
        linear_forward(ctx, M, x_, x_lora_, group, u_, outs_);
      },
      arg("ctx"), arg("x"), arg("linears"), arg("outs"), arg("u"), arg("add"), arg("x_lora") = py::none(),
      "outs[i] (M, N_i), act or float32, (=|+=) x·W_iᵀ + scales[i]·u_i·lora_b[i]; u float32 (M, ΣR_i) = x_lora·lora_aᵀ "
      "of the adapted members side by side. x, x_lora act (M, K).");
  m.def(
      "linear_backward",
      [](Context& ctx, const Arrays& dys, const Linears& linears, const array& x, const array& u,
         std::optional<array> dx, bool add, std::optional<array> dx_lora) {
        const Arguments args("linear_backward", ctx);
        const auto& group = linears.members;
        const int64_t M = args.dim(x, "x", 0, 2), K = linears.inputs;
        args.require(linears.rank == 0 || linears.trainable, "linears", "has no place for the adapters' gradients");
        args.require(dys.size() == group.size(), "dys", "must be as many as linears");
        std::vector<const void*> dys_;
        for (size_t i = 0; i < group.size(); ++i) dys_.push_back(args.act(dys[i], "dys", {M, group[i].weight.rows}));
        const void* x_ = args.act(x, "x", {M, K});
        const float* u_ = args.in<float>(u, "u", {M, linears.rank});
        const Out dx_ = dx ? output(args, *dx, "dx", M, K, add) : Out{nullptr, K, false, false};
        float* dx_lora_ = dx_lora ? args.out<float>(*dx_lora, "dx_lora", {M, K}) : nullptr;
        py::gil_scoped_release release;
        linear_backward(ctx, M, dys_, group, x_, u_, dx_, dx_lora_);
      },
      arg("ctx"), arg("dys"), arg("linears"), arg("x"), arg("u"), arg("dx"), arg("add"), arg("dx_lora") = py::none(),
      "The mirror of linear_forward: the gradients of linears += theirs; dx (=|+=) Σ dy_i·W_i + Σ du_i·lora_a[i]; with "
      "dx_lora float32 (M, K) the second sum is written there instead.");
  m.def(
      "linear_decode",
      [](Context& ctx, const array& x, const Linears& linears, Arrays outs) {
        const Arguments args("linear_decode", ctx);
        const auto& group = linears.members;
        const int64_t M = args.dim(x, "x", 0, 2);
        args.require(M <= 16, "x", "must have at most 16 rows");
        args.require(outs.size() == group.size(), "outs", "must be as many as linears");
        const float* x_ = args.in<float>(x, "x", {M, linears.inputs});
        std::vector<float*> outs_;
        for (size_t i = 0; i < group.size(); ++i)
          outs_.push_back(args.out<float>(outs[i], "outs", {M, group[i].weight.rows}));
        py::gil_scoped_release release;
        linear_decode(ctx, M, x_, group, outs_);
      },
      arg("ctx"), arg("x"), arg("linears"), arg("outs"),
      "linear_forward for at most 16 float32 rows into float32, reading each packed weight once.");
  m.def(
      "embed",
      [](Context& ctx, const Weight& weight, const array& tokens, array out) {
        const Arguments args("embed", ctx);
        const int64_t T = args.dim(tokens, "tokens", 0, 1);
        const int32_t* tokens_ = args.rows(tokens, "tokens", T, weight.matrix.rows);
        float* out_ = args.out<float>(out, "out", {T, weight.matrix.columns});
        py::gil_scoped_release release;
        embed(ctx, weight.matrix, T, tokens_, out_);
      },
      arg("ctx"), arg("weight"), arg("tokens"), arg("out"), "out float32 (T, D) = rows tokens int32 (T,) of weight.");
}

void bind_peak(py::module_& m) {
  m.def("peak_flops", &peak_flops, arg("ctx"), py::call_guard<py::gil_scoped_release>(),
        "FLOP/s of multiply-accumulates on registers alone, on all threads: the ceiling of every product on this "
        "machine.");
}

void bind_head(py::module_& m) {
  m.def(
      "head_logits",
      [](Context& ctx, const array& x, const Weight& weight, array out) {
        const Arguments args("head_logits", ctx);
        const Matrix& w = weight.matrix;
        const int64_t M = args.dim(x, "x", 0, 2);
        const void* x_ = args.act(x, "x", {M, w.columns});
        float* out_ = args.out<float>(out, "out", {M, w.rows});
        py::gil_scoped_release release;
        head_logits(ctx, M, x_, w, out_);
      },
      arg("ctx"), arg("x"), arg("weight"), arg("out"), "out float32 (M, V) = x·Wᵀ, x act (M, D).");
  m.def(
      "head_loss",
      [](Context& ctx, const array& x, const Weight& weight, const array& target_ids, const array& target_weights,
         std::optional<array> dx) {
        const Arguments args("head_loss", ctx);
        const Matrix& w = weight.matrix;
        const int64_t N = args.dim(x, "x", 0, 2);
        const void* x_ = args.act(x, "x", {N, w.columns});
        const int32_t* targets = args.rows(target_ids, "target_ids", N, w.rows);
        const float* weights = args.in<float>(target_weights, "target_weights", {N});
        float* dx_ = dx ? args.out<float>(*dx, "dx", {N, w.columns}) : nullptr;
        py::gil_scoped_release release;
        return head_loss(ctx, N, x_, w, targets, weights, dx_);
      },
      arg("ctx"), arg("x"), arg("weight"), arg("target_ids"), arg("target_weights"), arg("dx"),
      "Σ weight·cross-entropy of the rows x act (N, D); dx float32 (N, D), if given, its gradient.");
  m.def(
      "head_score",
      [](Context& ctx, const array& x, const Weight& weight, const array& target_ids, array logprobs, array correct) {
        const Arguments args("head_score", ctx);
        const Matrix& w = weight.matrix;
        const int64_t N = args.dim(x, "x", 0, 2);
        const void* x_ = args.act(x, "x", {N, w.columns});
        const int32_t* targets = args.rows(target_ids, "target_ids", N, w.rows);
        float* logprobs_ = args.out<float>(logprobs, "logprobs", {N});
        uint8_t* correct_ = py::isinstance<py::array_t<bool>>(correct)
                                ? reinterpret_cast<uint8_t*>(args.out<bool>(correct, "correct", {N}))
                                : args.out<uint8_t>(correct, "correct", {N});
        py::gil_scoped_release release;
        head_score(ctx, N, x_, w, targets, logprobs_, correct_);
      },
      arg("ctx"), arg("x"), arg("weight"), arg("target_ids"), arg("logprobs"), arg("correct"),
      "logprobs float32 (N,) of the targets, correct bool (N,): the target is the first largest logit.");
}

}  // namespace

void bind_linear(py::module_& m) {
  bind_weights(m);
  bind_linear_group(m);
  bind_head(m);
  bind_peak(m);
}

}  // namespace localsft
