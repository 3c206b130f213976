"""Bit order and quantizer against MLX and against a plain reading of the format; bfloat16 against its definition."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

from localsft.weights.quant import (
    BITS,
    all_finite,
    bf16_to_f32,
    dequantize,
    f32_to_bf16,
    pack,
    quantize_affine,
    to_f32,
    unpack,
    unpack_words,
)
from localsft.weights.tensor import AffineQuantized


@pytest.mark.parametrize("bits", range(1, 9))
@pytest.mark.parametrize("columns", [32, 160, 576])
def test_value_i_lies_in_bits_i_times_b(bits: int, columns: int) -> None:
    q = np.random.default_rng(bits).integers(0, 2**bits, (5, columns), np.uint8)
    packed = pack(q, bits)
    assert packed.dtype == np.uint32
    assert packed.shape == (5, columns * bits // 32)
    string = np.unpackbits(packed.view(np.uint8), axis=1, bitorder="little")
    assert np.array_equal((string.reshape(5, columns, bits) << np.arange(bits)).sum(-1), q)
    assert np.array_equal(unpack_words(packed, bits), q)


def test_rows_beyond_one_chunk_and_views_pack_alike() -> None:
    q = np.random.default_rng(0).integers(0, 32, (300, 2048), np.uint8)
    assert np.array_equal(pack(q, 5)[250], pack(q[250:251], 5)[0])
    assert np.array_equal(pack(q[:, ::2], 5), pack(np.ascontiguousarray(q[:, ::2]), 5))
    assert np.array_equal(unpack_words(pack(q, 5)[::3], 5), q[::3])


@pytest.mark.parametrize(("columns", "bits"), [(31, 4), (8, 3), (32, 9), (32, 0)])
def test_rows_that_are_not_whole_words_are_refused(columns: int, bits: int) -> None:
    with pytest.raises(ValueError, match="cannot pack"):
        pack(np.zeros((1, columns), np.uint8), bits)


def _hard_weights() -> NDArray[np.float32]:
    w = np.random.default_rng(3).standard_normal((9, 384)).astype(np.float32)
    w[0] = 0
    w[1] = 3  # a constant group
    w[2] = np.abs(w[2])
    w[3] = -np.abs(w[3])
    w[4, ::7] *= 1000
    w[5] *= 1e-9
    return w


@pytest.mark.parametrize("bits", BITS)
@pytest.mark.parametrize("group_size", [32, 64, 128])
@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
def test_quantizes_and_dequantizes_as_mlx_does(bits: int, group_size: int, dtype: str) -> None:
    mx = pytest.importorskip("mlx.core", reason="mlx is the oracle of its own bit order")
    weight = mx.array(_hard_weights()).astype(getattr(mx, dtype))
    expected_packed, expected_scales, expected_biases = mx.quantize(weight, group_size=group_size, bits=bits)
    ours = quantize_affine(
        np.array(weight.astype(mx.float32)).astype("float16" if dtype == "float16" else "float32"),
        bits,
        group_size,
        bf16_scales=dtype == "bfloat16",
    )
    assert ours.shape == (9, 384)
    assert np.array_equal(ours.packed, np.array(expected_packed))
    assert np.array_equal(to_f32(ours.scales, ours.bf16_scales), np.array(expected_scales.astype(mx.float32)))
    assert np.array_equal(to_f32(ours.biases, ours.bf16_scales), np.array(expected_biases.astype(mx.float32)))

    # In float32 MLX may fuse the multiply and the add: one rounding of the product (half an ulp) and one of the sum may differ.
    theirs = np.array(
        mx.dequantize(
            expected_packed, expected_scales.astype(mx.float32), expected_biases.astype(mx.float32), group_size=group_size, bits=bits
        )
    )
    product = np.abs(to_f32(ours.scales, ours.bf16_scales)).repeat(group_size, 1) * unpack(ours)
    assert np.all(np.abs(dequantize(ours) - theirs) <= product * 2.0**-24 + np.abs(theirs) * 2.0**-23)


def test_quantization_error_is_at_most_a_step_and_zero_is_exact() -> None:
    weight = np.random.default_rng(5).standard_normal((7, 128)).astype(np.float32)
    weight[:, 5] = 0
    quantized = quantize_affine(weight, 4, 32)
    # Half a step by rounding, and up to half a step at the far end, where moving zero onto the grid shortens the range.
    step = np.abs(quantized.scales).repeat(32, 1)
    assert np.all(np.abs(dequantize(quantized) - weight) <= step * (1 + 2.0**-20))
    assert np.all(np.abs(dequantize(quantized)[:, 5]) <= step[:, 5] * 2.0**-20)


def test_unpack_gives_the_integers() -> None:
    q = np.arange(64, dtype=np.uint8).reshape(1, 64)
    ones = np.ones((1, 2), np.float16)
    tensor = AffineQuantized(pack(q, 6), ones, -32 * ones, 6, 32)
    assert np.array_equal(unpack(tensor), q)
    assert np.array_equal(dequantize(tensor), q.astype(np.float32) - 32)


def test_bf16_rounds_to_nearest_even_and_keeps_specials() -> None:
    words = np.array([0x3F808000, 0x3F818000, 0x3F808001, 0x3F807FFF, 0x7F7FFFFF, 0x80000001, 0xFF800000], np.uint32)
    expected = [0x3F80, 0x3F82, 0x3F81, 0x3F80, 0x7F80, 0x8000, 0xFF80]
    assert f32_to_bf16(words.view(np.float32)).tolist() == expected
    nan = f32_to_bf16(np.array([0x7F800001, 0xFFFFFFFF, 0x7FFFFFFF], np.uint32).view(np.float32))
    assert np.isnan(bf16_to_f32(nan)).all()


def test_every_bf16_survives_a_round_trip() -> None:
    bits = np.arange(1 << 16, dtype=np.uint16)
    values = bf16_to_f32(bits)
    number = ~np.isnan(values)
    assert np.array_equal(f32_to_bf16(values)[number], bits[number])
    assert np.isnan(bf16_to_f32(f32_to_bf16(values[~number]))).all()


def test_all_finite_sees_one_bad_value_anywhere() -> None:
    values = np.zeros((3, 100_000), np.float32)
    assert all_finite(values, bf16=False)
    values[2, 99_999] = np.inf
    assert not all_finite(values, bf16=False)
    bits = np.full(10, 0x7F7F, np.uint16)
    assert all_finite(bits, bf16=True)
    bits[3] = 0x7FC0
    assert not all_finite(bits, bf16=True)
