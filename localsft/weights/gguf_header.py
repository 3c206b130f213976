"""The header of a GGUF file: metadata and tensor table, read from bytes that nobody vouches for.

Format: the GGUF specification of the ggml project, versions 2 and 3, little-endian. Nothing is believed beyond the bytes
that remain: every count, length, dimension and offset is compared with them before anything is allocated or skipped.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from mmap import mmap
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
from numpy.typing import NDArray

from localsft.errors import InputError
from localsft.weights.messages import shown

GgufValue = bool | int | float | str | list[str] | NDArray[Any]
"""Scalars as Python values, arrays of strings as lists, arrays of numbers or bools as read-only numpy arrays."""

# Far above any real model (the largest vocabularies have 262,144 tokens and twice as many merges), and low enough that
# a hostile file is refused in seconds and megabytes.
MAX_KEYS = 1 << 16
MAX_TENSORS = 1 << 16
MAX_ARRAY_VALUES = 1 << 24  # summed over all arrays of the file
MAX_ALIGNMENT = 1 << 16
MAX_NAME_BYTES = 64  # of a tensor, by the specification
MAX_KEY_BYTES = 65535  # by the specification
MAX_DIMS = 4

_DAMAGED = "the file is damaged or was made to deceive: get it again from a source that you trust"
_CUT_SHORT = "the file is incomplete: download or copy it again"

_SCALARS: dict[int, str] = {
    0: "<u1", 1: "<i1", 2: "<u2", 3: "<i2", 4: "<u4", 5: "<i4", 6: "<f4", 7: "|b1", 10: "<u8", 11: "<i8", 12: "<f8",
}  # fmt: skip
_BOOL, _STRING, _ARRAY = 7, 8, 9

# Type number -> (name, values in a block, bytes of a block). All types of ggml, so that the table of tensors can be checked
# whole; weights/gguf_blocks.py has those that can also be read. From ggml's GGML_QUANT_SIZES.
TYPES: dict[int, tuple[str, int, int]] = {
    0: ("F32", 1, 4), 1: ("F16", 1, 2), 30: ("BF16", 1, 2), 28: ("F64", 1, 8),
    24: ("I8", 1, 1), 25: ("I16", 1, 2), 26: ("I32", 1, 4), 27: ("I64", 1, 8),
    2: ("Q4_0", 32, 18), 3: ("Q4_1", 32, 20), 6: ("Q5_0", 32, 22), 7: ("Q5_1", 32, 24), 8: ("Q8_0", 32, 34), 9: ("Q8_1", 32, 40),
    10: ("Q2_K", 256, 84), 11: ("Q3_K", 256, 110), 12: ("Q4_K", 256, 144), 13: ("Q5_K", 256, 176), 14: ("Q6_K", 256, 210),
    15: ("Q8_K", 256, 292), 16: ("IQ2_XXS", 256, 66), 17: ("IQ2_XS", 256, 74), 18: ("IQ3_XXS", 256, 98), 19: ("IQ1_S", 256, 50),
    20: ("IQ4_NL", 32, 18), 21: ("IQ3_S", 256, 110), 22: ("IQ2_S", 256, 82), 23: ("IQ4_XS", 256, 136), 29: ("IQ1_M", 256, 56),
    34: ("TQ1_0", 256, 54), 35: ("TQ2_0", 256, 66), 39: ("MXFP4", 32, 17), 40: ("NVFP4", 64, 36), 41: ("Q1_0", 128, 18),
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class GgufTensorInfo:
    """One row of the tensor table. ``type`` as ggml names it, ``shape`` in numpy order (outputs first), ``offset`` from
    the start of the file and ``nbytes`` in bytes; the range is known to lie inside the file."""

    name: str
    type: str
    shape: tuple[int, ...]
    offset: int
    nbytes: int


@dataclass(frozen=True, slots=True)
class GgufHeader:
    version: int
    alignment: int
    metadata: Mapping[str, GgufValue]
    tensors: Mapping[str, GgufTensorInfo]


def read_header(buffer: mmap | bytes, path: Path) -> GgufHeader:
    """Parse and check the whole header of ``buffer`` (the file's bytes; ``path`` for messages only).

    Raises InputError for anything but a whole, consistent, little-endian GGUF of version 2 or 3.
    """
    cursor = _Cursor(buffer, path)
    version = _read_version(cursor)
    n_tensors = cursor.count("tensors", MAX_TENSORS, least_bytes=8 + 4 + 8 + 4 + 8)
    n_keys = cursor.count("metadata keys", MAX_KEYS, least_bytes=8 + 1 + 4 + 1)
    metadata: dict[str, GgufValue] = {}
    alignment = 32
    for number in range(n_keys):
        key = cursor.string(f"the name of metadata key {number}", MAX_KEY_BYTES)
        if not key or key in metadata:
            cursor.fail(f"metadata key {shown(key)} is {'there twice' if key else 'empty'}")
        kind = cursor.integer("<I", f"the type of {shown(key)}")
        metadata[key] = cursor.value(kind, key)
        if key == "general.alignment":
            alignment = _check_alignment(cursor, kind, metadata[key])
    tensors = _read_tensor_table(cursor, n_tensors, alignment)
    return GgufHeader(version, alignment, metadata, tensors)


def _read_version(cursor: _Cursor) -> int:
    if cursor.size == 0:
        raise InputError(f"{cursor.path} is empty; download or copy it again")
    magic = bytes(cursor.buffer[: min(4, cursor.size)])
    if magic != b"GGUF":
        raise InputError(
            f"{cursor.path} is not a GGUF file (it starts with {magic!r}, not b'GGUF'); "
            "give a .gguf file, or a folder with config.json and .safetensors files"
        )
    cursor.position = 4
    version = cursor.integer("<I", "the version")
    if version in (2, 3):
        return version
    if version & 0xFFFF == 0 and version:
        raise InputError(f"{cursor.path} is a big-endian GGUF, made for another kind of machine; get the little-endian file instead")
    if version == 1:
        raise InputError(f"{cursor.path} is GGUF version 1, which is obsolete; get a newer conversion of the model (version 2 or 3)")
    raise InputError(f"{cursor.path} says that it is GGUF version {version}, but versions 2 and 3 are known; get a version 3 file")


def _check_alignment(cursor: _Cursor, kind: int, value: GgufValue) -> int:
    if kind != 4 or not isinstance(value, int) or value & (value - 1) or not 0 < value <= MAX_ALIGNMENT:
        cursor.fail(f"general.alignment must be a 32-bit power of two up to {MAX_ALIGNMENT}")
    return value


def _read_tensor_table(cursor: _Cursor, n_tensors: int, alignment: int) -> dict[str, GgufTensorInfo]:
    rows: dict[str, tuple[str, tuple[int, ...], int, int]] = {}  # name -> type, shape, offset in the data, bytes
    for number in range(n_tensors):
        name = cursor.string(f"the name of tensor {number}", MAX_NAME_BYTES)
        if not name or name in rows:
            cursor.fail(f"tensor name {shown(name)} is {'there twice' if name else 'empty'}")
        n_dims = cursor.integer("<I", f"the dimensions of tensor {shown(name)}")
        if not 1 <= n_dims <= MAX_DIMS:
            cursor.fail(f"tensor {shown(name)} has {n_dims} dimensions, not 1 to {MAX_DIMS}")
        dims = [cursor.integer("<Q", f"the dimensions of tensor {shown(name)}") for _ in range(n_dims)]
        kind = cursor.integer("<I", f"the type of tensor {shown(name)}")
        if kind not in TYPES:
            raise InputError(
                f"{cursor.path}: tensor {shown(name)} has type number {kind}, which no GGUF known here uses; "
                "get the model in Q4_K_M, Q8_0 or F16, or use a newer localsft"
            )
        type_name, block, block_bytes = TYPES[kind]
        nbytes = math.prod(dims) // block * block_bytes  # Python integers: no product can overflow
        if not all(0 < dim < 1 << 48 for dim in dims) or nbytes > cursor.size:
            cursor.fail(f"tensor {shown(name)} has dimensions {dims} as {type_name}, which a file of {cursor.size} bytes cannot hold")
        if dims[0] % block:
            cursor.fail(f"tensor {shown(name)} has rows of {dims[0]} values, not a multiple of {block} as {type_name} needs")
        rows[name] = type_name, tuple(reversed(dims)), cursor.integer("<Q", f"the offset of tensor {shown(name)}"), nbytes
    data_start = -(-cursor.position // alignment) * alignment
    expected = 0  # tensors lie in the order of the table, each at the next aligned byte, as llama.cpp demands too
    tensors: dict[str, GgufTensorInfo] = {}
    for name, (type_name, shape, offset, nbytes) in rows.items():
        if offset != expected:
            cursor.fail(f"tensor {shown(name)} lies at data offset {offset}, where {expected} follows from the tensor before it")
        end = data_start + offset + nbytes
        if end > cursor.size:
            cursor.cut_short(f"tensor {shown(name)}, whose data would reach to byte {end}")
        tensors[name] = GgufTensorInfo(name, type_name, shape, data_start + offset, nbytes)
        expected = -(-(offset + nbytes) // alignment) * alignment
    return tensors


class _Cursor:
    """A position in the file's bytes. Every read checks first that the bytes are there."""

    def __init__(self, buffer: mmap | bytes, path: Path) -> None:
        self.buffer = buffer
        self.path = path
        self.size = len(buffer)
        self.position = 0
        self._array_values_left = MAX_ARRAY_VALUES

    def fail(self, what: str) -> NoReturn:
        raise InputError(f"{self.path}: {what}; {_DAMAGED}")

    def cut_short(self, where: str) -> NoReturn:
        raise InputError(f"{self.path} ends at byte {self.size}, inside {where}; {_CUT_SHORT}")

    def take(self, nbytes: int, what: str) -> int:
        """Move past ``nbytes`` and return where they start."""
        start = self.position
        if nbytes > self.size - start:
            self.cut_short(what)
        self.position = start + nbytes
        return start

    def integer(self, form: str, what: str) -> int:
        start = self.take(struct.calcsize(form), what)
        return int(struct.unpack_from(form, self.buffer, start)[0])

    def count(self, what: str, most: int, least_bytes: int) -> int:
        """How many ``what`` follow: no more than ``most``, nor than could fit at ``least_bytes`` each."""
        count = self.integer("<Q", f"the number of {what}")
        if count > min(most, (self.size - self.position) // least_bytes):
            self.fail(f"it says that it has {count} {what}, more than a file of {self.size} bytes can have")
        return count

    def string(self, what: str, most: int | None = None) -> str:
        length = self.integer("<Q", f"the length of {what}")
        if most is not None and length > most:
            self.fail(f"{what} has {length} bytes, more than {most}")
        start = self.take(length, what)
        return self._decode(self.buffer[start : start + length], what)

    def _decode(self, raw: bytes, what: str) -> str:
        try:
            return raw.decode("utf-8")
        except UnicodeDecodeError:
            self.fail(f"{what} is not valid UTF-8")

    def value(self, kind: int, key: str) -> GgufValue:
        if kind == _STRING:
            return self.string(f"the value of {shown(key)}")
        if kind != _ARRAY:
            value: bool | int | float = self._numbers(kind, 1, key)[0].item()
            return value
        kind = self.integer("<I", f"the element type of {shown(key)}")
        what = f"elements in {shown(key)}"
        count = self.count(what, self._array_values_left, self._scalar_bytes(kind, key) if kind != _STRING else 8)
        self._array_values_left -= count
        if kind != _STRING:
            return self._numbers(kind, count, key)
        return self._strings(count, f"the value of {shown(key)}")

    def _scalar_bytes(self, kind: int, key: str) -> int:
        if kind == _ARRAY:
            self.fail(f"the value of {shown(key)} is an array of arrays, which no model uses")
        if kind not in _SCALARS:
            self.fail(f"the value of {shown(key)} has type number {kind}, which GGUF does not define")
        return np.dtype(_SCALARS[kind]).itemsize

    def _numbers(self, kind: int, count: int, key: str) -> NDArray[Any]:
        start = self.take(count * self._scalar_bytes(kind, key), f"the value of {shown(key)}")
        stored = np.frombuffer(self.buffer, "<u1" if kind == _BOOL else _SCALARS[kind], count, start)
        if kind == _BOOL and (stored > 1).any():
            self.fail(f"the value of {shown(key)} is a truth value other than 0 and 1")
        values = stored.astype(_SCALARS[kind])  # a copy: the map can then be closed
        values.flags.writeable = False
        return values

    def _strings(self, count: int, what: str) -> list[str]:
        # The hot loop of a vocabulary, with the checks of string() inlined: 100,000 strings in about 50 ms.
        buffer, end, position = self.buffer, self.size, self.position
        length_at = struct.Struct("<Q").unpack_from
        strings: list[str] = []
        for _ in range(count):
            if end - position < 8:
                self.cut_short(what)
            (length,) = length_at(buffer, position)
            position += 8
            if length > end - position:
                self.cut_short(what)
            strings.append(self._decode(buffer[position : position + length], what))
            position += length
        self.position = position
        return strings
