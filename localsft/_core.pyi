"""What the extension offers (csrc/bindings.cc)."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

def available_isas() -> list[str]: ...

class Context:
    def __init__(self, isa: str = "", threads: int = 1) -> None: ...
    @property
    def isa(self) -> str: ...
    @property
    def threads(self) -> int: ...
    @property
    def act_bf16(self) -> bool: ...
    @property
    def scratch_bytes(self) -> int:
        """Bytes of working memory that the kernels hold now."""

# Packing

class Forest:
    @property
    def begins(self) -> NDArray[np.int64]: ...
    @property
    def ends(self) -> NDArray[np.int64]: ...
    @property
    def parents(self) -> NDArray[np.int32]: ...
    @property
    def last(self) -> NDArray[np.int32]: ...
    def pack(self, capacity: int) -> NDArray[np.int64]: ...

def pack_lengths(lengths: NDArray[np.int64], capacity: int) -> NDArray[np.int64]: ...
def prefix_forest(tokens: NDArray[np.int32], starts: NDArray[np.int64], min_shared: int) -> Forest: ...

# Pieces of texts

def text_pieces(codes: NDArray[np.uint32], starts: NDArray[np.int64], length: int) -> tuple[NDArray[np.uint32], NDArray[np.int64]]: ...
def jaccard(
    members: NDArray[np.uint32], starts: NDArray[np.int64], one: NDArray[np.int64], other: NDArray[np.int64]
) -> NDArray[np.float32]: ...
def nearest_sets(
    members: NDArray[np.uint32],
    starts: NDArray[np.int64],
    base: int,
    weights: NDArray[np.float32],
    queries: NDArray[np.int64],
    threshold: float,
    enough: int,
) -> tuple[NDArray[np.float32], NDArray[np.int64], NDArray[np.int64]]: ...

# The operations of the engine, which write into arrays of the caller: engine/cpu/ops.py is their only user.
def __getattr__(name: str) -> Any: ...
