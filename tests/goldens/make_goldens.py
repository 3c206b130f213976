"""Makes the golden files of this folder with PyTorch, transformers and PEFT. README.md lists every key and shape.

They live in an environment of their own, never in the project's:

    python3.11 -m venv venv-torch
    venv-torch/bin/pip install torch==2.13.0 transformers==5.23.0 peft==0.21.2 trl==1.16.0 datasets==5.2.0 accelerate==1.15.0 gguf==0.19.0
    venv-torch/bin/python tests/goldens/make_goldens.py tiny
    venv-torch/bin/python tests/goldens/make_goldens.py dora
    venv-torch/bin/python tests/goldens/make_goldens.py smollm2 --gguf SmolLM2-135M-Instruct.Q4_1.gguf

Every random number comes from a seeded NumPy generator; torch only computes.
"""

from __future__ import annotations

import argparse
import hashlib
import json
from itertools import pairwise
from pathlib import Path

import numpy as np
import torch
from gguf import GGUFReader
from gguf_to_hf import bpe_tokenizer, hf_model
from numpy.typing import NDArray
from peft_reference import (
    LINEARS,
    Example,
    forward,
    gradients,
    lora_parameters,
    make_float64,
    module_names,
    ten_steps,
    total_weight,
    values,
    with_lora,
)
from safetensors.numpy import save_file
from transformers import LlamaForCausalLM

HERE = Path(__file__).resolve().parent

# The tiny llamas: grouped heads, sizes that are no multiple of a vector register's.
D, F, L, H, K, V = 48, 112, 3, 6, 2, 211
E = D // H
RANK, ALPHA, LR = 4, 8, 1e-2
CASES = {"all": (range(L), LINEARS), "last2": (range(1, L), LINEARS), "qv": (range(L), ("q_proj", "v_proj"))}


def linear_shapes(d: int, f: int, h: int, k: int, e: int) -> dict[str, tuple[int, int]]:
    """(in, out) of each linear of a layer."""
    return {
        "q_proj": (d, h * e),
        "k_proj": (d, k * e),
        "v_proj": (d, k * e),
        "o_proj": (h * e, d),
        "gate_proj": (d, f),
        "up_proj": (d, f),
        "down_proj": (f, d),
    }


def write_tiny_model(folder: Path, *, tied: bool, rng: np.random.Generator) -> None:
    """A random llama as a Hugging Face folder in float32; weights scaled so that signals and gradients stay near 1."""

    def normal(*shape: int, std: float) -> NDArray[np.float32]:
        return (rng.standard_normal(shape) * std).astype(np.float32)

    shapes = linear_shapes(D, F, H, K, E)
    tensors = {"model.embed_tokens.weight": normal(V, D, std=0.3 if tied else 1.0), "model.norm.weight": 1 + normal(D, std=0.2)}
    for module in module_names(range(L), LINEARS):
        n_in, n_out = shapes[module.rsplit(".", 1)[1]]
        tensors[f"{module}.weight"] = normal(n_out, n_in, std=n_in**-0.5)
    for n in range(L):
        for norm in ("input_layernorm", "post_attention_layernorm"):
            tensors[f"model.layers.{n}.{norm}.weight"] = 1 + normal(D, std=0.2)
    if not tied:
        tensors["lm_head.weight"] = normal(V, D, std=0.3)
    config = {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_size": D,
        "intermediate_size": F,
        "num_hidden_layers": L,
        "num_attention_heads": H,
        "num_key_value_heads": K,
        "head_dim": E,
        "vocab_size": V,
        "max_position_embeddings": 256,
        "rope_theta": 10000.0,
        "rms_norm_eps": 1e-5,
        "hidden_act": "silu",
        "attention_bias": False,
        "mlp_bias": False,
        "tie_word_embeddings": tied,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "torch_dtype": "float32",
    }
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n")
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    (folder / "model.safetensors").chmod(0o644)


def tiny_examples(rng: np.random.Generator) -> list[Example]:
    """Five ragged examples. 3 and 4 share their first 11 tokens, with different weights there; 2 is as short as can be."""
    prefix = rng.integers(3, V, 11)
    bodies = [rng.integers(3, V, n) for n in (23, 9, 2)] + [np.concatenate((prefix, rng.integers(3, V, n))) for n in (20, 6)]
    examples = []
    for ids in bodies:
        weights = rng.choice([0.0, 1.0, 0.25, 0.3, 2.0], ids.size, p=[0.4, 0.3, 0.1, 0.1, 0.1]).astype(np.float32)
        weights[0], weights[-1] = 0, 1
        examples.append(Example(ids.astype(np.int32), weights))
    examples[0].weights[1] = 1  # the first possible target
    examples[3].weights[4], examples[4].weights[4] = 0.5, 1  # supervised inside the shared prefix
    return examples


def random_lora(shapes: dict[str, tuple[int, int]], layers: int, rank: int, rng: np.random.Generator) -> dict[str, NDArray[np.float32]]:
    """A and B of every linear, B non-zero: with B = 0 an error in A's gradient can't be seen."""
    initial = {}
    for module in module_names(range(layers), LINEARS):
        n_in, n_out = shapes[module.rsplit(".", 1)[1]]
        initial[f"{module}.lora_a"] = (rng.standard_normal((n_in, rank)) * n_in**-0.5).astype(np.float32)
        initial[f"{module}.lora_b"] = (rng.standard_normal((rank, n_out)) * 0.1).astype(np.float32)
    return initial


def check_by_differences(peft, examples: list[Example], grads: dict[str, NDArray], rng: np.random.Generator) -> None:
    """Central differences in float64 at random entries: the goldens don't rest on autograd alone."""
    weight, h = total_weight(examples), 1e-5
    for name, grad in grads.items():
        parameter = lora_parameters(peft)[name]
        at = tuple(int(rng.integers(n)) for n in parameter.shape)
        losses = []
        for step in (h, -2 * h):
            parameter.data[at] += step
            with torch.no_grad():
                losses.append(sum(forward(peft, e).loss.item() for e in examples) / weight)
        parameter.data[at] += h
        difference = (losses[0] - losses[1]) / (2 * h)
        assert abs(difference - grad[at[::-1]]) < 1e-8, (name, difference, grad[at[::-1]])


def tiny_goldens(folder: Path, seed: int) -> dict[str, NDArray]:
    """Everything that tiny_*.npz holds; README.md documents the keys."""
    rng = np.random.default_rng(seed)
    examples = tiny_examples(rng)
    initial = random_lora(linear_shapes(D, F, H, K, E), L, RANK, rng)
    out: dict[str, NDArray] = {
        "ids": np.concatenate([e.ids for e in examples]),
        "weights": np.concatenate([e.weights for e in examples]),
        "starts": np.cumsum([0] + [e.ids.size for e in examples]).astype(np.int32),
        "weight": np.float64(total_weight(examples)),
        "rank": np.int32(RANK),
        "scale": np.float64(ALPHA / RANK),
        "lr": np.float64(LR),
    }
    out |= {f"init/{name}": value for name, value in initial.items()}

    def load(exact: bool = True) -> LlamaForCausalLM:
        model = LlamaForCausalLM.from_pretrained(folder, dtype=torch.float32, attn_implementation="sdpa" if exact else "eager")
        if exact:
            make_float64(model)
        return model.eval()

    with torch.no_grad():
        base = [forward(load(), e) for e in examples]
        plain = [forward(load(exact=False), e) for e in examples]
    drift = max(float((a.logits - b.logits).abs().max()) for a, b in zip(base, plain, strict=True))
    assert drift < 2e-5, drift  # our float64 norm and RoPE compute what transformers' float32 ones do
    out["base/logits"] = base[0].logits.numpy()
    out["base/logprobs"] = np.concatenate([f.logprobs.numpy() for f in base])

    for case, (layers, targets) in CASES.items():
        peft = with_lora(load(), rank=RANK, alpha=ALPHA, layers=layers, targets=targets, initial=initial)
        with torch.no_grad():
            results = [forward(peft, e) for e in examples]
        if case == "all":
            out["all/logits"] = results[0].logits.numpy()
        out[f"{case}/logprobs"] = np.concatenate([f.logprobs.numpy() for f in results])
        out[f"{case}/loss"] = np.float64(sum(f.loss.item() for f in results))
        grads = gradients(peft, examples)
        check_by_differences(peft, examples, grads, np.random.default_rng(seed + 1))
        out |= {f"{case}/grad/{name}": grad for name, grad in grads.items()}
    peft = with_lora(load(), rank=RANK, alpha=ALPHA, layers=range(L), targets=LINEARS, initial=initial)
    out["all/step_losses"], out["all/step_norms"] = ten_steps(peft, examples, LR)
    out |= {f"all/final/{name}": value for name, value in values(peft).items()}

    # How far plain float32 arithmetic strays, so that a test's tolerance can be judged.
    single = with_lora(load(exact=False), rank=RANK, alpha=ALPHA, layers=range(L), targets=LINEARS, initial=initial)
    g32 = gradients(single, examples)
    losses, norms = ten_steps(single, examples, LR)
    print(folder.name, "losses", out["all/step_losses"].round(4), "norms", out["all/step_norms"].round(4), f"logits drift {drift:.1e}")
    strays = {
        "gradients (of the largest entry)": max(np.abs(g32[n] - out[f"all/grad/{n}"]).max() / np.abs(g32[n]).max() for n in g32),
        "step losses": np.abs(losses / out["all/step_losses"] - 1).max(),
        "norms": np.abs(norms / out["all/step_norms"] - 1).max(),
        "final parameters (absolute)": max(np.abs(v - out[f"all/final/{n}"]).max() for n, v in values(single).items()),
    }
    print("  float32 strays by:", ", ".join(f"{what} {by:.1e}" for what, by in strays.items()))
    return out


def dora_goldens(folder: Path, seed: int) -> dict[str, NDArray]:
    """What tiny_*_dora.npz holds: DoRA on every linear, with the examples, A and B of tiny_*.npz and magnitudes off those of W."""
    rng = np.random.default_rng(seed)
    examples = tiny_examples(rng)
    initial = random_lora(linear_shapes(D, F, H, K, E), L, RANK, rng)
    model = LlamaForCausalLM.from_pretrained(folder, dtype=torch.float32, attn_implementation="sdpa")
    make_float64(model)
    model.eval()
    for module in module_names(range(L), LINEARS):
        norms = model.get_submodule(module).weight.detach().norm(dim=1).numpy()
        initial[f"{module}.m"] = (norms * rng.uniform(0.8, 1.2, norms.shape)).astype(np.float32)
    peft = with_lora(model, rank=RANK, alpha=ALPHA, layers=range(L), targets=LINEARS, initial=initial, dora=True)
    with torch.no_grad():
        results = [forward(peft, e) for e in examples]
    grads = gradients(peft, examples)
    # The norm counts as a constant, so that only the magnitudes' gradients are those of the loss.
    check_by_differences(peft, examples, {n: g for n, g in grads.items() if n.endswith(".m")}, np.random.default_rng(seed + 1))
    out: dict[str, NDArray] = {f"init/{name}": value for name, value in initial.items() if name.endswith(".m")}
    out["logits"] = results[0].logits.numpy()
    out["loss"] = np.float64(sum(f.loss.item() for f in results))
    out |= {f"grad/{name}": grad for name, grad in grads.items()}
    out["step_losses"], out["step_norms"] = ten_steps(peft, examples, LR)
    out |= {f"final/{name}": value for name, value in values(peft).items()}
    print(folder.name, "DoRA: losses", out["step_losses"].round(4), "norms", out["step_norms"].round(4))
    return out


def make_dora() -> None:
    """tiny_*_dora.npz, from the folders that ``make_tiny`` wrote."""
    for seed, name in ((20250, "tiny_tied"), (20260, "tiny_untied")):
        np.savez_compressed(HERE / f"{name}_dora.npz", **dora_goldens(HERE / name, seed + 5))


def make_tiny() -> None:
    """tiny_tied/, tiny_untied/ and their .npz."""
    for seed, tied in ((20250, True), (20260, False)):
        folder = HERE / ("tiny_tied" if tied else "tiny_untied")
        write_tiny_model(folder, tied=tied, rng=np.random.default_rng(seed))
        np.savez_compressed(folder.with_suffix(".npz"), **tiny_goldens(folder, seed + 5))


SMOLLM2_CHATS = (
    (
        ("system", "You answer billing questions of Acme Cloud. Refunds: within 30 days, to the original payment method."),
        ("user", "hi, i was charged 2x for march (invoice #20391) — can i get one of them back??"),
        ("assistant", "Yes. Invoice #20391 was paid twice on March 3; I have refunded the second $29.00 to your card. Allow 5–10 days."),
    ),
    (
        ("user", "Quel jour vient après mardi ? Réponds en un mot, s'il te plaît."),
        ("assistant", "Mercredi."),
        ("user", "And in English?"),
        ("assistant", "Wednesday."),
    ),
    (
        ("user", "def area(r):\n    return 3.14159 * r ** 2\n\nWhat does `area(2)` return? 😀"),
        ("assistant", "12.56636, the area of a circle of radius 2."),
    ),
)
SMOLLM2_SEED, SMOLLM2_RANK, SMOLLM2_ALPHA, SMOLLM2_LR, SMOLLM2_STD = 20270, 8, 16, 1e-3, 0.01
SAMPLED_ROWS, SAMPLED_IDS, SAMPLED_ENTRIES = 8, 32, 16


def smollm2_examples(reader: GGUFReader) -> list[Example]:
    """The chats in ChatML; assistant turns supervised up to and with <|im_end|>, the first of the second chat with weight 0.5."""
    tokenizer = bpe_tokenizer(reader)
    examples = []
    for chat in SMOLLM2_CHATS:
        ids, weights = [], []
        for i, (role, content) in enumerate(chat):
            weight = 0.0 if role != "assistant" else 0.5 if i == 1 and len(chat) == 4 else 1.0
            for text, w in ((f"<|im_start|>{role}\n", 0.0), (f"{content}<|im_end|>", weight), ("\n", 0.0)):
                piece = tokenizer.encode(text).ids
                ids += piece
                weights += [w] * len(piece)
        examples.append(Example(np.array(ids, np.int32), np.array(weights, np.float32)))
    return examples


def smollm2_lora(model: LlamaForCausalLM) -> dict[str, NDArray[np.float32]]:
    """A and B as the tests draw them again (README.md): nothing of this is stored but the norms."""
    c = model.config
    shapes = linear_shapes(c.hidden_size, c.intermediate_size, c.num_attention_heads, c.num_key_value_heads, c.head_dim)
    rng = np.random.Generator(np.random.PCG64(SMOLLM2_SEED))
    initial = {}
    for module in module_names(range(c.num_hidden_layers), LINEARS):
        n_in, n_out = shapes[module.rsplit(".", 1)[1]]
        initial[f"{module}.lora_a"] = (rng.standard_normal((n_in, SMOLLM2_RANK)) * SMOLLM2_STD).astype(np.float32)
        initial[f"{module}.lora_b"] = (rng.standard_normal((SMOLLM2_RANK, n_out)) * SMOLLM2_STD).astype(np.float32)
    return initial


def smollm2_run(reader: GGUFReader, *, exact: bool) -> dict[str, NDArray]:
    """What smollm2.npz holds, in float64 (``exact``) or as PyTorch computes it in float32."""
    examples, rng = smollm2_examples(reader), np.random.default_rng(SMOLLM2_SEED + 1)
    model = hf_model(reader)
    initial = smollm2_lora(model)
    if exact:
        make_float64(model)
    layers = range(model.config.num_hidden_layers)
    with torch.no_grad():
        base = [forward(model, e) for e in examples]
    peft = with_lora(model, rank=SMOLLM2_RANK, alpha=SMOLLM2_ALPHA, layers=layers, targets=LINEARS, initial=initial)
    with torch.no_grad():
        tuned = [forward(peft, e) for e in examples]
    ids = np.concatenate([e.ids for e in examples])
    starts = np.cumsum([0] + [e.ids.size for e in examples]).astype(np.int32)
    logits = torch.cat([f.logits for f in tuned])
    rows = np.concatenate([np.sort(rng.choice(np.arange(a, b), SAMPLED_ROWS, replace=False)) for a, b in pairwise(starts)]).astype(np.int32)
    logit_ids = rng.integers(0, model.config.vocab_size, (rows.size, SAMPLED_IDS)).astype(np.int32)
    grads = gradients(peft, examples)
    index = np.stack([np.sort(rng.choice(grad.size, SAMPLED_ENTRIES, replace=False)) for grad in grads.values()]).astype(np.int32)

    def sampled(arrays: dict[str, NDArray]) -> NDArray[np.float64]:
        return np.stack([array.ravel()[i] for array, i in zip(arrays.values(), index, strict=True)]).astype(np.float64)

    def norms(arrays: dict[str, NDArray]) -> NDArray[np.float64]:
        return np.array([np.linalg.norm(array.astype(np.float64)) for array in arrays.values()])

    out = {
        "ids": ids,
        "weights": np.concatenate([e.weights for e in examples]),
        "starts": starts,
        "weight": np.float64(total_weight(examples)),
        "seed": np.int64(SMOLLM2_SEED),
        "std": np.float64(SMOLLM2_STD),
        "rank": np.int32(SMOLLM2_RANK),
        "scale": np.float64(SMOLLM2_ALPHA / SMOLLM2_RANK),
        "lr": np.float64(SMOLLM2_LR),
        "names": np.array(list(grads)),
        "init_norms": norms({name: initial[name] for name in grads}),
        "base_loss": np.float64(sum(f.loss.item() for f in base)),
        "base_logprobs": np.concatenate([f.logprobs.numpy() for f in base]),
        "loss": np.float64(sum(f.loss.item() for f in tuned)),
        "logprobs": np.concatenate([f.logprobs.numpy() for f in tuned]),
        "logsumexp": torch.logsumexp(logits.double(), -1).numpy(),
        "argmax": logits.argmax(-1).numpy().astype(np.int32),
        "logit_rows": rows,
        "logit_ids": logit_ids,
        "logits": np.take_along_axis(logits[rows].double().numpy(), logit_ids, 1),
        "grad_norms": norms(grads),
        "grad_index": index,
        "grads": sampled(grads),
    }
    out["step_losses"], out["step_norms"] = ten_steps(peft, examples, SMOLLM2_LR)
    final = values(peft)
    out["final_norms"], out["finals"] = norms(final), sampled(final)
    return out


def make_smollm2(gguf: Path) -> None:
    """smollm2.npz."""
    reader = GGUFReader(gguf)
    out = smollm2_run(reader, exact=True)
    out["gguf_sha256"] = np.array(hashlib.sha256(gguf.read_bytes()).hexdigest())
    np.savez_compressed(HERE / "smollm2.npz", **out)
    print("lengths", np.diff(out["starts"]), "weight", out["weight"], "base loss", out["base_loss"], "loss", out["loss"])
    print("step losses", out["step_losses"].round(4), "norms", out["step_norms"].round(4))
    single = smollm2_run(reader, exact=False)
    for key in ("base_loss", "loss", "step_losses", "step_norms", "grad_norms", "final_norms"):
        print(f"  float32 strays by {np.abs(single[key] / out[key] - 1).max():.1e} relative: {key}")
    for key in ("logprobs", "logsumexp", "logits", "finals"):
        print(f"  float32 strays by {np.abs(single[key] - out[key]).max():.1e} absolute: {key}")
    print(f"  float32 strays by {(np.abs(single['grads'] - out['grads']).max(1) / out['grad_norms']).max():.1e} of the norm: grads")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["tiny", "dora", "smollm2"])
    parser.add_argument("--gguf", type=Path, help="SmolLM2-135M-Instruct.Q4_1.gguf, for smollm2")
    args = parser.parse_args()
    torch.set_num_threads(1)  # two threads that wait for each other are slower on a busy machine, and one is repeatable
    if args.what == "tiny":
        make_tiny()
    elif args.what == "dora":
        make_dora()
    elif args.gguf is None:
        parser.error("smollm2 needs --gguf")
    else:
        make_smollm2(args.gguf)


if __name__ == "__main__":
    main()
