// Python's view of ops_element.h.
#include "arguments.h"
#include "bindings.h"
#include "ops_element.h"

namespace localsft {

using py::arg;
using py::array;

namespace {

void bind_norms(py::module_& m) {
  m.def(
      "rms_norm",
      [](Context& ctx, const array& h, const array& weight, float eps, array saved, array rstd, array out) {
        const Arguments args("rms_norm", ctx);
        const int64_t M = args.dim(h, "h", 0, 2), D = args.dim(h, "h", 1, 2);
        const float* h_ = args.in<float>(h, "h", {M, D});
        const float* weight_ = args.in<float>(weight, "weight", {D});
        void* saved_ = args.act_out(saved, "saved", {M, D});
        float* rstd_ = args.out<float>(rstd, "rstd", {M});
        void* out_ = args.act_out(out, "out", {M, D});
        py::gil_scoped_release release;
        rms_norm(ctx, h_, weight_, eps, saved_, rstd_, out_, M, D);
      },
      arg("ctx"), arg("h"), arg("weight"), arg("eps"), arg("saved"), arg("rstd"), arg("out"),
      "h float32 (M, D), weight float32 (D,) -> saved act (M, D) = h rounded, rstd float32 (M,), out act (M, D) = "
      "saved·rstd·weight.");
  m.def(
      "rms_norm_again",
      [](Context& ctx, const array& saved, const array& weight, const array& rstd, array out) {
        const Arguments args("rms_norm_again", ctx);
        const int64_t M = args.dim(saved, "saved", 0, 2), D = args.dim(saved, "saved", 1, 2);
        const void* saved_ = args.act(saved, "saved", {M, D});
        const float* weight_ = args.in<float>(weight, "weight", {D});
        const float* rstd_ = args.in<float>(rstd, "rstd", {M});
        void* out_ = args.act_out(out, "out", {M, D});
        py::gil_scoped_release release;
        rms_norm_again(ctx, saved_, weight_, rstd_, out_, M, D);
      },
      arg("ctx"), arg("saved"), arg("weight"), arg("rstd"), arg("out"),
      "The out of rms_norm again, bitwise, from what it saved.");
  m.def(
      "rms_norm_backward",
      [](Context& ctx, const array& dy, const array& saved, const array& weight, const array& rstd, array dx) {
        const Arguments args("rms_norm_backward", ctx);
        const int64_t M = args.dim(dy, "dy", 0, 2), D = args.dim(dy, "dy", 1, 2);
        const void* dy_ = args.act(dy, "dy", {M, D});
        const void* saved_ = args.act(saved, "saved", {M, D});
        const float* weight_ = args.in<float>(weight, "weight", {D});
        const float* rstd_ = args.in<float>(rstd, "rstd", {M});
        float* dx_ = args.out<float>(dx, "dx", {M, D});
        py::gil_scoped_release release;
        rms_norm_backward(ctx, dy_, saved_, weight_, rstd_, dx_, M, D);
      },
      arg("ctx"), arg("dy"), arg("saved"), arg("weight"), arg("rstd"), arg("dx"),
      "dx float32 (M, D) += the gradient of rms_norm with respect to its input.");
  m.def(
      "rms_norm_f32",
      [](Context& ctx, const array& h, const array& weight, float eps, array out) {
        const Arguments args("rms_norm_f32", ctx);
        const int64_t M = args.dim(h, "h", 0, 2), D = args.dim(h, "h", 1, 2);
        const float* h_ = args.in<float>(h, "h", {M, D});
        const float* weight_ = args.in<float>(weight, "weight", {D});
        float* out_ = args.out<float>(out, "out", {M, D});
        py::gil_scoped_release release;
        rms_norm_f32(ctx, h_, weight_, eps, out_, M, D);
      },
      arg("ctx"), arg("h"), arg("weight"), arg("eps"), arg("out"),
      "RMS norm of float32 rows into float32, for decoding.");
}

void bind_rope_and_swiglu(py::module_& m) {
  m.def(
      "rope",
      [](Context& ctx, array x, const array& cos, const array& sin, int64_t heads, bool inverse) {
        const Arguments args("rope", ctx);
        const int64_t M = args.dim(x, "x", 0, 2), width = args.dim(x, "x", 1, 2);
        args.require(heads > 0 && width % (2 * heads) == 0, "heads", "must divide x's columns into heads of even size");
        const int64_t E = width / heads;
        void* x_ = args.act_out(x, "x", {M, width});
        const float* cos_ = args.in<float>(cos, "cos", {M, E / 2});
        const float* sin_ = args.in<float>(sin, "sin", {M, E / 2});
        py::gil_scoped_release release;
        rope(ctx, x_, cos_, sin_, M, heads, E, inverse);
      },
      arg("ctx"), arg("x"), arg("cos"), arg("sin"), arg("heads"), arg("inverse") = false,
      "Turns x act (M, heads·E) in place by cos, sin float32 (M, E/2), element i of a head with i + E/2; inverse: the "
      "backward.");
  m.def(
      "swiglu",
      [](Context& ctx, const array& gate, const array& up, array out) {
        const Arguments args("swiglu", ctx);
        const int64_t M = args.dim(gate, "gate", 0, 2), F = args.dim(gate, "gate", 1, 2);
        const void* gate_ = args.act(gate, "gate", {M, F});
        const void* up_ = args.act(up, "up", {M, F});
        void* out_ = args.act_out(out, "out", {M, F});
        py::gil_scoped_release release;
        swiglu(ctx, gate_, up_, out_, M * F);
      },
      arg("ctx"), arg("gate"), arg("up"), arg("out"), "out = silu(gate)·up, all act (M, F).");
  m.def(
      "swiglu_backward",
      [](Context& ctx, const array& dy, const array& gate, const array& up, array d_gate, array d_up) {
        const Arguments args("swiglu_backward", ctx);
        const int64_t M = args.dim(dy, "dy", 0, 2), F = args.dim(dy, "dy", 1, 2);
        const void* dy_ = args.act(dy, "dy", {M, F});
        const void* gate_ = args.act(gate, "gate", {M, F});
        const void* up_ = args.act(up, "up", {M, F});
        void* d_gate_ = args.act_out(d_gate, "d_gate", {M, F});
        void* d_up_ = args.act_out(d_up, "d_up", {M, F});
        py::gil_scoped_release release;
        swiglu_backward(ctx, dy_, gate_, up_, d_gate_, d_up_, M * F);
      },
      arg("ctx"), arg("dy"), arg("gate"), arg("up"), arg("d_gate"), arg("d_up"),
      "The gradients of swiglu, all act (M, F); d_gate and d_up may be gate and up themselves.");
}

void bind_columns(py::module_& m) {
  m.def(
      "scale_columns",
      [](Context& ctx, const array& x, const array& c, array out, bool add) {
        const Arguments args("scale_columns", ctx);
        const int64_t M = args.dim(x, "x", 0, 2), D = args.dim(x, "x", 1, 2);
        const void* x_ = args.act(x, "x", {M, D});
        const float* c_ = args.in<float>(c, "c", {D});
        void* out_ = add ? args.out<float>(out, "out", {M, D}) : args.act_out(out, "out", {M, D});
        py::gil_scoped_release release;
        scale_columns(ctx, x_, c_, out_, add, M, D);
      },
      arg("ctx"), arg("x"), arg("c"), arg("out"), arg("add"),
      "out act (M, D) = x·c with x act (M, D), c float32 (D,), and may be x itself; with add out float32 (M, D) += "
      "x·c.");
  m.def(
      "column_dots",
      [](Context& ctx, const array& x, const array& y, const array& r, array out) {
        const Arguments args("column_dots", ctx);
        const int64_t M = args.dim(x, "x", 0, 2), D = args.dim(x, "x", 1, 2);
        const void* x_ = args.act(x, "x", {M, D});
        const void* y_ = args.act(y, "y", {M, D});
        const float* r_ = args.in<float>(r, "r", {D});
        float* out_ = args.out<float>(out, "out", {D});
        py::gil_scoped_release release;
        column_dots(ctx, x_, y_, r_, out_, M, D);
      },
      arg("ctx"), arg("x"), arg("y"), arg("r"), arg("out"),
      "out float32 (D,) += r·Σ over rows of x·y; x, y act (M, D), r float32 (D,).");
}

void bind_rows(py::module_& m) {
  m.def(
      "round_to_act",
      [](Context& ctx, const array& x, array out) {
        const Arguments args("round_to_act", ctx);
        const int64_t M = args.dim(x, "x", 0, 2), D = args.dim(x, "x", 1, 2);
        const float* x_ = args.in<float>(x, "x", {M, D});
        void* out_ = args.act_out(out, "out", {M, D});
        py::gil_scoped_release release;
        round_to_act(ctx, x_, out_, M * D);
      },
      arg("ctx"), arg("x"), arg("out"), "out act (M, D) = x float32 (M, D) rounded.");
  m.def(
      "gather_rows",
      [](Context& ctx, const array& x, const array& rows, array out) {
        const Arguments args("gather_rows", ctx);
        const int64_t T = args.dim(x, "x", 0, 2), D = args.dim(x, "x", 1, 2), M = args.dim(rows, "rows", 0, 1);
        const int32_t* rows_ = args.rows(rows, "rows", M, T);
        const bool act = args.is_act(x);
        const void* x_ = act ? args.act(x, "x", {T, D}) : args.in<float>(x, "x", {T, D});
        void* out_ = act ? args.act_out(out, "out", {M, D}) : args.out<float>(out, "out", {M, D});
        const int64_t bytes = D * x.itemsize();
        py::gil_scoped_release release;
        gather_rows(ctx, x_, rows_, out_, M, bytes);
      },
      arg("ctx"), arg("x"), arg("rows"), arg("out"), "out (M, D) = x[rows], x (T, D) act or float32, rows int32 (M,).");
  m.def(
      "scatter_add_rows",
      [](Context& ctx, const array& x, const array& rows, array out) {
        const Arguments args("scatter_add_rows", ctx);
        const int64_t M = args.dim(x, "x", 0, 2), D = args.dim(x, "x", 1, 2), T = args.dim(out, "out", 0, 2);
        const float* x_ = args.in<float>(x, "x", {M, D});
        const int32_t* rows_ = args.rows(rows, "rows", M, T);
        float* out_ = args.out<float>(out, "out", {T, D});
        py::gil_scoped_release release;
        scatter_add_rows(ctx, x_, rows_, out_, M, D);
      },
      arg("ctx"), arg("x"), arg("rows"), arg("out"),
      "out[rows] += x, float32 (M, D) into (T, D); rows int32 (M,) may repeat.");
}

void bind_dropout(py::module_& m) {
  m.def(
      "dropout",
      [](Context& ctx, const array& x, double p, uint64_t seed, array out) {
        const Arguments args("dropout", ctx);
        const int64_t M = args.dim(x, "x", 0, 2), K = args.dim(x, "x", 1, 2);
        args.require(p >= 0 && p < 1, "p", "must be in [0, 1)");
        const void* x_ = args.act(x, "x", {M, K});
        void* out_ = args.act_out(out, "out", {M, K});
        py::gil_scoped_release release;
        dropout(ctx, x_, p, seed, out_, M, K);
      },
      arg("ctx"), arg("x"), arg("p"), arg("seed"), arg("out"),
      "out = x·mask/(1-p), act (M, K); the mask is a function of (seed, row, column): the same on every ISA.");
  m.def(
      "dropout_add",
      [](Context& ctx, const array& dx_lora, double p, uint64_t seed, array dx) {
        const Arguments args("dropout_add", ctx);
        const int64_t M = args.dim(dx_lora, "dx_lora", 0, 2), K = args.dim(dx_lora, "dx_lora", 1, 2);
        args.require(p >= 0 && p < 1, "p", "must be in [0, 1)");
        const float* dx_lora_ = args.in<float>(dx_lora, "dx_lora", {M, K});
        const bool act = args.is_act(dx);
        void* dx_ = act ? args.act_out(dx, "dx", {M, K}) : args.out<float>(dx, "dx", {M, K});
        py::gil_scoped_release release;
        dropout_add(ctx, dx_lora_, p, seed, dx_, act, M, K);
      },
      arg("ctx"), arg("dx_lora"), arg("p"), arg("seed"), arg("dx"),
      "dx (M, K), float32 or act, += dx_lora·mask/(1-p): the backward of dropout with the same p and seed.");
}

void bind_optimizer(py::module_& m) {
  m.def(
      "adamw",
      [](Context& ctx, array p, array g, array m, array v, double lr, double beta1, double beta2, double eps,
         double weight_decay, int64_t step, double grad_scale) {
        const Arguments args("adamw", ctx);
        const int64_t n = args.dim(p, "p", 0, 1);
        args.require(step >= 1, "step", "must be at least 1");
        args.require(beta1 >= 0 && beta1 < 1 && beta2 >= 0 && beta2 < 1, "beta1 and beta2", "must be in [0, 1)");
        float* p_ = args.out<float>(p, "p", {n});
        float* g_ = args.out<float>(g, "g", {n});
        float* m_ = args.out<float>(m, "m", {n});
        float* v_ = args.out<float>(v, "v", {n});
        py::gil_scoped_release release;
        adamw(ctx, p_, g_, m_, v_, n, lr, beta1, beta2, eps, weight_decay, step, grad_scale);
      },
      arg("ctx"), arg("p"), arg("g"), arg("m"), arg("v"), arg("lr"), arg("beta1"), arg("beta2"), arg("eps"),
      arg("weight_decay"), arg("step"), arg("grad_scale"),
      "One step of torch.optim.AdamW with the gradient g·grad_scale; p, m, v float32 (n,) in place, g float32 (n,) is "
      "zero afterwards.");
  m.def(
      "squared_norm",
      [](Context& ctx, const array& g) {
        const Arguments args("squared_norm", ctx);
        const int64_t n = args.dim(g, "g", 0, 1);
        const float* g_ = args.in<float>(g, "g", {n});
        py::gil_scoped_release release;
        return squared_norm(ctx, g_, n);
      },
      arg("ctx"), arg("g"), "The sum of squares of g float32 (n,), in float64.");
}

}  // namespace

void bind_elements(py::module_& m) {
  bind_norms(m);
  bind_rope_and_swiglu(m);
  bind_columns(m);
  bind_rows(m);
  bind_dropout(m);
  bind_optimizer(m);
}

}  // namespace localsft
