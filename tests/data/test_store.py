"""Tokenized data on disk: what is written comes back, is found again by content, is made again when damaged."""

from __future__ import annotations

import json
import os
import pickle
import time
from itertools import groupby
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from localsft.data import load as load_module
from localsft.data.formats import open_data
from localsft.data.load import Part, load_file
from localsft.data.pipeline import Recipe, render_rows
from localsft.data.render import Tokens, chat_template
from localsft.data.rows import read_rows
from localsft.data.store import Columns, ExampleStore, StoreWriter, prune
from localsft.errors import InputError
from tests.tiny_vocab import CHATML, tiny_tokenizer


def make(ids: list[int], weights: list[float]) -> Tokens:
    weights = [0.0, *weights[1:]]
    runs = []
    for weight, group in groupby(range(len(ids)), key=weights.__getitem__):
        places = list(group)
        if weight:
            runs.append((places[0], places[-1] + 1, weight))
    return Tokens(np.array(ids, np.int32).tobytes(), tuple(runs))


examples = st.lists(st.tuples(st.integers(0, 2**31 - 1), st.sampled_from([0.0, 0.5, 1.0])), min_size=1, max_size=8).map(
    lambda pairs: make([token for token, _ in pairs], [weight for _, weight in pairs])
)


@given(st.lists(st.lists(examples, max_size=4), max_size=4))
@settings(deadline=None, max_examples=50)
def test_what_is_written_comes_back(tmp_path_factory: pytest.TempPathFactory, batches: list[list[Tokens]]) -> None:
    folder = tmp_path_factory.mktemp("store")
    with StoreWriter(folder) as writer:
        for batch in batches:
            writer.add(Columns.of([(example, 7 + number) for number, example in enumerate(batch)]))
        writer.close({"rows": 3})
    store = ExampleStore(folder, "rows.jsonl")
    written = [tokens.example("") for batch in batches for tokens in batch]
    assert len(store) == len(written) == writer.examples and store.report["rows"] == 3
    for got, want in zip(store, written, strict=True):
        np.testing.assert_array_equal(got.token_ids, want.token_ids)
        np.testing.assert_array_equal(got.target_weights, want.target_weights)
        assert got.token_ids.dtype == np.int32 and got.target_weights.dtype == np.float32
    assert list(store.lengths) == [len(example.token_ids) for example in written]
    assert store.supervised_tokens == sum(np.count_nonzero(example.target_weights) for example in written)
    if written:
        assert store[0].source == "rows.jsonl:7" and store[-1].token_ids.tolist() == written[-1].token_ids.tolist()
        assert len(store[1:]) == len(written) - 1
    with pytest.raises(IndexError):
        store[len(written)]


def rows(folder: Path, count: int, name: str = "data.jsonl") -> Path:
    file = folder / name
    with file.open("w") as stream:
        for i in range(count):
            row = {"messages": [{"role": "user", "content": f"hello {i}"}, {"role": "assistant", "content": f"world {i * i}"}]}
            stream.write(json.dumps(row) + "\n")
    return file


def load(file: Path, cache: Path | None, max_length: int = 200, template: str = CHATML) -> Part:
    tokenizer = tiny_tokenizer()
    return load_file(file, tokenizer, chat_template(tokenizer, template), mask="assistant", max_length=max_length, cache=cache)


def test_tokenized_once_and_found_by_content(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file, cache = rows(tmp_path, 30), tmp_path / "cache"
    first = load(file, cache)
    made: list[Recipe] = []
    real = load_module.render_rows
    monkeypatch.setattr(load_module, "render_rows", lambda *args: (made.append(args[1]), real(*args))[1])
    again = load(file, cache)
    assert not made and again.report == first.report
    assert [example.token_ids.tolist() for example in again.examples] == [example.token_ids.tolist() for example in first.examples]
    load(file, cache, max_length=199)
    load(file, cache, template=CHATML + "\n\n")
    file.write_text(file.read_text().replace("world 0", "world 1"))
    load(file, cache)
    assert len(made) == 3


def test_a_damaged_store_is_made_again(tmp_path: Path) -> None:
    file, cache = rows(tmp_path, 30), tmp_path / "cache"
    want = [example.token_ids.tolist() for example in load(file, cache).examples]
    [folder] = cache.iterdir()
    for name in ("ids.i4", "runs.bin", "store.json"):
        (folder / name).write_bytes((folder / name).read_bytes()[:-5])
        assert [example.token_ids.tolist() for example in load(file, cache).examples] == want
    (folder / "starts.i8").unlink()
    assert [example.token_ids.tolist() for example in load(file, cache).examples] == want


def test_a_failed_load_leaves_nothing(tmp_path: Path) -> None:
    file = rows(tmp_path, 3)
    file.write_text(file.read_text() + "{")
    with pytest.raises(InputError, match=r"data.jsonl:4: not valid JSON"):
        load(file, tmp_path / "cache")
    assert not [path for path in (tmp_path / "cache").iterdir() if not path.name.startswith(".")]


def test_prune_removes_what_was_used_longest_ago(tmp_path: Path) -> None:
    for number in range(4):
        folder = tmp_path / str(number)
        folder.mkdir()
        (folder / "store.json").write_text("x" * 100)
        os.utime(folder / "store.json", (time.time() - number,) * 2)
    prune(tmp_path, 250, keep=tmp_path / "3")
    assert sorted(folder.name for folder in tmp_path.iterdir()) == ["0", "3"]


def recipe(file: Path, skip_bad: bool = False, template: str = CHATML) -> Recipe:
    tokenizer = tiny_tokenizer()
    return Recipe(open_data(file), tokenizer, chat_template(tokenizer, template), "assistant", 100, skip_bad)


def test_workers_give_the_same_in_the_same_order(tmp_path: Path) -> None:
    file = rows(tmp_path, 2500)
    file.write_text(file.read_text() + "bad\n" + file.read_text())
    made = recipe(file, skip_bad=True)
    alone, together = (list(render_rows(read_rows(made.data.container), made, workers=workers)) for workers in (1, 2))
    assert len(alone) == len(together) == 5
    for one, two in zip(alone, together, strict=True):
        assert (one.rows, one.skipped, one.first) == (two.rows, two.skipped, two.first)
        for name in ("ids", "lengths", "runs", "lines"):
            np.testing.assert_array_equal(getattr(one.columns, name), getattr(two.columns, name))
    strict = recipe(file)
    with pytest.raises(InputError, match=r"data.jsonl:2501: not valid JSON"):
        list(render_rows(read_rows(strict.data.container), strict, workers=2))


def test_what_a_worker_needs_travels(tmp_path: Path) -> None:
    made = recipe(rows(tmp_path, 1))
    copy = pickle.loads(pickle.dumps(made))
    assert copy.tokenizer.encode("hello <|im_end|>") == made.tokenizer.encode("hello <|im_end|>")
    assert copy.template.fingerprint == made.template.fingerprint and copy.tokenizer.fingerprint == made.tokenizer.fingerprint


def test_fingerprints_tell_what_decides_the_ids() -> None:
    one, two = tiny_tokenizer(), tiny_tokenizer(**{"tokenizer.ggml.pre": "smollm"})
    assert one.fingerprint == tiny_tokenizer().fingerprint != two.fingerprint
    dated = chat_template(one, "{{ strftime_now('%d') }}")
    assert str(dated._now or "") == "" and "date" in dated.fingerprint and "date" not in chat_template(one).fingerprint
