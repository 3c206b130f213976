"""Every type against the gguf package's own quantizer and dequantizer."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

from localsft.weights.gguf_blocks import READABLE_TYPES, decode
from localsft.weights.quant import as_f32, f32_to_bf16
from localsft.weights.tensor import AffineQuantized, Dense

gguf = pytest.importorskip("gguf", reason="the gguf package is the oracle of the block layouts")

EXACT = {"Q4_0": 4, "Q4_1": 4, "Q5_0": 5, "Q5_1": 5, "Q8_0": 8, "Q4_K": 4, "Q5_K": 5, "IQ4_NL": 8, "IQ4_XS": 8}
TO_BF16 = ("Q2_K", "Q3_K", "Q6_K")


def _random_blocks(type_name: str, rows: int, columns: int, seed: int = 0) -> NDArray[np.uint8]:
    """Random bytes with finite half-precision scales: the K types have no quantizer in the package, and none reaches every bit."""
    block, size = gguf.GGML_QUANT_SIZES[gguf.GGMLQuantizationType[type_name]]
    rng = np.random.default_rng(seed)
    raw = rng.integers(0, 256, (rows, columns // block, size), np.uint8)
    halves = {"Q2_K": (80, 82), "Q3_K": (108,), "Q6_K": (208,), "Q4_K": (0, 2), "Q5_K": (0, 2), "Q4_1": (0, 2), "Q5_1": (0, 2)}
    for at in halves.get(type_name, (0,)):
        values = rng.standard_normal(raw.shape[:2]).astype("<f2")
        raw[:, :, at : at + 2] = values.view(np.uint8).reshape(*raw.shape[:2], 2)
    return raw.reshape(rows, -1)


def _oracle(raw: NDArray[np.uint8], type_name: str) -> NDArray[np.float32]:
    values: NDArray[np.float32] = gguf.dequantize(raw, gguf.GGMLQuantizationType[type_name])
    return values


@pytest.mark.parametrize("type_name", EXACT)
@pytest.mark.parametrize(("rows", "columns"), [(1, 256), (7, 512), (33, 768), (513, 256)])
def test_affine_types_keep_every_value(type_name: str, rows: int, columns: int) -> None:
    raw = _random_blocks(type_name, rows, columns)
    tensor = decode(raw.reshape(-1), type_name, (rows, columns))
    assert isinstance(tensor, AffineQuantized)
    assert (tensor.bits, tensor.group_size, tensor.shape) == (EXACT[type_name], 32, (rows, columns))
    assert tensor.scales.dtype == (np.float32 if type_name in ("Q4_K", "Q5_K", "IQ4_XS") else np.float16)
    assert np.array_equal(as_f32(tensor), _oracle(raw, type_name))


@pytest.mark.parametrize("type_name", ["Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0"])
def test_a_row_of_32_and_what_the_package_quantizes(type_name: str) -> None:
    weight = np.random.default_rng(1).standard_normal((5, 96)).astype(np.float32)
    weight[2] = 0
    raw = gguf.quantize(weight, gguf.GGMLQuantizationType[type_name])
    assert np.array_equal(as_f32(decode(raw.reshape(-1), type_name, (5, 96))), _oracle(raw, type_name))


@pytest.mark.parametrize("type_name", TO_BF16)
@pytest.mark.parametrize("rows", [1, 7, 600])
def test_types_with_groups_of_16_become_bf16_by_one_rounding(type_name: str, rows: int) -> None:
    raw = _random_blocks(type_name, rows, 512)
    tensor = decode(raw.reshape(-1), type_name, (rows, 512))
    assert isinstance(tensor, Dense)
    assert tensor.bf16
    assert np.array_equal(tensor.data, f32_to_bf16(_oracle(raw, type_name)))


@pytest.mark.parametrize("type_name", ["F32", "F16", "BF16"])
@pytest.mark.parametrize("shape", [(6,), (3, 5), (2, 3, 4)])
def test_dense_types_are_views(type_name: str, shape: tuple[int, ...]) -> None:
    weight = np.random.default_rng(2).standard_normal(shape).astype(np.float32)
    raw = np.ascontiguousarray(gguf.quantize(weight, gguf.GGMLQuantizationType[type_name])).view(np.uint8).reshape(-1)
    tensor = decode(raw, type_name, shape)
    assert isinstance(tensor, Dense)
    assert np.shares_memory(tensor.data, raw)
    assert tensor.data.shape == shape
    assert np.array_equal(as_f32(tensor), _oracle(raw.reshape(*shape[:-1], -1), type_name))


@pytest.mark.parametrize("type_name", ["Q4_0", "Q8_0", "IQ4_NL"])
def test_a_scale_whose_bias_float16_cannot_hold_is_kept_in_float32(type_name: str) -> None:
    raw = _random_blocks(type_name, 2, 64)
    raw[1, 0:2] = np.array([-60000], "<f2").view(np.uint8)
    tensor = decode(raw.reshape(-1), type_name, (2, 64))
    assert isinstance(tensor, AffineQuantized)
    assert tensor.scales.dtype == tensor.biases.dtype == np.float32
    assert np.array_equal(as_f32(tensor), _oracle(raw, type_name))


def test_unaligned_floats_are_copied_to_an_aligned_place() -> None:
    raw = np.zeros(41, np.uint8)
    raw[1:] = np.arange(10, dtype="<f4").view(np.uint8)
    tensor = decode(raw[1:], "F32", (10,))
    assert isinstance(tensor, Dense)
    assert tensor.data.flags.aligned
    assert np.array_equal(tensor.data, np.arange(10))


def test_the_list_of_readable_types_is_covered_here() -> None:
    assert set(READABLE_TYPES) == {"F32", "F16", "BF16", *EXACT, *TO_BF16}
