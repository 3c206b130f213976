"""Files written by the gguf package come back as they were; files that were damaged at random only ever raise InputError."""

from __future__ import annotations

import gc
import warnings
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

pytest.importorskip("gguf", reason="the gguf package writes the files that are read here")
import gguf

from localsft.errors import InputError
from localsft.weights.config import rope_frequencies
from localsft.weights.gguf import open_gguf
from localsft.weights.load import load_base
from localsft.weights.tensor import AffineQuantized, Dense
from tests.weights.model_maker import LLAMA, llama_weights, write_gguf


def test_every_kind_of_value_comes_back(tmp_path: Path) -> None:
    path = tmp_path / "a.gguf"
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_uint8("u8", 200)
    writer.add_int8("i8", -3)
    writer.add_uint16("u16", 60_000)
    writer.add_int16("i16", -30_000)
    writer.add_uint32("u32", 4_000_000_000)
    writer.add_int32("i32", -2_000_000_000)
    writer.add_uint64("u64", 2**63 + 1)
    writer.add_int64("i64", -(2**62))
    writer.add_float32("f32", 0.1)
    writer.add_float64("f64", 0.1)
    writer.add_bool("yes", True)
    writer.add_string("text", "ünï\n")
    writer.add_array("texts", ["a", "", "Ġthe", "日本"])
    writer.add_array("whole", [1, -2, 3])
    writer.add_array("real", [0.5, 1.5])
    writer.add_array("truth", [True, False])
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    with open_gguf(path) as file:
        values = dict(file.metadata)
    assert values["u8"] == 200
    assert values["i8"] == -3
    assert values["u16"] == 60_000
    assert values["i16"] == -30_000
    assert values["u32"] == 4_000_000_000
    assert values["i32"] == -2_000_000_000
    assert values["u64"] == 2**63 + 1
    assert values["i64"] == -(2**62)
    assert values["f32"] == float(np.float32(0.1))
    assert values["f64"] == 0.1
    assert values["yes"] is True
    assert values["text"] == "ünï\n"
    assert values["texts"] == ["a", "", "Ġthe", "日本"]
    for key, expected in {"whole": [1, -2, 3], "real": [0.5, 1.5], "truth": [True, False]}.items():
        array = values[key]
        assert isinstance(array, np.ndarray)
        assert array.tolist() == expected
        assert not array.flags.writeable


def test_tensor_table_and_data(tmp_path: Path) -> None:
    weights = llama_weights()
    path = write_gguf(tmp_path / "a.gguf", "llama", weights, "Q4_0")
    with open_gguf(path) as file:
        info = file.tensors["blk.1.ffn_down.weight"]
        assert (info.name, info.type, info.shape, info.nbytes) == ("blk.1.ffn_down.weight", "Q4_0", (64, 96), 64 * 3 * 18)
        raw = path.read_bytes()[info.offset : info.offset + info.nbytes]
        assert raw == gguf.quantize(weights["model.layers.1.mlp.down_proj.weight"], gguf.GGMLQuantizationType.Q4_0).tobytes()
        tensor = file.tensor("blk.1.ffn_down.weight")
        assert isinstance(tensor, AffineQuantized)
        with pytest.raises(KeyError):
            file.tensor("blk.9.ffn_down.weight")
    with pytest.raises(ValueError, match="is closed"):
        file.tensor("blk.1.ffn_down.weight")


def test_dense_tensors_are_read_only_views_that_outlive_the_file(tmp_path: Path) -> None:
    weights = llama_weights()
    file = open_gguf(write_gguf(tmp_path / "a.gguf", "llama", weights))
    tensor = file.tensor("output_norm.weight")
    again = file.tensor("output_norm.weight")
    assert isinstance(tensor, Dense) and isinstance(again, Dense)
    assert np.shares_memory(tensor.data, again.data)
    assert not tensor.data.flags.writeable
    file.close()
    del file, again
    gc.collect()
    assert np.array_equal(tensor.data, weights["model.norm.weight"])


@pytest.fixture(scope="module")
def whole_files(tmp_path_factory: pytest.TempPathFactory) -> list[bytes]:
    folder = tmp_path_factory.mktemp("whole")
    weights = llama_weights(tied=True)
    small = {name: weight for name, weight in weights.items() if "layers.1" not in name}
    files = [write_gguf(folder / "small.gguf", "llama", small, "Q8_0"), write_gguf(folder / "whole.gguf", "llama", weights, "Q5_1")]
    return [path.read_bytes() for path in files]


def _use(path: Path) -> None:
    """Everything that the program does with a file before it trains. Warnings count as failures."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with open_gguf(path) as file:
            for name in file.tensors:
                file.tensor(name)
        base = load_base(path)
        dict(base.tensors)
        rope_frequencies(base.config)


def _outcome(path: Path, content: bytes) -> str:
    path.write_bytes(content)
    try:
        _use(path)
    except InputError as error:
        assert str(error).count("\n") == 0
        return "refused"
    return "read"


def test_the_undamaged_files_are_read(whole_files: list[bytes], tmp_path: Path) -> None:
    assert _outcome(tmp_path / "a.gguf", whole_files[1]) == "read"
    with pytest.raises(InputError, match=r"layers\.1.*is missing"):
        load_base_bytes(tmp_path / "a.gguf", whole_files[0])


def load_base_bytes(path: Path, content: bytes) -> None:
    path.write_bytes(content)
    load_base(path)


_FUZZ = settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


@_FUZZ
@given(cut=st.floats(0, 1, exclude_max=True))
@example(cut=0.0)
def test_a_file_cut_anywhere_is_refused(cut: float, whole_files: list[bytes], tmp_path: Path) -> None:
    content = whole_files[1]
    # The writer pads the last tensor, and only its padding may be missing: 64 float32 fill their 32 bytes, so none is.
    assert _outcome(tmp_path / "a.gguf", content[: int(cut * len(content))]) == "refused"


_HEADER = 2900  # metadata and table end just before, so most damage hits what is parsed


@_FUZZ
@given(
    flips=st.lists(st.tuples(st.integers(0, _HEADER), st.integers(0, 7)), min_size=1, max_size=8),
    which=st.integers(0, 1),
)
def test_flipped_bits_raise_nothing_but_input_errors(
    flips: list[tuple[int, int]], which: int, whole_files: list[bytes], tmp_path: Path
) -> None:
    content = bytearray(whole_files[which])
    for at, bit in flips:
        content[at % len(content)] ^= 1 << bit
    _outcome(tmp_path / "a.gguf", bytes(content))


@_FUZZ
@given(
    at=st.integers(4, _HEADER),
    value=st.sampled_from([0, 1, 0x7F, 0xFF, 0xFFFF, 1 << 31, (1 << 32) - 1, 1 << 61, (1 << 63) - 1, (1 << 64) - 1]),
    width=st.sampled_from([1, 2, 4, 8]),
)
def test_evil_numbers_anywhere_raise_nothing_but_input_errors(
    at: int, value: int, width: int, whole_files: list[bytes], tmp_path: Path
) -> None:
    content = bytearray(whole_files[1])
    content[at : at + width] = (value & ((1 << 8 * width) - 1)).to_bytes(width, "little")
    _outcome(tmp_path / "a.gguf", bytes(content))


def test_a_nan_scale_is_found_and_named(whole_files: list[bytes], tmp_path: Path) -> None:
    path = tmp_path / "a.gguf"
    path.write_bytes(whole_files[1])
    with open_gguf(path) as file:
        at = file.tensors["blk.0.ffn_up.weight"].offset
    content = bytearray(whole_files[1])
    content[at : at + 2] = np.array([np.nan], "<f2").tobytes()
    path.write_bytes(bytes(content))
    base = load_base(path)
    base.tensors["model.layers.0.mlp.down_proj.weight"]
    with pytest.raises(InputError, match=r"'model.layers.0.mlp.up_proj.weight' holds NaN or infinity"):
        base.tensors["model.layers.0.mlp.up_proj.weight"]


def test_config_of_the_maker_is_what_the_file_says(whole_files: list[bytes], tmp_path: Path) -> None:
    path = tmp_path / "a.gguf"
    path.write_bytes(whole_files[1])
    config = load_base(path).config
    assert config.hidden_size == LLAMA["hidden_size"]
    assert config.vocab_size == LLAMA["vocab_size"]
    assert config.head_size == LLAMA["hidden_size"] // LLAMA["num_attention_heads"]
