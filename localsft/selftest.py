"""``localsft doctor --selftest``: proof on the user's own machine that the kernels and engines compute what they should.

A tiny random llama with 4-bit and dense weights, a few packed examples with a shared prefix, an adapter whose B is not zero. Each
set of kernels is held against the same model in plain numpy, float64; where activations are bfloat16, against what a plain
bfloat16 implementation is off by.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from localsft.batch import Example, LossSum, PackedBatch
from localsft.config import LoraConfig, OptimConfig
from localsft.data.pack import pack_step
from localsft.engine import has_mlx
from localsft.engine.base import Sampling
from localsft.engine.cpu.engine import CpuEngine
from localsft.engine.cpu.ops import Ops, available_isas
from localsft.engine.cpu.panels import keep_panels
from localsft.engine.cpu.reference import ReferenceOps
from localsft.errors import LocalsftError
from localsft.weights.config import ModelConfig
from localsft.weights.quant import quantize_affine
from localsft.weights.tensor import Dense, Tensor

FLOAT32_LIMIT = 2.0**-23 * 128  # relative: sums of a few hundred float32 terms through two layers
VOCAB, HIDDEN, FFN, HEADS, KV_HEADS, HEAD_SIZE, LAYERS = 259, 96, 160, 6, 2, 16, 2
LORA = LoraConfig(rank=4, alpha=8.0)
DORA = LoraConfig(rank=4, alpha=8.0, variant="dora")
OPTIM = OptimConfig()


@dataclass(frozen=True, slots=True)
class Check:
    """One line of the table: what was compared, how far it was off, how far it may be. Differences are relative."""

    subject: str
    claim: str
    difference: float
    limit: float
    problem: str = ""

    @property
    def passed(self) -> bool:
        return not self.problem and self.difference <= self.limit


@dataclass(frozen=True)
class TinyBase:
    """Stands in for a loaded base model: random weights, drawn from a fixed seed."""

    config: ModelConfig
    tensors: Mapping[str, Tensor]
    path: Path = Path("selftest")
    hash: str = "selftest"
    metadata: Mapping[str, Any] = field(default_factory=dict)
    files: tuple[Path, ...] = ()


def tiny_base() -> TinyBase:
    """Projections in 4 bits (groups of 32), embedding and head in float32: both kinds of weights take part."""
    config = ModelConfig(
        model_type="llama",
        source="gguf",
        hidden_size=HIDDEN,
        n_layers=LAYERS,
        n_heads=HEADS,
        n_kv_heads=KV_HEADS,
        head_size=HEAD_SIZE,
        ffn_size=FFN,
        vocab_size=VOCAB,
        max_positions=512,
        rms_eps=1e-5,
        rope_theta=10000.0,
        rope_size=HEAD_SIZE,
        rope_scaling=None,
        tied_head=False,
        qkv_bias=False,
        attention_output_bias=False,
        mlp_bias=False,
        qk_norm=False,
        activation="silu",
        sliding_window=None,
        quantization=None,
    )
    random = np.random.default_rng(7)

    def matrix(rows: int, columns: int) -> Any:
        return (random.standard_normal((rows, columns)) / np.sqrt(columns)).astype(np.float32)

    def norm() -> Dense:
        return Dense((1 + 0.1 * random.standard_normal(HIDDEN)).astype(np.float32))

    tensors: dict[str, Tensor] = {
        "model.embed_tokens.weight": Dense(matrix(VOCAB, HIDDEN)),
        "lm_head.weight": Dense(matrix(VOCAB, HIDDEN)),
        "model.norm.weight": norm(),
    }
    width, keys = HEADS * HEAD_SIZE, KV_HEADS * HEAD_SIZE
    for layer in range(LAYERS):
        prefix = f"model.layers.{layer}"
        shapes = {"q_proj": (width, HIDDEN), "k_proj": (keys, HIDDEN), "v_proj": (keys, HIDDEN), "o_proj": (HIDDEN, width)}
        for name, shape in shapes.items():
            tensors[f"{prefix}.self_attn.{name}.weight"] = quantize_affine(matrix(*shape), 4, 32)
        for name, shape in {"gate_proj": (FFN, HIDDEN), "up_proj": (FFN, HIDDEN), "down_proj": (HIDDEN, FFN)}.items():
            tensors[f"{prefix}.mlp.{name}.weight"] = quantize_affine(matrix(*shape), 4, 32)
        tensors[f"{prefix}.input_layernorm.weight"] = norm()
        tensors[f"{prefix}.post_attention_layernorm.weight"] = norm()
    return TinyBase(config, tensors)


def tiny_examples() -> list[Example]:
    """Six examples of 20 to 60 tokens; the first four begin with the same 24."""
    random = np.random.default_rng(8)
    shared = random.integers(0, VOCAB, 24)
    examples = []
    for i in range(6):
        own = random.integers(0, VOCAB, int(random.integers(20, 36)))
        ids = np.concatenate([shared, own]) if i < 4 else own
        weights = (random.random(ids.size) < 0.5).astype(np.float32)
        weights[0], weights[-1] = 0, 1
        examples.append(Example(ids.astype(np.int32), weights))
    return examples


def tiny_adapter(shapes: Mapping[str, tuple[int, ...]]) -> dict[str, Any]:
    """A and B of the same size, so that a wrong gradient of either shows; magnitudes around the norms of the weights' rows, 1."""
    random = np.random.default_rng(9)
    values = {name: (0.1 * random.standard_normal(shape)).astype(np.float32) for name, shape in sorted(shapes.items())}
    return {name: 1 + x if name.endswith(".m") else x for name, x in values.items()}


@dataclass(frozen=True)
class Outcome:
    """What an engine made of the examples: the loss, and all gradients in one vector in the order of their names."""

    loss: float
    gradient: Any

    def differs(self, other: Outcome) -> float:
        """The larger of the relative differences of loss and gradient; where the other is 0, inf or nan, which no limit admits."""
        with np.errstate(divide="ignore", invalid="ignore"):
            gradient = np.linalg.norm(self.gradient - other.gradient) / np.linalg.norm(other.gradient)
            return float(np.maximum(np.abs(np.float64(self.loss) / other.loss - 1), gradient))


def outcome(engine: Any, batches: Sequence[PackedBatch]) -> Outcome:
    engine.load_adapter(tiny_adapter({name: x.shape for name, x in engine.adapter().items()}))
    total = LossSum()
    for batch in batches:
        total += engine.accumulate(batch)
    gradients = engine.gradients()
    return Outcome(total.loss, np.concatenate([gradients[name].astype(np.float64).ravel() for name in sorted(gradients)]))


def run() -> Iterator[Check]:
    """All checks, one after the other; what an engine raises becomes a failed check, not an end."""
    base, examples = tiny_base(), tiny_examples()
    shared = pack_step(examples, 4096)
    apart = pack_step(examples, 4096, pack=False, share_prefix=False)

    def cpu(ops: Any, lora: LoraConfig = LORA) -> CpuEngine:
        return CpuEngine(base, lora, OPTIM, ops)  # type: ignore[arg-type]

    exact, exact_dora = (outcome(cpu(ReferenceOps(), lora), apart) for lora in (LORA, DORA))
    plain_bf16 = outcome(cpu(ReferenceOps(bf16=True)), apart).differs(exact)
    plain_dora = outcome(cpu(ReferenceOps(bf16=True), DORA), apart).differs(exact_dora)
    for isa in available_isas():
        limit = 2 * plain_bf16 if Ops(isa).act_bf16 else FLOAT32_LIMIT
        limit_dora = 2 * plain_dora if Ops(isa).act_bf16 else FLOAT32_LIMIT

        def kernels(threads: int, batches: Sequence[PackedBatch], isa: str = isa, lora: LoraConfig = LORA, keep: bool = False) -> Outcome:
            engine = cpu(Ops(isa, threads), lora)
            if keep and keep_panels(engine.model, 1 << 30) == 0:
                raise LocalsftError("no weight is kept")
            return outcome(engine, batches)

        yield _check(isa, "loss and gradients equal float64", limit, lambda: kernels(2, apart).differs(exact))
        yield _check(isa, "packed with shared prefixes equals alone", limit, lambda: kernels(2, shared).differs(kernels(2, apart)))
        yield _check(isa, "2 threads equal 1, bit by bit", 0.0, lambda: kernels(2, shared).differs(kernels(1, shared)))
        yield _check(
            isa, "weights kept unpacked give the same bits", 0.0, lambda: kernels(2, shared, keep=True).differs(kernels(2, shared))
        )
        yield _check(isa, "generation equals reading again", limit, lambda: _decoding_difference(cpu(Ops(isa, 2))))  # noqa: B023
        yield _check(isa, "DoRA: loss and gradients equal float64", limit_dora, lambda: kernels(2, shared, lora=DORA).differs(exact_dora))
    yield from _mlx_checks(base, exact, exact_dora, shared, apart)


def _decoding_difference(engine: Any) -> float:
    """How far a greedy token's logit is below the best one when everything is read again, as a share of the logits' spread."""
    engine.load_adapter(tiny_adapter({name: x.shape for name, x in engine.adapter().items()}))
    ids = np.arange(3, 20, dtype=np.int32)
    worst = 0.0
    for token in engine.generate([ids], Sampling(max_tokens=8)):
        weights = np.zeros(ids.size + 1, np.float32)
        weights[-1] = 1
        (batch,) = pack_step([Example(np.append(ids, 0).astype(np.int32), weights)], 4096)
        logits = engine.logits(batch)[0]
        spread = np.abs(logits).max() or np.nan  # logits that are all zero are no answer
        worst = float(np.maximum(worst, (logits.max() - logits[token.token_id]) / spread))
        ids = np.append(ids, token.token_id).astype(np.int32)
    return worst


def _mlx_checks(
    base: TinyBase, exact: Outcome, exact_dora: Outcome, shared: Sequence[PackedBatch], apart: Sequence[PackedBatch]
) -> Iterator[Check]:
    if not has_mlx():
        return
    from localsft.engine.mlx.exact import GPU_FLOAT32_LIMIT, device_name, float32_engine

    subject = f"mlx ({device_name()})"
    limit = GPU_FLOAT32_LIMIT if device_name() == "gpu" else FLOAT32_LIMIT

    def engine(lora: LoraConfig = LORA) -> Any:
        return float32_engine(base, lora, OPTIM)  # type: ignore[arg-type]

    def mlx(batches: Sequence[PackedBatch]) -> Outcome:
        return outcome(engine(), batches)

    def cpu() -> Outcome:
        """By the cpu engine's kernels of an ISA that keeps activations in float32, as MLX does here."""
        isa = next(name for name in available_isas() if not Ops(name).act_bf16)
        return outcome(CpuEngine(base, LORA, OPTIM, Ops(isa, 2)), shared)  # type: ignore[arg-type]

    yield _check(subject, "loss and gradients equal float64", limit, lambda: mlx(apart).differs(exact))
    yield _check(subject, "loss and gradients equal the cpu engine's", 2 * limit, lambda: mlx(shared).differs(cpu()))
    yield _check(subject, "packed with shared prefixes equals alone", limit, lambda: mlx(shared).differs(mlx(apart)))
    yield _check(subject, "generation equals reading again", limit, lambda: _decoding_difference(engine()))
    dora = "DoRA: loss and gradients equal float64"
    yield _check(subject, dora, limit, lambda: outcome(engine(DORA), shared).differs(exact_dora))


def _check(subject: str, claim: str, limit: float, measure: Callable[[], float]) -> Check:
    try:
        return Check(subject, claim, measure(), limit)
    except Exception as error:  # a crash is a failed check: the table must be whole
        return Check(subject, claim, float("nan"), limit, f"{type(error).__name__}: {error}")
