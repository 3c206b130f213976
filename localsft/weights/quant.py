"""Affine quantization in plain numpy: the bit order, the arithmetic, and the quantizer of MLX.

w = scale·q + bias per group of G inputs along the last axis, q an unsigned B-bit integer. The q values of a row form one
little-endian bit string (value i in bits [i·B, (i+1)·B)), stored as uint32 words. Letters: B bits, G group size.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from localsft.weights.tensor import AffineQuantized, Dense, Tensor

BITS = (2, 3, 4, 5, 6, 8)

# Eight B-bit values are B bytes whatever B is, so packing works on eight values at a time: their eight bytes are one
# uint64 lane whose fields are folded together in pairs (8 → 16 → 32 → 64 bits wide). Rows go in chunks that stay in cache.
_CHUNK_VALUES = 1 << 17
_FOLDS = ((8, 0x0001000100010001), (16, 0x0000000100000001), (32, 1))  # width of a field; ones at every second field


def _row_chunks(rows: int, columns: int) -> range:
    return range(0, rows, max(1, _CHUNK_VALUES // max(columns, 1)))


def pack(q: NDArray[np.uint8], bits: int) -> NDArray[np.uint32]:
    """Pack integers below 2**``bits`` into MLX's bit order.

    ``q`` uint8 (rows, n) with n·bits a multiple of 32 -> uint32 (rows, n·bits/32). ``bits`` 1 to 8. Values that do not
    fit ``bits`` corrupt their neighbours; callers hold that, since a check would cost as much as the packing.
    """
    rows, n = q.shape
    if not 1 <= bits <= 8 or n % 8 or n * bits % 32:
        raise ValueError(f"cannot pack rows of {n} values of {bits} bits into 32-bit words")
    packed = np.empty((rows, n * bits // 8), np.uint8)
    chunks = _row_chunks(rows, n)
    for start in chunks:
        part = slice(start, start + chunks.step)
        packed[part] = _fold(np.ascontiguousarray(q[part]), bits)
    return packed.view("<u4")


def _fold(q: NDArray[np.uint8], bits: int) -> NDArray[np.uint8]:
    if bits == 8:
        return q
    if bits == 4:
        pair = q.view("<u2")
        low_bytes: NDArray[np.uint8] = (pair | (pair >> np.uint16(4))).astype(np.uint8)
        return low_bytes
    lane = q.view("<u8")
    for width, ones in _FOLDS:
        filled = width * bits // 8
        low = ones * ((1 << filled) - 1)
        lane = (lane & np.uint64(low)) | ((lane >> np.uint64(width - filled)) & np.uint64(low << filled))
    octets: NDArray[np.uint8] = lane.view(np.uint8).reshape(q.shape[0], -1, 8)[:, :, :bits]
    return octets.reshape(q.shape[0], -1)


def unpack_words(packed: NDArray[np.uint32], bits: int) -> NDArray[np.uint8]:
    """The inverse of ``pack``: uint32 (rows, n·bits/32) -> uint8 (rows, n)."""
    rows = packed.shape[0]
    octets = np.ascontiguousarray(packed).view(np.uint8)
    n = octets.shape[1] * 8 // bits
    q = np.empty((rows, n), np.uint8)
    chunks = _row_chunks(rows, n)
    for start in chunks:
        part = slice(start, start + chunks.step)
        q[part] = _unfold(octets[part], bits)
    return q


def _unfold(octets: NDArray[np.uint8], bits: int) -> NDArray[np.uint8]:
    if bits == 8:
        return octets
    if bits == 4:
        pair = octets.astype("<u2")
        nibbles: NDArray[np.uint8] = ((pair | (pair << np.uint16(4))) & np.uint16(0x0F0F)).view(np.uint8)
        return nibbles
    rows = octets.shape[0]
    wide = np.zeros((rows, octets.shape[1] // bits, 8), np.uint8)
    wide[:, :, :bits] = octets.reshape(rows, -1, bits)
    lane = wide.reshape(rows, -1).view("<u8")
    for width, ones in reversed(_FOLDS):
        filled = width * bits // 8
        low = ones * ((1 << filled) - 1)
        lane = (lane & np.uint64(low)) | ((lane << np.uint64(width - filled)) & np.uint64(low << width))
    q: NDArray[np.uint8] = lane.view(np.uint8)
    return q


def unpack(tensor: AffineQuantized) -> NDArray[np.uint8]:
    """The q values of a quantized tensor: uint8 (out, in)."""
    return unpack_words(tensor.packed, tensor.bits)


def bf16_to_f32(bits: NDArray[np.uint16]) -> NDArray[np.float32]:
    """bfloat16 bits (uint16) -> the same values in float32; exact, any shape."""
    values: NDArray[np.float32] = (bits.astype(np.uint32) << np.uint32(16)).view(np.float32)
    return values


def f32_to_bf16(values: NDArray[Any]) -> NDArray[np.uint16]:
    """float32 -> bfloat16 bits (uint16), rounded to nearest, ties to even; infinities kept, NaN stays a (quiet) NaN."""
    word = np.ascontiguousarray(values, np.float32).view(np.uint32)
    odd = (word >> np.uint32(16)) & np.uint32(1)
    rounded = (word + (np.uint32(0x7FFF) + odd)) >> np.uint32(16)  # a NaN may wrap around here; replaced below
    nan = (word & np.uint32(0x7FFFFFFF)) > np.uint32(0x7F800000)
    bits: NDArray[np.uint16] = np.where(nan, (word >> np.uint32(16)) | np.uint32(0x40), rounded).astype(np.uint16)
    return bits


def to_f32(values: NDArray[Any], bf16: bool) -> NDArray[np.float32]:
    """float32, float16, or bfloat16 bits (``bf16``) -> float32."""
    return bf16_to_f32(values) if bf16 else values.astype(np.float32, copy=False)


def dequantize(tensor: AffineQuantized) -> NDArray[np.float32]:
    """scale·q + bias in float32: (out, in). The product is rounded, then the sum."""
    q = unpack(tensor)
    rows = q.shape[0]
    scales = to_f32(tensor.scales, tensor.bf16_scales)[:, :, None]
    biases = to_f32(tensor.biases, tensor.bf16_scales)[:, :, None]
    weight = q.reshape(rows, -1, tensor.group_size).astype(np.float32)
    weight *= scales
    weight += biases
    return weight.reshape(rows, -1)


def as_f32(tensor: Tensor) -> NDArray[np.float32]:
    """Any tensor as a float32 array. For small tensors, tests and exports: a quantized one grows by 32/B."""
    return to_f32(tensor.data, tensor.bf16) if isinstance(tensor, Dense) else dequantize(tensor)


def row_squares(tensor: Tensor) -> NDArray[np.float64]:
    """‖W_o‖² of each row of a weight (out, in): float64 (out,)."""
    weight = as_f32(tensor)
    squares = np.empty(len(weight))
    chunks = _row_chunks(*weight.shape)
    for start in chunks:
        part = weight[start : start + chunks.step].astype(np.float64)
        squares[start : start + chunks.step] = np.einsum("ok,ok->o", part, part)
    return squares


def quantize_affine(weight: NDArray[Any], bits: int, group_size: int, *, bf16_scales: bool = False) -> AffineQuantized:
    """Quantize as ``mlx.core.quantize`` does (its affine mode): float32 or float16 (out, in) -> AffineQuantized.

    Each group spans its own minimum to maximum in 2**bits - 1 steps; the end with the larger magnitude is hit exactly
    and zero lies on the grid. Scales and biases have the dtype of ``weight``, or bfloat16 with ``bf16_scales``; q is
    chosen with the unrounded ones, as MLX does. Raises ValueError where ``in`` is not a multiple of ``group_size``.
    """
    rows, columns = weight.shape
    if bits not in BITS or columns % group_size or group_size * bits % 32:
        raise ValueError(f"cannot quantize rows of {columns} weights to {bits} bits in groups of {group_size}")
    groups = weight.astype(np.float32).reshape(rows, -1, group_size)
    low, high = groups.min(-1), groups.max(-1)
    top = np.float32(2**bits - 1)
    low_is_larger = np.abs(low) > np.abs(high)
    scale = np.maximum((high - low) / top, np.float32(1e-7))
    scale = np.where(low_is_larger, scale, -scale)
    edge = np.where(low_is_larger, low, high)
    steps = np.rint(edge / scale)
    on_grid = steps != 0
    scale = np.where(on_grid, edge / np.where(on_grid, steps, 1), scale).astype(np.float32)
    bias = np.where(on_grid, edge, np.float32(0))
    q = np.clip(np.rint((groups - bias[:, :, None]) / scale[:, :, None]), 0, top).astype(np.uint8)
    packed = pack(q.reshape(rows, columns), bits)
    if bf16_scales:
        return AffineQuantized(packed, f32_to_bf16(scale), f32_to_bf16(bias), bits, group_size, bf16_scales=True)
    dtype = weight.dtype
    return AffineQuantized(packed, scale.astype(dtype), bias.astype(dtype), bits, group_size)


def all_finite(values: NDArray[Any], bf16: bool) -> bool:
    """Whether an array of floats (bfloat16 bits with ``bf16``) has neither NaN nor infinity."""
    flat = values.reshape(-1)
    for start in range(0, flat.size, _CHUNK_VALUES):
        part = flat[start : start + _CHUNK_VALUES]
        if not (bool(((part & 0x7F80) != 0x7F80).all()) if bf16 else bool(np.isfinite(part).all())):
            return False
    return True
