"""SmolLM2's ids equal the committed reading of 2,743 strings by the tokenizers library (tests/goldens/README.md)."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from localsft.tokenizer import Tokenizer, load_tokenizer
from localsft.weights.gguf import open_gguf

GOLDENS = Path(__file__).parent.parent / "goldens"


@pytest.fixture(scope="module")
def tokenizer(smollm2_path: Path) -> Tokenizer:
    with open_gguf(smollm2_path) as gguf:
        return load_tokenizer(gguf.metadata, str(smollm2_path))


@pytest.fixture(scope="module")
def lines() -> list[dict]:
    return [json.loads(line) for line in (GOLDENS / "token_strings.jsonl").read_text().splitlines()]


@pytest.fixture(scope="module")
def goldens() -> dict:
    return json.loads((GOLDENS / "token_ids.json").read_text())


def test_plain(tokenizer: Tokenizer, lines: list[dict], goldens: dict) -> None:
    texts = [line["text"] for line in lines]
    got = tokenizer.encode_batch(texts)
    wrong = [(text, ids, want) for text, ids, want in zip(texts, got, goldens["plain"], strict=True) if ids != want]
    assert not wrong, wrong[:3]
    assert len(texts) >= 2000


def test_special(tokenizer: Tokenizer, lines: list[dict], goldens: dict) -> None:
    numbers = [int(number) for number in goldens["special"]]
    got = tokenizer.encode_batch([lines[number]["text"] for number in numbers], parse_special=True)
    wrong = [(lines[number]["text"], ids) for number, ids in zip(numbers, got, strict=True) if ids != goldens["special"][str(number)]]
    assert not wrong, wrong[:3]


def test_decode_gives_the_text_back(tokenizer: Tokenizer, lines: list[dict], goldens: dict) -> None:
    lost = {int(number) for number in goldens["llama_cpp_differs"]}
    missing = set("\x04\x06\x13\x14\x16\x1d")  # bytes without a token in this vocabulary
    for number, (line, ids) in enumerate(zip(lines, goldens["plain"], strict=True)):
        text = line["text"]
        if number in lost or missing & set(text) or any(0x40000 <= ord(char) <= 0xBFFFF for char in text):
            continue
        assert tokenizer.decode(ids) == text, number


def test_stream_never_gives_half_a_character(tokenizer: Tokenizer, lines: list[dict], goldens: dict) -> None:
    for line, ids in zip(lines[::7], goldens["plain"][::7], strict=True):
        stream = tokenizer.stream()
        parts = [stream.push(token) for token in ids]
        if "\ufffd" not in line["text"]:
            assert not any("\ufffd" in part for part in parts), line
        assert "".join(parts) + stream.finish() == tokenizer.decode(ids)


def test_model_facts(tokenizer: Tokenizer) -> None:
    assert (tokenizer.vocab_size, tokenizer.bos_id, tokenizer.eos_id, tokenizer.add_bos) == (49152, 1, 2, False)
    assert tokenizer.stop_ids == {0, 2}
    assert tokenizer.chat_template is not None and "<|im_start|>" in tokenizer.chat_template
