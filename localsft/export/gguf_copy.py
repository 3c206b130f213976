"""A GGUF written anew from another: its metadata byte for byte, its tensors copied or replaced.

What llama.cpp reads besides the weights (architecture, tokenizer, chat template) is taken over as bytes, so it can't be changed by
reading and writing it. Only ``general.file_type``, which describes the weights, is set, and keys of our own are appended.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from localsft.atomic import atomic_file
from localsft.errors import UsageError
from localsft.weights.gguf import open_gguf
from localsft.weights.gguf_header import TYPES

_SCALAR_BYTES = {0: 1, 1: 1, 2: 2, 3: 2, 4: 4, 5: 4, 6: 4, 7: 1, 10: 8, 11: 8, 12: 8}
_STRING, _ARRAY, _UINT32 = 8, 9, 4
_TYPE_NUMBERS = {name: number for number, (name, _, _) in TYPES.items()}

# general.file_type (llama_ftype in llama.h) of a file whose larger tensors are of a type.
FILE_TYPES = {"F32": 0, "F16": 1, "Q4_0": 2, "Q4_1": 3, "Q8_0": 7, "Q5_0": 8, "Q5_1": 9, "BF16": 32}

Rewrite = Callable[[], "NDArray[np.uint8]"]


def nbytes_of(type_name: str, shape: tuple[int, ...]) -> int:
    """The size of a tensor; UsageError where its rows do not fit the type's blocks."""
    _, block, block_bytes = TYPES[_TYPE_NUMBERS[type_name]]
    if shape[-1] % block:
        raise UsageError(f"--type {type_name} needs rows that are a multiple of {block} long, and this base has rows of {shape[-1]}")
    return int(np.prod(shape)) // block * block_bytes


def copy_gguf(
    source: Path, target: Path, replaced: Mapping[str, tuple[str, Rewrite]], texts: Mapping[str, str], file_type: int | None
) -> None:
    """Write ``target`` as ``source`` with some tensors replaced: GGUF name -> (type, function that makes the bytes). Everything else
    is copied. ``texts`` are appended as keys; ``file_type`` None keeps the source's. One tensor is in memory at a time."""
    with open_gguf(source) as file:
        raw = source.open("rb").read(_metadata_end(source))
        metadata, count = _with_file_type(raw, file_type)
        present = set(file.metadata)
        added = [(key, text) for key, text in texts.items() if key not in present]
        alignment = int(file.metadata.get("general.alignment", 32))  # type: ignore[arg-type]  # the header's check: an integer
        table, offset, plan = b"", 0, []
        for name, info in file.tensors.items():
            type_name = replaced[name][0] if name in replaced else info.type
            nbytes = nbytes_of(type_name, info.shape)
            dims = b"".join(struct.pack("<Q", dim) for dim in reversed(info.shape))
            table += _string(name) + struct.pack("<I", len(info.shape)) + dims + struct.pack("<IQ", _TYPE_NUMBERS[type_name], offset)
            plan.append((name, info, nbytes))
            offset += -(-nbytes // alignment) * alignment
        head = b"GGUF" + struct.pack("<IQQ", 3, len(file.tensors), count + len(added)) + metadata
        head += b"".join(_string(key) + struct.pack("<I", _STRING) + _string(text) for key, text in added) + table
        with source.open("rb") as old, atomic_file(target) as new:
            new.write(head + bytes(-len(head) % alignment))
            for name, info, nbytes in plan:
                if name in replaced:
                    data = replaced[name][1]().reshape(-1).view(np.uint8).data
                else:
                    old.seek(info.offset)
                    data = memoryview(old.read(info.nbytes))
                if len(data) != nbytes:
                    raise ValueError(f"{name} takes {len(data)} bytes, not {nbytes}")
                new.write(data)
                new.write(bytes(-nbytes % alignment))


def metadata_bytes(path: Path) -> dict[str, bytes]:
    """Key -> its value as it stands in the file, type number first. The file's header must have been checked."""
    with path.open("rb") as file:
        raw = file.read(_metadata_end(path))
    return {key: raw[start:end] for key, start, end in _keys(raw)}


def _metadata_end(path: Path) -> int:
    """Where the metadata ends: the header is read in growing pieces, since vocabularies may be large."""
    size = 1 << 20
    while True:
        with path.open("rb") as file:
            raw = file.read(size)
        try:
            return max((end for _, _, end in _keys(raw)), default=24)
        except (struct.error, IndexError):
            if len(raw) < size:
                raise
            size *= 4


def _keys(raw: bytes) -> list[tuple[str, int, int]]:
    """(key, start of the type number, end of the value) of every key. Raises struct.error where ``raw`` ends too early."""
    (count,) = struct.unpack_from("<Q", raw, 16)
    position, found = 24, []
    for _ in range(count):
        (length,) = struct.unpack_from("<Q", raw, position)
        key = raw[position + 8 : position + 8 + length].decode()
        start = position + 8 + length
        (kind,) = struct.unpack_from("<I", raw, start)
        position = _value_end(raw, start + 4, kind)
        if position > len(raw):
            raise struct.error("the metadata go on")
        found.append((key, start, position))
    return found


def _value_end(raw: bytes, position: int, kind: int) -> int:
    if kind == _STRING:
        return position + 8 + int(struct.unpack_from("<Q", raw, position)[0])
    if kind != _ARRAY:
        return position + _SCALAR_BYTES[kind]
    element, count = struct.unpack_from("<IQ", raw, position)
    position += 12
    if element != _STRING:
        return position + int(count) * _SCALAR_BYTES[element]
    for _ in range(count):
        position += 8 + int(struct.unpack_from("<Q", raw, position)[0])
    return position


def _with_file_type(raw: bytes, file_type: int | None) -> tuple[bytes, int]:
    """The metadata after the counts, general.file_type set where it is there, and the number of keys."""
    (count,) = struct.unpack_from("<Q", raw, 16)
    changed = bytearray(raw)
    for key, start, _ in _keys(raw):
        if key == "general.file_type" and file_type is not None and struct.unpack_from("<I", raw, start)[0] == _UINT32:
            struct.pack_into("<I", changed, start + 4, file_type)
    return bytes(changed[24:]), int(count)


def _string(text: str) -> bytes:
    data = text.encode()
    return struct.pack("<Q", len(data)) + data
