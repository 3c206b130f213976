"""Control tokens come from templates only; decoding; vocabularies of each file format; damaged ones."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tokenizers
from hypothesis import given, settings
from hypothesis import strategies as st

from localsft.errors import InputError
from localsft.tokenizer import Tokenizer, load_tokenizer
from tests.tiny_vocab import CONTROL, byte_tokens, tiny_metadata, tiny_tokenizer


def spans(tokenizer: Tokenizer, documents: list[list[str]], guard: str | None = None) -> list[list[list[int]]]:
    return [[np.frombuffer(ids, np.int32).tolist() for ids in document] for document in tokenizer.encode_spans(documents, guard)]


def test_typed_control_text_stays_text() -> None:
    tokenizer = tiny_tokenizer()
    for text in CONTROL:
        ids = tokenizer.encode(f"a{text}b")
        assert not any(tokenizer.is_control(token) for token in ids)
        assert tokenizer.decode(ids) == f"a{text}b"
        assert tokenizer.encode(f"a{text}b", parse_special=True)[1] == tokenizer.control_tokens[text]


def test_user_defined_tokens_always_count() -> None:
    tokenizer = tiny_tokenizer()
    assert tokenizer.encode("<think>") == [len(CONTROL)]
    assert not tokenizer.is_control(len(CONTROL))


def test_guarded_text_is_encoded_as_if_typed() -> None:
    tokenizer = tiny_tokenizer()
    start = tokenizer.control_tokens["<|im_start|>"]
    guard = "\ufdd0"
    typed = guard.join("<|im_start|>")
    [[ids]] = spans(tokenizer, [[f"<|im_start|>hello {typed} world"]], guard=guard)
    assert ids == [start, *tokenizer.encode("hello <|im_start|> world")]


def test_no_token_crosses_a_cut() -> None:
    tokenizer = tiny_tokenizer()
    assert len(tokenizer.encode("\n\n")) == 1
    [[left, right]] = spans(tokenizer, [["\n", "\nhello"]])
    assert left == tokenizer.encode("\n")
    assert right == tokenizer.encode("\nhello")


@given(st.text())
@settings(max_examples=200, deadline=None)
def test_any_text_comes_back(text: str) -> None:
    text = text.encode("utf-8", "replace").decode()
    tokenizer = _TINY
    assert tokenizer.decode(tokenizer.encode(text)) == text
    assert not any(tokenizer.is_control(token) for token in tokenizer.encode(text))


_TINY = tiny_tokenizer()


@given(st.lists(st.integers(0, _TINY.vocab_size - 1)))
@settings(max_examples=200, deadline=None)
def test_any_ids_stream_as_they_decode(ids: list[int]) -> None:
    stream = _TINY.stream(skip_control=False)
    streamed = "".join(stream.push(token) for token in ids) + stream.finish()
    assert streamed == _TINY.decode(ids)
    streamed.encode()  # no lone surrogates


def test_repeated_text_is_encoded_once_and_the_same() -> None:
    tokenizer = tiny_tokenizer()
    texts = ["hello world", "other", "hello world"]
    assert tokenizer.encode_batch(texts) == tokenizer.encode_batch(texts) == [tokenizer.encode(text) for text in texts]


def test_stop_ids_by_name_and_by_metadata() -> None:
    tokenizer = tiny_tokenizer(**{"tokenizer.ggml.eos_token_id": 4, "tokenizer.ggml.eot_token_id": 8})
    assert tokenizer.stop_ids == {0, 2, 4, 8}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"tokenizer.ggml.model": "bert"}, "'bert' is not supported"),
        ({"tokenizer.ggml.pre": "no-such"}, "pre-tokenizer 'no-such'"),
        ({"tokenizer.ggml.tokens": None}, "tokenizer.ggml.tokens is missing"),
        ({"tokenizer.ggml.tokens": [1, 2]}, "not a list of strings"),
        ({"tokenizer.ggml.token_type": [1, 2]}, "token_type has 2 entries"),
        ({"tokenizer.ggml.merges": ["ab"]}, "merge 0"),
        ({"tokenizer.ggml.merges": ["q zzz"]}, "can't be built"),
        ({"tokenizer.ggml.eos_token_id": 10**6}, "outside the vocabulary"),
        ({"tokenizer.ggml.model": "llama"}, "scores is missing"),
    ],
)
def test_damaged_metadata(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message) as error:
        tiny_tokenizer(**changes)
    assert "\n" not in str(error.value)


def spm_metadata(**changes: Any) -> dict[str, Any]:
    """A sentencepiece-style vocabulary: unk, bos, eos, 256 bytes, letters and a few merged pieces by score."""
    pieces = ["▁", *"abcdehlorw", "he", "ll", "hell", "hello", "▁w", "or", "▁hello"]
    tokens = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256)), *pieces]
    scores = [0.0] * 259 + [-float(i) for i in range(len(pieces))]
    types = [2, 3, 3, *[6] * 256, *[1] * len(pieces)]
    return {
        "tokenizer.ggml.model": "llama",
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.scores": scores,
        "tokenizer.ggml.token_type": types,
    } | changes


def test_sentencepiece_vocabulary_from_gguf() -> None:
    tokenizer = load_tokenizer(spm_metadata())
    tokens = spm_metadata()["tokenizer.ggml.tokens"]
    assert [tokens[i] for i in tokenizer.encode("hello")] == ["▁hello"]
    assert [tokens[i] for i in tokenizer.encode("é")] == ["▁", "<0xC3>", "<0xA9>"]
    assert not any(tokenizer.is_control(i) for i in tokenizer.encode("</s><s>"))
    for text in ("hello world", " hello", "</s>", "a\nb", "日本"):
        assert tokenizer.decode(tokenizer.encode(text)) == text
    assert tokenizer.add_bos and tokenizer.bos_id == 1 and tokenizer.eos_id == 2


def test_sentencepiece_prefix_only_where_the_text_starts() -> None:
    tokenizer = load_tokenizer(spm_metadata())
    [[first, second]] = spans(tokenizer, [["hello", "hello"]])
    tokens = spm_metadata()["tokenizer.ggml.tokens"]
    assert [tokens[i] for i in first + second] == ["▁hello", "hello"]
    bare = load_tokenizer(spm_metadata(**{"tokenizer.ggml.add_space_prefix": False}))
    assert [tokens[i] for i in bare.encode("hello")] == ["hello"]


def tokenizer_json(folder: Path, **changes: Any) -> Path:
    """A model folder with the tiny vocabulary as tokenizer.json."""
    metadata = tiny_metadata()
    tokens = metadata["tokenizer.ggml.tokens"]
    model = tokenizers.models.BPE(
        vocab={token: i for i, token in enumerate(tokens)}, merges=[tuple(merge.split(" ")) for merge in metadata["tokenizer.ggml.merges"]]
    )
    tokenizer = tokenizers.Tokenizer(model)
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = tokenizers.decoders.ByteLevel()
    tokenizer.add_special_tokens(list(CONTROL))
    tokenizer.add_tokens(["<think>"])
    data = json.loads(tokenizer.to_str()) | changes
    folder.mkdir(exist_ok=True)
    (folder / "tokenizer.json").write_text(json.dumps(data))
    config = {"eos_token": {"content": "<|im_end|>"}, "bos_token": "<|im_start|>", "chat_template": "{{ messages }}"}
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    return folder


def test_tokenizer_json_equals_the_gguf_reading(tmp_path: Path) -> None:
    ours, gguf = load_tokenizer(tokenizer_json(tmp_path / "model")), tiny_tokenizer()
    for text in ("hello world", "<|im_start|>hello<|im_end|>", "a<think>b", "é\n\n  x", "日本"):
        for special in (False, True):
            assert ours.encode(text, special) == gguf.encode(text, special)
            assert ours.decode(ours.encode(text, special)) == text
    assert (ours.bos_id, ours.eos_id, ours.chat_template) == (1, 2, "{{ messages }}")


def test_settings_beside_tokenizer_json(tmp_path: Path) -> None:
    folder = tokenizer_json(tmp_path / "model")
    (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": [2, 4]}))
    (folder / "chat_template.jinja").write_text("{{ 'file' }}")
    tokenizer = load_tokenizer(folder)
    assert tokenizer.stop_ids == {0, 2, 4}
    assert tokenizer.chat_template == "{{ 'file' }}"


def test_sentencepiece_file(tmp_path: Path) -> None:
    import sentencepiece

    corpus = tmp_path / "text.txt"
    corpus.write_text("\n".join(f"hello world number {i} and some more words" for i in range(200)))
    sentencepiece.SentencePieceTrainer.train(
        input=str(corpus), model_prefix=str(tmp_path / "tokenizer"), vocab_size=340, model_type="bpe", byte_fallback=True,
        normalization_rule_name="identity", remove_extra_whitespaces=False, minloglevel=2,
    )  # fmt: skip
    tokenizer = load_tokenizer(tmp_path)
    assert tokenizer.decode(tokenizer.encode("hello  world é")) == "hello  world é"
    assert (tokenizer.bos_id, tokenizer.eos_id) == (1, 2)
    assert not any(tokenizer.is_control(i) for i in tokenizer.encode("<s> and </s>"))
    [[first, second]] = spans(tokenizer, [["hello", "hello"]])
    assert tokenizer.token_bytes(first[0]).startswith(b" ") and not tokenizer.token_bytes(second[0]).startswith(b" ")


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("tokenizer.json", "{", "not JSON"),
        ("tokenizer.json", "[1]", "not a JSON object"),
        ("tokenizer.json", '{"model": {"type": "WordPiece"}}', "'WordPiece' is not supported"),
        ("tokenizer.json", '{"model": {"type": "BPE"}}', "no vocab"),
        ("tokenizer.json", '{"model": {"type": "BPE", "vocab": {"a": 0}}}', "neither a byte-level"),
        ("tokenizer.json", '{"model": {"type": "BPE", "vocab": {"a": 0}, "merges": 3}, "decoder": {"type": "ByteLevel"}}', "can't load it"),
        ("tokenizer.json", '{"model": {"vocab": {"a": 99999999}}, "decoder": {"type": "ByteLevel"}}', "impossible ids"),
        ("tokenizer.json", '{"model": {"vocab": {"a": 0}}, "added_tokens": [{"content": "x"}]}', "lacks its id"),
        ("tokenizer.model", "no model", "not a sentencepiece model"),
        ("other", "", "no tokenizer.json or tokenizer.model there"),
    ],
)
def test_damaged_folder(tmp_path: Path, name: str, content: str, message: str) -> None:
    (tmp_path / name).write_text(content)
    with pytest.raises(InputError, match=message) as error:
        load_tokenizer(tmp_path)
    assert str(tmp_path) in str(error.value)


def test_unflagged_control_looking_tokens_are_control(tmp_path: Path) -> None:
    folder = tokenizer_json(tmp_path / "model")
    data = json.loads((folder / "tokenizer.json").read_text())
    for row in data["added_tokens"]:
        row["special"] = False
    (folder / "tokenizer.json").write_text(json.dumps(data))
    tokenizer: Tokenizer = load_tokenizer(folder)
    assert not any(tokenizer.is_control(i) for i in tokenizer.encode("<|im_start|>"))
    assert tokenizer.control_tokens.keys() >= {"<|im_start|>", "<|user|>"}


def test_the_byte_alphabet_is_whole() -> None:
    from localsft.tokenizer.gguf_vocab import byte_alphabet

    assert [byte_alphabet()[token] for token in byte_tokens()] == list(range(256))
