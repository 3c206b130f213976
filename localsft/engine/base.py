"""What every engine can do. An engine knows no tokenizer, no file and no terminal.

Two engines implement it: ``cpu`` (our C++ kernels, everywhere) and ``mlx`` (Apple GPUs; MLX also runs on Linux CPUs).
They share adapter names and shapes (mlx-lm's), so either resumes or evaluates what the other trained.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from localsft.batch import Float32, Int32, LossSum, PackedBatch


@dataclass(frozen=True, slots=True)
class Sampling:
    """How tokens are chosen. ``temperature`` 0 is greedy; ``top_p`` keeps the smallest set of tokens with that mass."""

    max_tokens: int = 256
    temperature: float = 0.0
    top_p: float = 1.0
    seed: int = 0
    stop_ids: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class Generated:
    """One token of one prompt's answer. ``finish`` is '' while it goes on, 'stop' with the stop id, 'length' at the limit."""

    prompt: int
    token_id: int
    finish: str = ""


@dataclass(frozen=True, slots=True)
class EngineInfo:
    """What runs: for run.json and for people. ``details`` holds what only this engine knows (ISA, device, precision)."""

    name: str
    isa: str
    threads: int
    details: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class BatchSize:
    """How large a batch is for memory: T, N, and the length of its longest example (0: unknown, as long as the batch)."""

    tokens: int
    targets: int
    context: int = 0


class Engine(Protocol):
    """A base model with a LoRA adapter on some of its linears, its gradient, and its optimizer."""

    @property
    def info(self) -> EngineInfo:
        """What runs, and what it has done so far where ``details`` counts that."""

    def accumulate(self, batch: PackedBatch) -> LossSum:
        """Add the gradient of Σ w·CE over the batch's targets; return Σ w·CE (nats) and Σ w."""

    def pool(self, total: Callable[[Float32], Float32]) -> None:
        """Put the sum over several machines in place of what was accumulated: gradient, Σ w, and whether every loss was finite.

        ``total``: a flat float32 array -> its sum over the machines. Tensors lie in it in the order of their names.
        """

    def step(self, lr: float) -> float:
        """Divide the accumulated gradient by the accumulated weight, clip, apply AdamW; return the norm before clipping.

        A loss, gradient or norm that is not finite: nothing is applied, the accumulated gradient is dropped, and the
        returned norm is not finite, so that the caller can count it.
        """

    def score(self, batch: PackedBatch) -> tuple[Float32, NDArray[np.bool_]]:
        """log p(target) float32 (N,), and whether the target was the most likely token, bool (N,)."""

    def generate(self, prompts: Sequence[Int32], sampling: Sampling) -> Iterator[Generated]:
        """Tokens as they are decoded, all prompts in one batch. Prompt i's tokens arrive in order."""

    def memory(self, train: BatchSize, score: BatchSize, recompute: bool) -> int:
        """Bytes that a run takes whose largest batches are these: weights, optimizer, activations, working memory.

        ``recompute``: of an engine that was opened with ``checkpoint``, so that activations are recomputed in the backward.
        """

    def speed_up(self, tokens: int, free: int) -> int:
        """Spend memory that is ``free`` (bytes) on the speed of batches of so many tokens, with the same results; the bytes taken."""

    def hold_to(self, memory: int) -> None:
        """Tell the allocator, where the engine has one, the bytes that a plan counted (``memory``) for the passes to come."""

    def adapter(self) -> dict[str, Float32]:
        """``model.layers.N.<module>.lora_a`` (in, R), ``.lora_b`` (R, out), with DoRA ``.m`` (out,), float32 copies, mlx-lm's names."""

    def unchanging(self) -> dict[str, Float32]:
        """An adapter under which the base is as it was: B zero, and with DoRA m = ‖W‖."""

    def load_adapter(self, tensors: Mapping[str, NDArray[Any]]) -> None:
        """Set the adapter; every name and shape must fit, all misfits are named in one InputError."""

    def optimizer_state(self) -> dict[str, NDArray[Any]]:
        """Everything besides the adapter that the next step depends on: moments by adapter name, the step count."""

    def load_optimizer_state(self, state: Mapping[str, NDArray[Any]]) -> None:
        """The reverse of optimizer_state; a run resumed from both goes on bit by bit as if never stopped."""
