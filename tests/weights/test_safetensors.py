"""Our reader against the safetensors package as writer, our writer against it as reader, and headers that lie."""

from __future__ import annotations

import json
import resource
import signal
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

safetensors_numpy = pytest.importorskip("safetensors.numpy", reason="the safetensors package is the oracle")

from localsft.errors import InputError  # noqa: E402
from localsft.weights.quant import f32_to_bf16  # noqa: E402
from localsft.weights.safetensors import MAX_HEADER_BYTES, open_safetensors, write_safetensors  # noqa: E402
from localsft.weights.tensor import Dense  # noqa: E402

_DTYPES = ["float64", "float32", "float16", "int64", "int32", "int16", "int8", "uint64", "uint32", "uint16", "uint8", "bool"]


def _tensors() -> dict[str, np.ndarray[Any, Any]]:
    rng = np.random.default_rng(0)
    tensors = {f"model.{dtype}": rng.integers(0, 2, (3, 5)).astype(dtype) for dtype in _DTYPES}
    return tensors | {"scalar": np.array(3.5, np.float32), "empty": np.zeros((0, 4), np.float32)}


def test_reads_what_the_package_writes(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    safetensors_numpy.save_file(_tensors(), path, metadata={"format": "pt"})
    with open_safetensors(path) as file:
        assert file.metadata == {"format": "pt"}
        assert set(file.tensors) == set(_tensors())
        for name, expected in _tensors().items():
            values = file.array(name)
            assert values.dtype == expected.dtype
            assert np.array_equal(values, expected)
            assert not values.flags.writeable or values.size == 0


def test_the_package_reads_what_we_write(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    write_safetensors(path, _tensors(), {"rank": "8", "name": "ünï"})
    loaded = safetensors_numpy.load_file(path)
    assert set(loaded) == set(_tensors())
    for name, expected in _tensors().items():
        assert loaded[name].dtype == expected.dtype
        assert np.array_equal(loaded[name], expected)
    with open_safetensors(path) as file:
        assert file.metadata == {"rank": "8", "name": "ünï"}
        for info in file.tensors.values():
            assert info.offset % np.dtype(_tensors()[info.name].dtype).itemsize == 0


def test_mlx_reads_what_we_write_and_we_read_what_mlx_writes(tmp_path: Path) -> None:
    mx = pytest.importorskip("mlx.core")
    weight = np.random.default_rng(0).standard_normal((4, 6)).astype(np.float32)
    write_safetensors(tmp_path / "ours.safetensors", {"w": Dense(f32_to_bf16(weight), bf16=True), "f": weight})
    theirs = mx.load(str(tmp_path / "ours.safetensors"))
    assert theirs["w"].dtype == mx.bfloat16
    assert np.array_equal(np.array(theirs["w"].astype(mx.float32)), np.array(mx.array(weight).astype(mx.bfloat16).astype(mx.float32)))
    assert np.array_equal(np.array(theirs["f"]), weight)
    mx.save_safetensors(str(tmp_path / "theirs.safetensors"), {"w": mx.array(weight).astype(mx.bfloat16)})
    with open_safetensors(tmp_path / "theirs.safetensors") as file:
        assert file.tensors["w"].dtype == "BF16"
        assert np.array_equal(file.array("w"), f32_to_bf16(weight))


def test_the_same_tensors_give_the_same_bytes_whatever_the_order(tmp_path: Path) -> None:
    tensors = _tensors()
    write_safetensors(tmp_path / "a.safetensors", tensors, {"a": "1", "b": "2"})
    write_safetensors(tmp_path / "b.safetensors", dict(reversed(tensors.items())), {"b": "2", "a": "1"})
    assert (tmp_path / "a.safetensors").read_bytes() == (tmp_path / "b.safetensors").read_bytes()


def test_strided_and_big_endian_arrays_are_written_by_value(tmp_path: Path) -> None:
    values = np.arange(24, dtype=np.float32).reshape(4, 6)
    write_safetensors(tmp_path / "a.safetensors", {"t": values.T, "s": values[:, ::2], "b": values.astype(">f4")})
    loaded = safetensors_numpy.load_file(tmp_path / "a.safetensors")
    assert np.array_equal(loaded["t"], values.T)
    assert np.array_equal(loaded["s"], values[:, ::2])
    assert np.array_equal(loaded["b"], values)


def test_a_failed_write_leaves_the_older_file_and_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    write_safetensors(path, {"w": np.zeros(3, np.float32)})
    before = path.read_bytes()
    with pytest.raises(ValueError, match="dtype object"):
        write_safetensors(path, {"w": np.array([None])})
    with pytest.raises(ValueError, match="cannot store"):
        write_safetensors(path, {"../w": np.zeros(3, np.float32)})
    with pytest.raises(InputError, match="absent"):
        write_safetensors(tmp_path / "absent" / "a.safetensors", {"w": np.zeros(3, np.float32)})
    assert path.read_bytes() == before
    assert [entry.name for entry in tmp_path.iterdir()] == ["a.safetensors"]


def test_a_disk_that_takes_no_more_is_one_sentence(tmp_path: Path) -> None:
    # A limit on the size of files stands for a full disk: the write fails half-way in the same place.
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    previous = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, hard))
    try:
        with pytest.raises(InputError, match=r"a\.safetensors"):
            write_safetensors(tmp_path / "a.safetensors", {"w": np.zeros(10_000, np.float32)})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        signal.signal(signal.SIGXFSZ, previous)
    assert not (tmp_path / "a.safetensors").exists()
    assert not list(tmp_path.glob(".*"))


def _raw(header: Any, data: bytes = b"", *, length: int | None = None) -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text) if length is None else length) + text + data


def _entry(begin: int = 0, end: int = 8, shape: Any = (2,), dtype: Any = "F32") -> dict[str, Any]:
    return {"dtype": dtype, "shape": list(shape) if isinstance(shape, tuple) else shape, "data_offsets": [begin, end]}


HOSTILE: dict[str, tuple[bytes, str]] = {
    "empty file": (b"", "has 0 bytes"),
    "seven bytes": (bytes(7), "has 7 bytes"),
    "header of 2^64-1": (_raw({}, length=(1 << 64) - 1), "not a safetensors file"),
    "header just too long": (_raw({}, length=MAX_HEADER_BYTES + 1), "not a safetensors file"),
    "header beyond the file": (_raw({}, length=100), "inside its header"),
    "not JSON": (_raw(b"{,}"), "not valid JSON"),
    "not UTF-8": (_raw(b'{"\xff": 1}'), "not valid JSON"),
    "a list": (_raw([1]), "not a JSON object"),
    "nested 100,000 deep": (_raw(b"[" * 100_000), "not valid JSON"),
    "a number of 10,000 digits": (_raw(b'{"a": ' + b"9" * 10_000 + b"}"), "not valid JSON"),
    "duplicate tensor": (_raw(b'{"a": %s, "a": %s}' % ((json.dumps(_entry()).encode(),) * 2), bytes(8)), "the key 'a' twice"),
    "duplicate field": (_raw(b'{"a": {"dtype": "F32", "dtype": "F32", "shape": [2], "data_offsets": [0, 8]}}', bytes(8)), "'dtype' twice"),
    "metadata that is no table": (_raw({"__metadata__": [1]}), "__metadata__"),
    "metadata with a number": (_raw({"__metadata__": {"a": 1}}), "__metadata__"),
    "metadata with half a character": (_raw(b'{"__metadata__": {"a": "\\ud800"}}'), "__metadata__"),
    "name with a slash": (_raw({"../a": _entry()}, bytes(8)), "characters other than"),
    "name with an escape": (_raw({"\x1b[2J": _entry()}, bytes(8)), "characters other than"),
    "empty name": (_raw({"": _entry()}, bytes(8)), "characters other than"),
    "entry that is no table": (_raw({"a": 3}, bytes(8)), "not described by"),
    "entry with more": (_raw({"a": {**_entry(), "x": 1}}, bytes(8)), "not described by"),
    "unknown dtype": (_raw({"a": _entry(dtype="F33")}, bytes(8)), "unknown dtype 'F33'"),
    "dtype of a list": (_raw({"a": _entry(dtype=["F32"])}, bytes(8)), "unknown dtype"),
    "shape with a fraction": (_raw({"a": _entry(shape=[2.0])}, bytes(8)), "not a list of up to 8 whole numbers"),
    "shape with a truth value": (_raw({"a": _entry(shape=[True, 2])}, bytes(8)), "whole numbers"),
    "negative shape": (_raw({"a": _entry(shape=[-2, -1])}, bytes(8)), "whole numbers"),
    "shape of a hundred dimensions": (_raw({"a": _entry(shape=[1] * 100)}, bytes(8)), "whole numbers"),
    "shape that is NaN": (_raw(b'{"a": {"dtype": "F32", "shape": [NaN], "data_offsets": [0, 8]}}', bytes(8)), "whole numbers"),
    "shape whose product overflows": (_raw({"a": _entry(shape=[1 << 62, 4])}, bytes(8)), "needs"),
    "offsets the wrong way": (_raw({"a": _entry(8, 0)}, bytes(8)), "not a begin and an end"),
    "offsets of three": (_raw({"a": {**_entry(), "data_offsets": [0, 8, 8]}}, bytes(8)), "not a begin and an end"),
    "offsets that do not fit the shape": (_raw({"a": _entry(0, 12)}, bytes(12)), "needs 8 bytes"),
    "dtype that does not fit": (_raw({"a": _entry(dtype="F16")}, bytes(8)), "needs 4 bytes"),
    "overlap": (_raw({"a": _entry(), "b": _entry(4, 12)}, bytes(12)), "'b' overlaps"),
    "the same bytes twice": (_raw({"a": _entry(), "b": _entry()}, bytes(8)), "'b' overlaps"),
    "a hole": (_raw({"a": _entry(), "b": _entry(12, 20)}, bytes(20)), "'b' leaves a hole"),
    "a hole at the start": (_raw({"a": _entry(8, 16)}, bytes(16)), "'a' leaves a hole"),
    "data cut short": (_raw({"a": _entry()}, bytes(7)), "incomplete"),
    "data beyond 2^62": (_raw({"a": _entry(0, 1 << 62, shape=(1 << 60,))}, bytes(8)), "incomplete"),
    "bytes left over": (_raw({"a": _entry()}, bytes(9)), "1 bytes follow"),
    "no tensors but data": (_raw({}, bytes(9)), "9 bytes follow"),
}


@pytest.mark.parametrize("case", HOSTILE)
def test_a_header_that_lies_is_one_sentence(case: str, tmp_path: Path) -> None:
    content, problem = HOSTILE[case]
    path = tmp_path / "model.safetensors"
    path.write_bytes(content)
    with pytest.raises(InputError, match=problem) as caught:
        open_safetensors(path)
    message = str(caught.value)
    assert message.startswith(str(path))
    assert "\n" not in message and "\x1b" not in message
    assert len(message) < 400 + len(str(path))


def test_many_names_with_a_duplicate_at_the_end_are_refused_in_one_pass(tmp_path: Path) -> None:
    entries = b",".join(b'"%d":0' % (i % 199_999) for i in range(200_000))  # quadratic counting would take an hour
    (tmp_path / "a.safetensors").write_bytes(_raw(b"{" + entries + b"}"))
    with pytest.raises(InputError, match="the key '0' twice"):
        open_safetensors(tmp_path / "a.safetensors")


def test_unaligned_data_is_copied_to_an_aligned_place(tmp_path: Path) -> None:
    values = np.arange(4, dtype=np.float32)
    header = json.dumps({"a": _entry(0, 16, (4,))}).encode()
    header += b" " * ((3 - len(header)) % 8)
    (tmp_path / "a.safetensors").write_bytes(_raw(header, values.tobytes()))
    with open_safetensors(tmp_path / "a.safetensors") as file:
        assert file.array("a").flags.aligned
        assert np.array_equal(file.array("a"), values)


@pytest.fixture(scope="module")
def small_file(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    path = tmp_path_factory.mktemp("small") / "a.safetensors"
    write_safetensors(path, {"a": np.zeros((3, 5), np.float32), "b": np.zeros(7, np.int8)}, {"k": "v"})
    return path.read_bytes()


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(flips=st.lists(st.tuples(st.integers(0, 400), st.integers(0, 7)), max_size=6), cut=st.integers(0, 500))
def test_damage_raises_nothing_but_input_errors(flips: list[tuple[int, int]], cut: int, small_file: bytes, tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    content = bytearray(small_file)[: cut or None]
    for at, bit in flips:
        content[at % len(content)] ^= 1 << bit
    path.write_bytes(bytes(content))
    try:
        with open_safetensors(path) as file:
            for name in file.tensors:
                file.array(name)
    except InputError as error:
        assert "\n" not in str(error)
