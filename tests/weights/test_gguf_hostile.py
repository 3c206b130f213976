"""Handcrafted files in which one field lies. Learned from the list of cases that llama.cpp tests its own reader with, and more."""

from __future__ import annotations

import os
import tracemalloc
from pathlib import Path

import pytest

from localsft.errors import InputError
from localsft.weights.gguf import open_gguf
from tests.weights import gguf_maker as make
from tests.weights.gguf_maker import (
    ARRAY,
    BOOL,
    F32,
    HUGE,
    I32,
    STRING,
    TYPE_I8,
    TYPE_I64,
    TYPE_Q4_0,
    TYPE_Q4_K,
    U8,
    U32,
    gguf,
    kv,
    string,
    tensor,
    u32,
)

_ALIGNMENT = "general.alignment"
_ROW = tensor("a", [8])
_DATA = bytes(32)

# name -> (the file, what the message must say)
HOSTILE: dict[str, tuple[bytes, str]] = {
    # the header
    "empty file": (b"", "is empty"),
    "three bytes": (b"GGU", "not a GGUF file"),
    "bad magic": (gguf(magic=b"FUGG"), "not a GGUF file .*b'FUGG'"),
    "a zip": (gguf(magic=b"PK\x03\x04"), "not a GGUF file"),
    "magic only": (b"GGUF", "ends at byte 4, inside the version"),
    "version 0": (gguf(version=u32(0)), "version 0"),
    "version 1": (gguf(version=u32(1)), "version 1, which is obsolete"),
    "version of the future": (gguf(version=u32(4)), "version 4, but versions 2 and 3"),
    "big-endian": (gguf(version=(3).to_bytes(4, "big")), "big-endian"),
    "too many tensors": (gguf(n_tensors=HUGE), f"{HUGE} tensors"),
    "more tensors than bytes": (gguf(n_tensors=3), "3 tensors"),
    "tensor count cut": (b"GGUF" + u32(3) + b"\x01\x00", "inside the number of tensors"),
    "too many keys": (gguf(n_keys=HUGE), f"{HUGE} metadata keys"),
    "more keys than bytes": (gguf([kv("a", U8, b"\x01")], n_keys=9, alignment=1), "9 metadata keys"),
    # keys and values
    "key length of 2^64-1": (gguf([kv("abc", U32, u32(1), key_length=HUGE)]), "the name of metadata key 0 has"),
    "key beyond the file": (gguf([kv("abc", U32, u32(1), key_length=60_000)]), "inside the name of metadata key 0"),
    "empty key": (gguf([kv("", U32, u32(1))]), "key '' is empty"),
    "key that is not UTF-8": (gguf([kv(b"\xff\xfe", U32, u32(1))]), "not valid UTF-8"),
    "unknown value type": (gguf([kv("abc", 13, bytes(16))]), "type number 13"),
    "type of 2^32-1": (gguf([kv("abc", 0xFFFFFFFF, bytes(16))]), "type number 4294967295"),
    "duplicate key": (gguf([kv("abc", U32, u32(1)), kv("abc", U32, u32(1))]), "'abc' is there twice"),
    "truth value of 2": (gguf([kv("abc", BOOL, b"\x02")]), "truth value"),
    "truth value of 2 in an array": (gguf([kv("abc", ARRAY, make.array(BOOL, 3, b"\x00\x02\x01"))]), "truth value"),
    "value cut short": (gguf([kv("a234567890", make.U64, b"\x01")], alignment=1), "inside the value of 'a234567890'"),
    "string of 2^64-1": (gguf([kv("abc", STRING, string("x", HUGE))]), "inside the value of 'abc'"),
    "string that is not UTF-8": (gguf([kv("abc", STRING, string(b"\xc3\x28"))]), "not valid UTF-8"),
    "array of 2^64-1 bytes": (gguf([kv("abc", ARRAY, make.array(U8, HUGE, b"x"))]), "elements in 'abc'"),
    "array whose bytes overflow": (gguf([kv("abc", ARRAY, make.array(make.U64, 1 << 61, b"x"))]), "elements in 'abc'"),
    "array longer than the file": (gguf([kv("abc", ARRAY, make.array(F32, 100, bytes(16)))]), "100 elements in 'abc'"),
    "array of 2^61 strings": (gguf([kv("abc", ARRAY, make.array(STRING, 1 << 61, b""))]), "elements in 'abc'"),
    "array of strings, the second too long": (
        gguf([kv("abc", ARRAY, make.array(STRING, 2, string("x") + string("y", 1 << 40)))]),
        "inside the value of 'abc'",
    ),
    "array of strings, the second without a length": (
        gguf([kv("abc", ARRAY, make.array(STRING, 2, string("x" * 12)))], alignment=1),
        "inside the value of 'abc'",
    ),
    "array of arrays": (gguf([kv("abc", ARRAY, make.array(ARRAY, 1, make.array(U8, 1, b"x")))]), "array of arrays"),
    "arrays nested a thousand deep": (gguf([kv("abc", ARRAY, make.array(ARRAY, 1, b"") * 1000)]), "array of arrays"),
    "array of unknown type": (gguf([kv("abc", ARRAY, make.array(77, 1, bytes(8)))]), "type number 77"),
    # alignment
    "alignment of 13": (gguf([kv(_ALIGNMENT, U32, u32(13))]), "power of two"),
    "alignment of 0": (gguf([kv(_ALIGNMENT, U32, u32(0))]), "power of two"),
    "alignment of 2^31": (gguf([kv(_ALIGNMENT, U32, u32(1 << 31))]), "power of two"),
    "alignment as a signed number": (gguf([kv(_ALIGNMENT, I32, u32(32))]), "power of two"),
    "alignment as a float": (gguf([kv(_ALIGNMENT, F32, u32(0x42000000))]), "power of two"),
    "alignment as an array": (gguf([kv(_ALIGNMENT, ARRAY, make.array(U32, 1, u32(32)))]), "power of two"),
    # the table of tensors
    "tensor name too long": (gguf(tensors=[tensor("a" * 65, [8])], data=_DATA), "65 bytes, more than 64"),
    "tensor name of 2^64-1": (gguf(tensors=[tensor("a", [8], name_length=HUGE)], data=_DATA), "bytes, more than 64"),
    "empty tensor name": (gguf(tensors=[tensor("", [8])], data=_DATA), "tensor name '' is empty"),
    "tensor name that is not UTF-8": (gguf(tensors=[tensor(b"\x80", [8])], data=_DATA), "not valid UTF-8"),
    "duplicate tensor name": (gguf(tensors=[_ROW, tensor("a", [8], offset=32)], data=bytes(64)), "'a' is there twice"),
    "no dimensions": (gguf(tensors=[tensor("a", [])], data=_DATA), "0 dimensions"),
    "five dimensions": (gguf(tensors=[tensor("a", [1] * 5)], data=_DATA), "5 dimensions"),
    "2^32-1 dimensions": (gguf(tensors=[tensor("a", [8], n_dims=0xFFFFFFFF)], data=_DATA), "4294967295 dimensions"),
    "dimension of -1": (gguf(tensors=[tensor("a", [HUGE])], data=_DATA), "cannot hold"),
    "dimension of 0": (gguf(tensors=[tensor("a", [8, 0])], data=_DATA), "cannot hold"),
    "0 times a huge dimension": (gguf(tensors=[tensor("a", [0, HUGE])], data=_DATA), "cannot hold"),
    "elements overflow 64 bits": (gguf(tensors=[tensor("a", [1 << 33, 1 << 33], TYPE_I8)], data=_DATA), "cannot hold"),
    "elements wrap around to 0": (gguf(tensors=[tensor("a", [1 << 32, 1 << 32], TYPE_I8)], data=_DATA), "cannot hold"),
    "bytes overflow 64 bits": (gguf(tensors=[tensor("a", [1 << 31, 1 << 30], TYPE_I64)], data=_DATA), "cannot hold"),
    "sum of sizes overflows": (
        gguf(
            tensors=[tensor("a", [0x7FFFFFFFFFFFFFC0], TYPE_I8), tensor("b", [0x7FFFFFFFFFFFFFC0], TYPE_I8, 0x7FFFFFFFFFFFFFC0)], data=_DATA
        ),
        "cannot hold",
    ),
    "unknown tensor type": (gguf(tensors=[tensor("a", [8], 42)], data=_DATA), "tensor 'a' has type number 42.*get the model in"),
    "removed tensor type": (gguf(tensors=[tensor("a", [8], 4)], data=_DATA), "tensor 'a' has type number 4"),
    "half a block": (gguf(tensors=[tensor("a", [48], TYPE_Q4_0)], data=_DATA), "not a multiple of 32"),
    "half a super-block": (gguf(tensors=[tensor("a", [288, 2], TYPE_Q4_K)], data=bytes(512)), "not a multiple of 256"),
    "offset of 2^64-1": (gguf(tensors=[tensor("a", [8], offset=HUGE)], data=_DATA), "lies at data offset"),
    "offset of 2^64-32, which wraps into the header": (
        gguf(tensors=[tensor("a", [8], offset=HUGE - 31)], data=_DATA),
        "lies at data offset",
    ),
    "first tensor not at 0": (gguf(tensors=[tensor("a", [8], offset=32)], data=bytes(64)), "lies at data offset 32, where 0"),
    "unaligned offset": (gguf(tensors=[_ROW, tensor("b", [8], offset=33)], data=bytes(96)), "offset 33, where 32"),
    "alignment that the offsets do not keep": (
        gguf(tensors=[tensor("a", [1]), tensor("b", [8], offset=4)], data=bytes(64)),
        "offset 4, where 32",
    ),
    "overlapping tensors": (gguf(tensors=[tensor("a", [16]), tensor("b", [8], offset=32)], data=bytes(96)), "offset 32, where 64"),
    "a hole between tensors": (gguf(tensors=[_ROW, tensor("b", [8], offset=64)], data=bytes(128)), "offset 64, where 32"),
    "table cut short": (gguf(tensors=[_ROW, _ROW[:-1]], n_tensors=2, alignment=1), "inside the offset of tensor 'a'|there twice"),
    # the data
    "one byte of data is missing": (gguf(tensors=[_ROW], data=bytes(31)), "whose data would reach"),
    "no data": (gguf(tensors=[_ROW]), "whose data would reach"),
    "file ends before the data is aligned": (gguf(tensors=[_ROW], alignment=1), "whose data would reach"),
    "the last of two tensors is cut": (gguf(tensors=[_ROW, tensor("b", [8], offset=32)], data=bytes(40)), "'b', whose data"),
}


def _write(folder: Path, content: bytes) -> Path:
    path = folder / "model.gguf"
    path.write_bytes(content)
    return path


@pytest.mark.parametrize("case", HOSTILE)
def test_a_lie_is_one_sentence_with_file_problem_and_remedy(case: str, tmp_path: Path) -> None:
    content, problem = HOSTILE[case]
    path = _write(tmp_path, content)
    tracemalloc.start()
    with pytest.raises(InputError, match=problem) as caught:
        open_gguf(path)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    message = str(caught.value)
    assert message.startswith(str(path))
    assert "\n" not in message
    assert ";" in message  # what is wrong; what to do
    assert len(message) < 400 + len(str(path))
    assert peak < 1 << 20  # nothing is allocated for a number that the file cannot back


HARMLESS: dict[str, bytes] = {
    "nothing at all": gguf(),
    "version 2": gguf([kv("abc", U32, u32(7))], version=u32(2)),
    "one tensor": gguf(tensors=[_ROW], data=_DATA),
    "no padding after the last tensor": gguf(tensors=[tensor("a", [3])], data=bytes(12)),
    "alignment of 1": gguf([kv(_ALIGNMENT, U32, u32(1))], [tensor("a", [1]), tensor("b", [2], offset=4)], bytes(12), alignment=1),
    "alignment of 4096": gguf(
        [kv(_ALIGNMENT, U32, u32(4096))], [tensor("a", [1]), tensor("b", [2], offset=4096)], bytes(8192), alignment=4096
    ),
    "bytes after the data": gguf(tensors=[_ROW], data=bytes(1000)),
    "empty arrays": gguf([kv("a", ARRAY, make.array(STRING, 0, b"")), kv("b", ARRAY, make.array(F32, 0, b""))]),
    "a name of 64 bytes": gguf(tensors=[tensor("a" * 64, [8])], data=_DATA),
}


@pytest.mark.parametrize("case", HARMLESS)
def test_unusual_but_valid_files_open(case: str, tmp_path: Path) -> None:
    with open_gguf(_write(tmp_path, HARMLESS[case])) as file:
        for name in file.tensors:
            assert file.tensor(name).shape == file.tensors[name].shape


def test_names_from_the_file_cannot_flood_or_forge_the_terminal(tmp_path: Path) -> None:
    name = "\x1b[2J\u202e" + "x" * 60_000
    with pytest.raises(InputError) as caught:
        open_gguf(_write(tmp_path, gguf([kv(name, 99, b"")])))
    assert "\x1b" not in str(caught.value)
    assert "\u202e" not in str(caught.value)
    assert len(str(caught.value)) < 400 + len(str(tmp_path))


def test_paths_that_are_no_files(tmp_path: Path) -> None:
    for path, problem in ((tmp_path / "absent.gguf", "does not exist"), (tmp_path, "not a regular file")):
        with pytest.raises(InputError, match=problem):
            open_gguf(path)
    os.mkfifo(tmp_path / "pipe.gguf")
    with pytest.raises(InputError, match="not a regular file"):  # and no wait for a writer
        open_gguf(tmp_path / "pipe.gguf")


def test_a_type_that_is_known_but_not_readable_says_so(tmp_path: Path) -> None:
    iq3_s = 21
    file = open_gguf(_write(tmp_path, gguf(tensors=[tensor("blk.0.ffn_up.weight", [256], iq3_s)], data=bytes(110))))
    with pytest.raises(InputError, match=r"'blk.0.ffn_up.weight' has type IQ3_S, which can't be read; get the model as"):
        file.tensor("blk.0.ffn_up.weight")


def test_many_small_arrays_share_one_budget(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("localsft.weights.gguf_header.MAX_ARRAY_VALUES", 5)
    keys = [kv(f"k{i}", ARRAY, make.array(U8, 3, b"abc")) for i in range(2)]
    with pytest.raises(InputError, match="3 elements in 'k1'"):
        open_gguf(_write(tmp_path, gguf(keys)))
