"""From GGUF's quantization blocks to the two forms of a weight.

A ggml block holds its scale (and minimum) next to its integers. Types that are affine per 32 values are repacked into
``AffineQuantized`` without changing a value: Q4_0, Q4_1, Q5_0, Q5_1, Q8_0 with their float16 scales, Q4_K and Q5_K, whose
scale is a product, with float32 ones. IQ4_NL and IQ4_XS look 4 bits up in a table of 8-bit integers, so they are exact as 8
bits. Q2_K, Q3_K and Q6_K are affine per 16 values, which no engine carries; they become bfloat16. Layouts: ggml-common.h and
ggml-quants.c of the ggml project.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from localsft.weights.quant import f32_to_bf16, pack
from localsft.weights.tensor import AffineQuantized, Dense, Tensor

Blocks = NDArray[np.void]  # structured: (rows, blocks in a row), one of the dtypes below
Bytes = NDArray[np.uint8]
Floats = NDArray[Any]

_CHUNK_VALUES = 1 << 17  # values repacked at a time, so that the temporaries stay in cache

_LAYOUTS: dict[str, np.dtype[np.void]] = {
    "Q4_0": np.dtype([("d", "<f2"), ("qs", "u1", 16)]),
    "Q4_1": np.dtype([("d", "<f2"), ("m", "<f2"), ("qs", "u1", 16)]),
    "Q5_0": np.dtype([("d", "<f2"), ("qh", "u1", 4), ("qs", "u1", 16)]),
    "Q5_1": np.dtype([("d", "<f2"), ("m", "<f2"), ("qh", "u1", 4), ("qs", "u1", 16)]),
    "Q8_0": np.dtype([("d", "<f2"), ("qs", "u1", 32)]),
    "Q4_K": np.dtype([("d", "<f2"), ("dmin", "<f2"), ("scales", "u1", 12), ("qs", "u1", 128)]),
    "Q5_K": np.dtype([("d", "<f2"), ("dmin", "<f2"), ("scales", "u1", 12), ("qh", "u1", 32), ("qs", "u1", 128)]),
    "IQ4_NL": np.dtype([("d", "<f2"), ("qs", "u1", 16)]),
    "IQ4_XS": np.dtype([("d", "<f2"), ("scales_h", "<u2"), ("scales_l", "u1", 4), ("qs", "u1", 128)]),
    "Q2_K": np.dtype([("scales", "u1", 16), ("qs", "u1", 64), ("d", "<f2"), ("dmin", "<f2")]),
    "Q3_K": np.dtype([("hmask", "u1", 32), ("qs", "u1", 64), ("scales", "u1", 12), ("d", "<f2")]),
    "Q6_K": np.dtype([("ql", "u1", 128), ("qh", "u1", 64), ("scales", "i1", 16), ("d", "<f2")]),
}
_AFFINE_BITS = {"Q4_0": 4, "Q4_1": 4, "Q5_0": 5, "Q5_1": 5, "Q8_0": 8, "Q4_K": 4, "Q5_K": 5, "IQ4_NL": 8, "IQ4_XS": 8}
_ZERO = {"Q4_0": 8, "Q5_0": 16, "Q8_0": 128, "IQ4_NL": 128, "IQ4_XS": 128}  # the q that stands for 0, where there is no minimum
_GROUP = 32

# ggml's kvalues_iq4nl (-127, -104, ..., 89, 113) plus 128.
_IQ4_TABLE = np.array([1, 24, 45, 63, 79, 93, 106, 118, 129, 141, 153, 166, 181, 197, 217, 241], np.uint8)

READABLE_TYPES = ("F32", "F16", "BF16", *_LAYOUTS)


def decode(raw: Bytes, type_name: str, shape: tuple[int, ...]) -> Tensor:
    """The bytes of one tensor -> Dense (a view of ``raw``, for F32, F16, BF16) or a repacked copy.

    ``raw`` uint8 (nbytes,), of the size that ``type_name`` and ``shape`` (numpy order) imply; ``type_name`` one of
    READABLE_TYPES; a quantized type needs two dimensions (ValueError otherwise).
    """
    if type_name in ("F32", "F16", "BF16"):
        dtype = {"F32": "<f4", "F16": "<f2", "BF16": "<u2"}[type_name]
        values = raw.view(dtype).reshape(shape)
        return Dense(np.require(values, requirements="A"), bf16=type_name == "BF16")
    rows, columns = shape
    blocks = raw.view(_LAYOUTS[type_name]).reshape(rows, -1)
    with np.errstate(all="ignore"):  # a damaged scale may be NaN or infinite: carried as it is, for the caller to find
        if type_name in _AFFINE_BITS:
            return _repack(blocks, type_name, rows, columns)
        weight = np.empty(shape, np.uint16)
        for part in _chunks(rows, columns):
            weight[part] = f32_to_bf16(_DEQUANTIZE[type_name](blocks[part])).reshape(-1, columns)
        return Dense(weight, bf16=True)


def _chunks(rows: int, columns: int) -> list[slice]:
    step = max(1, _CHUNK_VALUES // columns)
    return [slice(start, start + step) for start in range(0, rows, step)]


def _repack(blocks: Blocks, type_name: str, rows: int, columns: int) -> AffineQuantized:
    bits = _AFFINE_BITS[type_name]
    packed = np.empty((rows, columns * bits // 32), np.uint32)
    for part in _chunks(rows, columns):
        packed[part] = pack(_INTEGERS[type_name](blocks[part]).reshape(-1, columns), bits)
    scales, biases = _scales_and_biases(blocks, type_name)
    return AffineQuantized(packed, scales.reshape(rows, -1), biases.reshape(rows, -1), bits, _GROUP)


def _scales_and_biases(blocks: Blocks, type_name: str) -> tuple[Floats, Floats]:
    if type_name in ("Q4_K", "Q5_K"):
        sixteenths, minima = _split_k_scales(blocks["scales"])
        d, dmin = blocks["d"].astype(np.float32), blocks["dmin"].astype(np.float32)
        return d[..., None] * sixteenths, -dmin[..., None] * minima  # 11 bits times 6 bits: exact in float32
    if type_name == "IQ4_XS":
        low = _nibbles(blocks["scales_l"], 1).reshape(*blocks.shape, 8)
        high = (blocks["scales_h"][..., None] >> np.arange(0, 16, 2, dtype=np.uint16)) & np.uint16(3)
        scale = blocks["d"].astype(np.float32)[..., None] * ((low | (high << np.uint16(4))).astype(np.float32) - 32)
        return scale, np.float32(-_ZERO[type_name]) * scale
    d = np.ascontiguousarray(blocks["d"])
    if "m" in (blocks.dtype.names or ()):
        return d, np.ascontiguousarray(blocks["m"])
    biases = np.float32(-_ZERO[type_name]) * d.astype(np.float32)
    if np.abs(biases[np.isfinite(biases)]).max(initial=0) > np.finfo(np.float16).max:
        return d.astype(np.float32), biases  # a power of two times d always fits float32, but d > 65504/128 not float16
    return d, biases.astype(np.float16)


def _split_k_scales(scales: Bytes) -> tuple[Bytes, Bytes]:
    """Q4_K's and Q5_K's 12 bytes -> eight 6-bit scales and eight 6-bit minima (…, 8).

    Bytes 0-3 and 4-7 hold scales and minima 0-3 in their low 6 bits; bytes 8-11 hold the low 4 bits of scales 4-7 (low
    nibble) and minima 4-7 (high nibble), whose high 2 bits are the top bits of bytes 0-3 and 4-7.
    """
    first, second, third = scales[..., 0:4], scales[..., 4:8], scales[..., 8:12]
    upper_scales = (third & 0x0F) | ((first >> 6) << 4)
    upper_minima = (third >> 4) | ((second >> 6) << 4)
    return np.concatenate([first & 63, upper_scales], -1), np.concatenate([second & 63, upper_minima], -1)


def _nibbles(qs: Bytes, run: int) -> Bytes:
    """Bytes (…, n) -> values (…, n/run, 2, run): the low nibbles of a run of bytes, then its high nibbles."""
    qs = np.ascontiguousarray(qs)
    values = np.empty((*qs.shape[:-1], qs.shape[-1] // run, 2, run), np.uint8)
    whole = f"V{run}"  # a run as one item: numpy moves it at once, where a loop over so few bytes costs three times as much
    runs = values.view(whole)[..., 0]
    runs[..., 0] = (qs & 0x0F).view(whole)
    runs[..., 1] = (qs >> 4).view(whole)
    return values


def _fields(qs: Bytes, run: int, width: int, count: int) -> Bytes:
    """Bytes (…, n) -> values (…, n/run, count, run): bits [i·width, (i+1)·width) of each byte of a run, for i in count."""
    shifts = (np.arange(count, dtype=np.uint8) * np.uint8(width))[:, None]
    values: Bytes = (qs.reshape(*qs.shape[:-1], -1, 1, run) >> shifts) & np.uint8((1 << width) - 1)
    return values


def _q4(blocks: Blocks) -> Bytes:
    return _nibbles(blocks["qs"], 16)


def _q5(blocks: Blocks) -> Bytes:
    values = _nibbles(blocks["qs"], 16).reshape(*blocks.shape, 32)
    values |= np.unpackbits(blocks["qh"], axis=-1, bitorder="little") << np.uint8(4)
    return values


def _q8(blocks: Blocks) -> Bytes:
    return np.asarray(blocks["qs"] ^ 0x80)  # two's complement plus 128


def _iq4(blocks: Blocks) -> Bytes:
    values: Bytes = _IQ4_TABLE[_nibbles(blocks["qs"], 16)]
    return values


def _q4_k(blocks: Blocks) -> Bytes:
    return _nibbles(blocks["qs"], 32)


def _q5_k(blocks: Blocks) -> Bytes:
    values = _nibbles(blocks["qs"], 32).reshape(*blocks.shape, 8, 32)
    values |= _fields(blocks["qh"], 32, 1, 8).reshape(values.shape) << np.uint8(4)
    return values


_INTEGERS: dict[str, Callable[[Blocks], Bytes]] = {
    "Q4_0": _q4, "Q4_1": _q4, "Q5_0": _q5, "Q5_1": _q5, "Q8_0": _q8, "Q4_K": _q4_k, "Q5_K": _q5_k,
    "IQ4_NL": _iq4, "IQ4_XS": _iq4,
}  # fmt: skip


def _dequantize_q2_k(blocks: Blocks) -> Floats:
    scales = blocks["scales"]
    scale = blocks["d"].astype(np.float32)[..., None] * (scales & 0x0F)
    minimum = blocks["dmin"].astype(np.float32)[..., None] * (scales >> 4)
    q = _fields(blocks["qs"], 32, 2, 4).reshape(*blocks.shape, 16, 16)
    return np.asarray(scale[..., None] * q - minimum[..., None])


def _dequantize_q3_k(blocks: Blocks) -> Floats:
    # Scales: low 4 bits in the nibbles of bytes 0-7, high 2 bits in the 2-bit fields of bytes 8-11; stored plus 32.
    stored = blocks["scales"]
    low = _nibbles(stored[..., :8], 8).reshape(*blocks.shape, 16)
    high = _fields(stored[..., 8:], 4, 2, 4).reshape(*blocks.shape, 16)
    scale = blocks["d"].astype(np.float32)[..., None] * ((low | (high << 4)).astype(np.float32) - 32)
    q = _fields(blocks["qs"], 32, 2, 4).reshape(*blocks.shape, 16, 16)
    high_bit = _fields(blocks["hmask"], 32, 1, 8).reshape(q.shape)
    return np.asarray(scale[..., None] * ((q | (high_bit << 2)).astype(np.float32) - 4))


def _dequantize_q6_k(blocks: Blocks) -> Floats:
    scale = blocks["d"].astype(np.float32)[..., None] * blocks["scales"]
    low = _nibbles(blocks["ql"], 64).reshape(*blocks.shape, 16, 16)
    high = _fields(blocks["qh"], 32, 2, 4).reshape(low.shape)
    return np.asarray(scale[..., None] * ((low | (high << 4)).astype(np.float32) - 32))


_DEQUANTIZE: dict[str, Callable[[Blocks], Floats]] = {
    "Q2_K": _dequantize_q2_k,
    "Q3_K": _dequantize_q3_k,
    "Q6_K": _dequantize_q6_k,
}
