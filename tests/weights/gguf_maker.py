"""GGUF files byte by byte, so that any field can be made to lie."""

from __future__ import annotations

import struct
from collections.abc import Sequence

U8, I8, U16, I16, U32, I32, F32, BOOL, STRING, ARRAY, U64, I64, F64 = range(13)
TYPE_F32, TYPE_Q4_0, TYPE_I8, TYPE_I64, TYPE_Q4_K = 0, 2, 24, 27, 12
HUGE = (1 << 64) - 1


def u32(value: int) -> bytes:
    return struct.pack("<I", value)


def u64(value: int) -> bytes:
    return struct.pack("<Q", value)


def string(text: str | bytes, length: int | None = None) -> bytes:
    raw = text.encode() if isinstance(text, str) else text
    return u64(len(raw) if length is None else length) + raw


def kv(key: str | bytes, kind: int, value: bytes, key_length: int | None = None) -> bytes:
    return string(key, key_length) + u32(kind) + value


def array(kind: int, count: int, values: bytes) -> bytes:
    return u32(kind) + u64(count) + values


def tensor(
    name: str | bytes, dims: Sequence[int], kind: int = TYPE_F32, offset: int = 0, n_dims: int | None = None, name_length: int | None = None
) -> bytes:
    """One row of the table; ``dims`` in the file's order (inputs first)."""
    sizes = b"".join(u64(dim) for dim in dims)
    return string(name, name_length) + u32(len(dims) if n_dims is None else n_dims) + sizes + u32(kind) + u64(offset)


def gguf(
    keys: Sequence[bytes] = (),
    tensors: Sequence[bytes] = (),
    data: bytes = b"",
    *,
    magic: bytes = b"GGUF",
    version: bytes = u32(3),
    n_tensors: int | None = None,
    n_keys: int | None = None,
    alignment: int = 32,
) -> bytes:
    head = magic + version + u64(len(tensors) if n_tensors is None else n_tensors) + u64(len(keys) if n_keys is None else n_keys)
    head += b"".join(keys) + b"".join(tensors)
    return head + bytes(-len(head) % alignment) + data
