// Python's view of ops_decode.h.
#include <pybind11/stl.h>

#include <tuple>
#include <vector>

#include "bind_weights.h"
#include "bindings.h"
#include "ops_decode.h"

namespace localsft {

using py::arg;
using py::array;

namespace {

// What Python gives for a group of linears: weights, lora_a, lora_b, scales, factors; and for a layer:
// attention_norm, qkv, o, mlp_norm, gate_up, down.
using GroupOf = std::tuple<Weights, MaybeArrays, MaybeArrays, std::vector<float>, MaybeArrays>;
using LayerOf = std::tuple<array, GroupOf, GroupOf, array, GroupOf, GroupOf>;

// A Decoder and the arrays it reads, kept alive.
struct BoundDecoder {
  Decoder decoder;
  std::vector<py::object> alive;
};

std::vector<Member> group_of(const Arguments& args, const GroupOf& group, size_t count, int64_t columns,
                             std::vector<py::object>& alive) {
  const auto& [weights, lora_a, lora_b, scales, factors] = group;
  args.require(weights.size() == count && factors.size() == count, "layers",
               "holds a group with another number of weights");
  for (const Weight* weight : weights) alive.push_back(py::cast(weight, py::return_value_policy::reference));
  for (const auto* arrays : {&lora_a, &lora_b, &factors})
    for (const auto& a : *arrays)
      if (a.has_value()) alive.push_back(*a);
  std::vector<Member> found = members(args, weights, lora_a, lora_b, scales, columns);
  for (size_t i = 0; i < count; ++i)
    if (factors[i].has_value()) found[i].factors = args.in<float>(*factors[i], "factors", {found[i].weight.rows});
  return found;
}

BoundDecoder* make_decoder(Context& ctx, const Weight& embedding, const Weight& head,
                           const std::vector<LayerOf>& layers, const array& final_norm, float eps, int64_t heads,
                           int64_t kv_heads, float scale, int64_t window) {
  const Arguments args("Decoder", ctx);
  auto bound = std::make_unique<BoundDecoder>();
  Decoder& d = bound->decoder;
  const int64_t D = embedding.matrix.columns;
  args.require(!layers.empty(), "layers", "is empty");
  args.require(head.matrix.columns == D, "head", "must have as many columns as embedding");
  args.require(heads > 0 && kv_heads > 0 && heads % kv_heads == 0, "heads", "must be a multiple of kv_heads");
  d.embedding = embedding.matrix;
  d.head = head.matrix;
  d.eps = eps;
  d.final_norm = args.in<float>(final_norm, "final_norm", {D});
  bound->alive.push_back(final_norm);
  for (const Weight* weight : {&embedding, &head})
    bound->alive.push_back(py::cast(weight, py::return_value_policy::reference));
  for (const auto& [attention_norm, qkv, o, mlp_norm, gate_up, down] : layers) {
    DecodeLayer layer;
    layer.attention_norm = args.in<float>(attention_norm, "attention_norm", {D});
    layer.mlp_norm = args.in<float>(mlp_norm, "mlp_norm", {D});
    bound->alive.push_back(attention_norm);
    bound->alive.push_back(mlp_norm);
    layer.qkv = group_of(args, qkv, 3, D, bound->alive);
    const int64_t width = layer.qkv[0].weight.rows, keys = layer.qkv[1].weight.rows;
    args.require(width % heads == 0 && keys == width / heads * kv_heads && layer.qkv[2].weight.rows == keys, "layers",
                 "holds q, k, v that do not fit the numbers of heads");
    layer.o = group_of(args, o, 1, width, bound->alive)[0];
    layer.gate_up = group_of(args, gate_up, 2, D, bound->alive);
    const int64_t F = layer.gate_up[0].weight.rows;
    args.require(layer.gate_up[1].weight.rows == F, "layers", "holds gate and up of different sizes");
    layer.down = group_of(args, down, 1, F, bound->alive)[0];
    args.require(layer.o.weight.rows == D && layer.down.weight.rows == D, "layers", "holds o or down of another size");
    d.layers.push_back(layer);
  }
  d.shape = {heads, kv_heads, d.layers[0].qkv[0].weight.rows / heads, scale, 0.0f, window};
  return bound.release();
}

void step(BoundDecoder& bound, Context& ctx, const array& tokens, const array& slots, const array& lengths,
          const array& cos, const array& sin, std::vector<array> k, std::vector<array> v, array logits) {
  const Arguments args("Decoder.step", ctx);
  Decoder& d = bound.decoder;
  const int64_t B = args.dim(tokens, "tokens", 0, 1);
  args.require(B >= 1 && B <= 16, "tokens", "must be 1 to 16");
  args.require(k.size() == d.layers.size() && v.size() == k.size(), "k, v", "must be as many as layers");
  const int64_t count = args.dim(k[0], "k", 0, 3), capacity = args.dim(k[0], "k", 1, 3);
  const int64_t keys = d.shape.kv_heads * d.shape.E;
  const int32_t* tokens_ = args.rows(tokens, "tokens", B, d.embedding.rows);
  const int32_t* slots_ = args.rows(slots, "slots", B, count);
  const int32_t* lengths_ = args.rows(lengths, "lengths", B, capacity);
  const float* cos_ = args.in<float>(cos, "cos", {B, d.shape.E / 2});
  const float* sin_ = args.in<float>(sin, "sin", {B, d.shape.E / 2});
  std::vector<KeyValues> caches;
  for (size_t i = 0; i < k.size(); ++i)
    caches.push_back(
        {args.act_out(k[i], "k", {count, capacity, keys}), args.act_out(v[i], "v", {count, capacity, keys})});
  float* logits_ = args.out<float>(logits, "logits", {B, d.head.rows});
  py::gil_scoped_release release;
  d.step(ctx, B, tokens_, slots_, lengths_, cos_, sin_, caches, capacity, logits_);
}

}  // namespace

void bind_decode(py::module_& m) {
  py::class_<BoundDecoder>(m, "Decoder", "A llama-like model as decoding reads it.")
      .def(py::init(&make_decoder), arg("ctx"), arg("embedding"), arg("head"), arg("layers"), arg("final_norm"),
           arg("eps"), arg("heads"), arg("kv_heads"), arg("scale"), arg("window"),
           "layers: (attention_norm, qkv, o, mlp_norm, gate_up, down) each; a group is (weights, lora_a, lora_b, "
           "scales, factors): factors float32 (N_i,), DoRA's, or None.")
      .def(
          "step", &step, arg("ctx"), arg("tokens"), arg("slots"), arg("lengths"), arg("cos"), arg("sin"), arg("k"),
          arg("v"), arg("logits"),
          "One token a row, int32 (B,), B <= 16, after the lengths (B,) tokens that its slot (B,) of the caches holds, "
          "act (slots, capacity, K·E) a layer; cos, sin float32 (B, E/2) -> logits float32 (B, V).");
}

}  // namespace localsft
