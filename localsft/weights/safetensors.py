"""The safetensors format: our own checked reader with memory-mapped views, and an atomic, deterministic writer.

A file is an 8-byte little-endian header length, a JSON header {name: {dtype, shape, data_offsets}}, and the data. The
checks are those of the safetensors library (no overlap, no hole, no overflow, a bounded header), and duplicate keys.
"""

from __future__ import annotations

import json
import math
import mmap
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO, NoReturn

import numpy as np
from numpy.typing import NDArray

from localsft.atomic import atomic_file
from localsft.errors import InputError
from localsft.weights.mapped import close_map, map_file, release_pages
from localsft.weights.messages import shown
from localsft.weights.tensor import Dense

MAX_HEADER_BYTES = 32 << 20  # about 200,000 tensors in one file
MAX_DIMS = 8
_NAME = re.compile(r"[A-Za-z0-9_.:+\-]{1,255}")
_SURROGATE = re.compile("[\ud800-\udfff]")  # JSON can escape half a character, which no encoding can write out
_DAMAGED = "the file is damaged or was made to deceive: get it again from a source that you trust"

# Name in the header -> bytes of a value and the numpy dtype of a view; bfloat16 is seen as its bits, float8 as bytes.
_DTYPES = {
    "BOOL": "|b1", "U8": "|u1", "I8": "|i1", "F8_E5M2": "|u1", "F8_E4M3": "|u1", "F8_E8M0": "|u1",
    "I16": "<i2", "U16": "<u2", "F16": "<f2", "BF16": "<u2", "I32": "<i4", "U32": "<u4", "F32": "<f4",
    "I64": "<i8", "U64": "<u8", "F64": "<f8", "C64": "<c8",
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class SafetensorsInfo:
    """One tensor of the header. ``dtype`` as safetensors names it; ``offset`` from the start of the file, in bytes."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    offset: int
    nbytes: int


def open_safetensors(path: str | Path) -> SafetensorsFile:
    """Map a safetensors file and check its header. Reads no tensor data.

    Raises InputError (one sentence with the file, what is wrong and the remedy) for a missing file or a bad header.
    """
    path = Path(path)
    return SafetensorsFile(path, map_file(path))


class SafetensorsFile:
    """An open file. ``tensors`` the header's table by name, ``metadata`` its free texts."""

    def __init__(self, path: Path, mapped: mmap.mmap | None) -> None:
        self.path = path
        self._map = mapped
        self.tensors, self.metadata = read_header(b"" if mapped is None else mapped, path)

    def array(self, name: str) -> NDArray[Any]:
        """A read-only view of the mapped data (a copy where the file does not align it). BF16 comes as uint16 bits,
        float8 as uint8. Raises KeyError for an unknown name."""
        info = self.tensors[name]
        if self._map is None:
            if info.nbytes:
                raise ValueError(f"{self.path} is closed")
            empty: NDArray[Any] = np.empty(info.shape, _DTYPES[info.dtype])
            return empty
        count = info.nbytes // np.dtype(_DTYPES[info.dtype]).itemsize
        values: NDArray[Any] = np.frombuffer(self._map, _DTYPES[info.dtype], count, info.offset).reshape(info.shape)
        if values.flags.aligned:
            return values
        copy: NDArray[Any] = values.copy()  # MLX does not pad its headers, so its files are seldom aligned
        copy.flags.writeable = False
        release_pages(self._map)
        return copy

    def close(self) -> None:
        """Give up the file. Views handed out stay valid and keep the mapping alive until they go."""
        mapped, self._map = self._map, None
        close_map(mapped)

    def __enter__(self) -> SafetensorsFile:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()


def read_header(buffer: mmap.mmap | bytes, path: Path) -> tuple[dict[str, SafetensorsInfo], dict[str, str]]:
    """Parse and check the header of ``buffer`` (the file's bytes; ``path`` for messages only) -> tensors, metadata."""

    def fail(what: str) -> NoReturn:
        raise InputError(f"{path}: {what}; {_DAMAGED}")

    size = len(buffer)
    if size < 8:
        raise InputError(f"{path} has {size} bytes, too few for a safetensors file; download or copy it again")
    length = int.from_bytes(buffer[:8], "little")
    if length > MAX_HEADER_BYTES:
        raise InputError(f"{path} is not a safetensors file (it announces a header of {length} bytes); check that the path is right")
    if length > size - 8:
        raise InputError(f"{path} ends at byte {size}, inside its header of {length} bytes; it is incomplete, download or copy it again")
    header = _parse_json(buffer[8 : 8 + length], fail)
    texts = header.pop("__metadata__", None)
    texts = {} if texts is None else texts  # MLX writes null where there are none
    if not isinstance(texts, dict) or not all(_is_text(text) for pair in texts.items() for text in pair):
        fail("__metadata__ in its header is not a table of texts")
    data_start = 8 + length
    tensors: dict[str, SafetensorsInfo] = {}
    for name, entry in header.items():
        tensors[name] = _check_entry(name, entry, data_start, fail)
    expected = data_start
    for info in sorted(tensors.values(), key=lambda info: (info.offset, info.nbytes)):
        if info.offset != expected:
            fail(f"tensor {info.name!r} {'overlaps the one before it' if info.offset < expected else 'leaves a hole before it'}")
        expected = info.offset + info.nbytes
    if expected > size:
        raise InputError(f"{path} ends at byte {size} of {expected}; it is incomplete, download or copy it again")
    if expected < size:
        fail(f"{size - expected} bytes follow the last tensor")
    return tensors, texts


def _parse_json(raw: bytes, fail: Any) -> dict[str, Any]:
    def no_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        table: dict[str, Any] = {}
        for key, value in pairs:
            if key in table:
                fail(f"its header has the key {shown(key)} twice")
            table[key] = value
        return table

    try:
        header = json.loads(raw.decode("utf-8"), object_pairs_hook=no_duplicates)
    except (ValueError, RecursionError) as error:
        fail(f"its header is not valid JSON ({type(error).__name__})")
    if not isinstance(header, dict):
        fail("its header is not a JSON object")
    table: dict[str, Any] = header
    return table


def _check_entry(name: str, entry: Any, data_start: int, fail: Any) -> SafetensorsInfo:
    if not _NAME.fullmatch(name):
        fail(f"tensor name {shown(name)} has characters other than letters, digits and _ . : + -")
    if not isinstance(entry, dict) or set(entry) != {"dtype", "shape", "data_offsets"}:
        fail(f"tensor {name!r} is not described by dtype, shape and data_offsets")
    dtype, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
    if not isinstance(dtype, str) or dtype not in _DTYPES:
        fail(f"tensor {name!r} has the unknown dtype {shown(dtype)}")
    if not _whole_numbers(shape) or len(shape) > MAX_DIMS:
        fail(f"the shape of tensor {name!r} is not a list of up to {MAX_DIMS} whole numbers")
    if not _whole_numbers(offsets) or len(offsets) != 2 or offsets[0] > offsets[1]:
        fail(f"the data_offsets of tensor {name!r} are not a begin and an end")
    nbytes = math.prod(shape) * np.dtype(_DTYPES[dtype]).itemsize
    if nbytes != offsets[1] - offsets[0]:
        fail(f"tensor {name!r} of shape {shape} as {dtype} needs {nbytes} bytes, but its data_offsets span {offsets[1] - offsets[0]}")
    return SafetensorsInfo(name, dtype, tuple(shape), data_start + offsets[0], nbytes)


def _is_text(value: Any) -> bool:
    return isinstance(value, str) and not _SURROGATE.search(value)


def _whole_numbers(values: Any) -> bool:
    return isinstance(values, list) and all(type(value) is int and 0 <= value < 1 << 63 for value in values)


def write_safetensors(path: str | Path, tensors: Mapping[str, NDArray[Any] | Dense], metadata: Mapping[str, str] | None = None) -> None:
    """Write tensors atomically (a temporary file beside ``path``, synced, then renamed); same input, same bytes.

    Values are numpy arrays, or Dense where bfloat16 has to be said. Tensors are stored in the order of their names, data
    starting at a multiple of 8 bytes. Raises InputError where the disk is full or the folder can't be written; nothing
    half-written is left then, and an older file at ``path`` stays as it was. Raises ValueError for a bad name or dtype.
    """
    path = Path(path)
    header: dict[str, Any] = {"__metadata__": dict(sorted(metadata.items()))} if metadata else {}
    ordered: list[NDArray[Any]] = []
    offset = 0
    # By item size first, so that every tensor is aligned to its own dtype, as the safetensors library orders them too.
    for name, tensor in sorted(tensors.items(), key=lambda item: (-_array(item[1]).itemsize, item[0])):
        values = _array(tensor)
        dtype = "BF16" if isinstance(tensor, Dense) and tensor.bf16 else _DTYPE_NAMES.get(values.dtype.newbyteorder("<").str)
        if dtype is None or not _NAME.fullmatch(name):
            raise ValueError(f"cannot store {name!r} with dtype {values.dtype} in a safetensors file")
        header[name] = {"dtype": dtype, "shape": list(values.shape), "data_offsets": [offset, offset + values.nbytes]}
        offset += values.nbytes
        ordered.append(values)
    raw = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    raw += b" " * (-len(raw) % 8)
    with atomic_file(path) as file:
        file.write(len(raw).to_bytes(8, "little") + raw)
        for values in ordered:
            _write_array(file, values)


_DTYPE_NAMES = {"|b1": "BOOL", "|u1": "U8", "|i1": "I8"} | {
    _DTYPES[name]: name for name in ("I16", "U16", "F16", "I32", "U32", "F32", "I64", "U64", "F64")
}


def _array(tensor: NDArray[Any] | Dense) -> NDArray[Any]:
    return tensor.data if isinstance(tensor, Dense) else tensor


def _write_array(file: BinaryIO, values: NDArray[Any]) -> None:
    flat = np.ascontiguousarray(values, values.dtype.newbyteorder("<")).reshape(-1)
    file.write(flat.view(np.uint8).data)
