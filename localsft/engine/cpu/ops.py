"""The compiled kernels, bound to one ISA and one thread pool, and the arrays they read and write.

``act`` arrays are how activations are stored: bfloat16 bits (numpy uint16) where the ISA multiplies bfloat16, else float32.
"""

from __future__ import annotations

import functools
import os
from typing import Any

import numpy as np
from numpy.typing import NDArray

from localsft.errors import MissingPart, UsageError
from localsft.weights.tensor import AffineQuantized, Tensor

Array = NDArray[Any]

try:
    from localsft import _core
except ImportError as error:  # a source checkout that was never built
    raise MissingPart(f"the compiled kernels are missing ({error}): run `make install`, or `make core` in a checkout") from error


def float32_isa() -> str:
    """The fastest ISA here whose activations are float32; the one that LOCALSFT_ISA names, where that is one of them."""
    isas = [isa for isa in _core.available_isas() if not _core.Context(isa).act_bf16]
    forced = os.environ.get("LOCALSFT_ISA", "")
    return forced if forced in isas else isas[-1]


def kept_isa(recorded: str) -> str:
    """What a run that was computed with ``recorded`` goes on with: the same where this machine has it and LOCALSFT_ISA names none."""
    return recorded if recorded in _core.available_isas() and not os.environ.get("LOCALSFT_ISA") else ""


class Ops:
    """The operations of ``_core`` with their context as first argument already given.

    ``ops.linear_forward(x, ...)`` is ``_core.linear_forward(context, x, ...)``; see csrc/ops_*.h for each.
    """

    def __init__(self, isa: str = "", threads: int = 1) -> None:
        try:
            self.context = _core.Context(isa, threads)
        except ValueError as error:
            raise UsageError(f"LOCALSFT_ISA: {error}") from error
        self.isa: str = self.context.isa
        self.threads: int = self.context.threads
        self.act_bf16: bool = self.context.act_bf16
        self.act_dtype: Any = np.uint16 if self.act_bf16 else np.float32

    def __getattr__(self, name: str) -> Any:
        call = functools.partial(getattr(_core, name), self.context)
        setattr(self, name, call)  # looked up once
        return call

    def weight(self, tensor: Tensor) -> Any:
        """A kernel's view of a loaded weight (N, K); keeps the tensor's memory alive, copies nothing."""
        if isinstance(tensor, AffineQuantized):
            q = tensor
            return _core.affine_weight(q.packed, q.scales, q.biases, q.bits, q.group_size, bf16_scales=q.bf16_scales)
        return _core.dense_weight(tensor.data, bf16=tensor.bf16)

    def to_act(self, x: Array, out: Array) -> Array:
        """``x`` float32 as activations: rounded into ``out``, or ``x`` itself where activations are float32."""
        if not self.act_bf16:
            return x
        self.round_to_act(x, out)  # csrc/ops_element.h
        return out


def available_isas() -> list[str]:
    """ISAs that this build has and this machine can run, oldest first."""
    return list(_core.available_isas())
