"""GGUF files, memory-mapped: ``open_gguf(path)`` checks the header once and hands out tensors one at a time."""

from __future__ import annotations

import mmap
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType

import numpy as np

from localsft.errors import InputError
from localsft.weights.gguf_blocks import READABLE_TYPES, decode
from localsft.weights.gguf_header import GgufTensorInfo, GgufValue, read_header
from localsft.weights.mapped import close_map, map_file, release_pages
from localsft.weights.tensor import Dense, Tensor

__all__ = ["GgufFile", "GgufTensorInfo", "GgufValue", "open_gguf"]


def open_gguf(path: str | Path) -> GgufFile:
    """Map a GGUF file and check its header. Reads no tensor data.

    Raises InputError (one sentence with the file, what is wrong and the remedy) where the file is missing, not a regular
    file, not GGUF, big-endian, of an unknown version, cut short, inconsistent, or uses a type that ggml does not define.
    """
    path = Path(path)
    return GgufFile(path, map_file(path))


class GgufFile:
    """An open GGUF. ``metadata`` (scalars, lists of str, numpy arrays) and ``tensors`` (the table) are read already."""

    def __init__(self, path: Path, mapped: mmap.mmap | None) -> None:
        self.path = path
        self._map = mapped
        header = read_header(b"" if mapped is None else mapped, path)
        self.version = header.version
        self.metadata: Mapping[str, GgufValue] = header.metadata
        self.tensors: Mapping[str, GgufTensorInfo] = header.tensors

    def tensor(self, name: str) -> Tensor:
        """Read one tensor by its GGUF name.

        F32, F16 and BF16 come as read-only views of the mapped file; quantized types as repacked copies, after which the
        pages that were read are given back, so that memory does not hold both. Every call repacks: keep the result.
        Raises InputError for a type or a shape that can't be used, KeyError for an unknown name.
        """
        info = self.tensors[name]
        if self._map is None:
            raise ValueError(f"{self.path} is closed")
        self.check_readable([name])
        raw = np.frombuffer(self._map, np.uint8, info.nbytes, info.offset)
        tensor = decode(raw, info.type, info.shape)
        if not isinstance(tensor, Dense) or not np.may_share_memory(tensor.data, raw):
            release_pages(self._map)
        return tensor

    def check_readable(self, names: list[str]) -> None:
        """Raise one InputError that names the tensors among ``names`` whose type or shape can't be used."""
        problems = []
        for name in names:
            info = self.tensors[name]
            if info.type not in READABLE_TYPES:
                problems.append(f"{name!r} has type {info.type}")
            elif info.type not in ("F32", "F16", "BF16") and len(info.shape) != 2:
                problems.append(f"{name!r} is {info.type} with {len(info.shape)} dimensions, not 2")
        if problems:
            listed = ", ".join(problems[:3]) + (f" and {len(problems) - 3} more" if len(problems) > 3 else "")
            raise InputError(f"{self.path}: tensor {listed}, which can't be read; get the model as Q4_K_M, Q8_0, Q4_0 or F16")

    def close(self) -> None:
        """Give up the file. Dense tensors handed out stay valid: their views keep the mapping alive until they go."""
        mapped, self._map = self._map, None
        close_map(mapped)

    def __enter__(self) -> GgufFile:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()
