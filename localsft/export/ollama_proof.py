"""The proof in Ollama itself, where that is installed: the folder becomes a model as a user makes it one, and answers.

Ollama tells texts, not token ids, and the probabilities of the likeliest tokens only. Compared are: how many tokens each prompt becomes,
the prompts that its template writes, the probabilities of the first tokens, and greedy texts, as runtimes.py compares them.
"""

from __future__ import annotations

import shutil
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import orjson

from localsft.batch import Float32
from localsft.data.conversation import Message
from localsft.data.render import render_prompt
from localsft.engine.base import Engine
from localsft.errors import LocalsftError
from localsft.export.ollama import MODELFILE, bos_text, read_modelfile
from localsft.export.proof import Check
from localsft.export.runtime_compare import TOKENS, Answers, compare_texts, last_logits
from localsft.export.runtime_process import TimeBound, TimedOut, run_program, size_of
from localsft.export.source import GENERAL_PROMPTS
from localsft.export.stop_rules import llama_cpp_stop_ids
from localsft.export.verify import answer_ends
from localsft.session import LoadedModel
from localsft.tokenizer import Tokenizer
from localsft.weights.load import load_base

OLLAMA = "ollama"
ABSENT_OLLAMA = "Ollama itself is not installed here (https://ollama.com/download), so it was not asked"
LIKELIEST_BOUND = 0.1  # of probability, between the likeliest first tokens there and here


def ollama_checks(
    folder: Path, model: Path, loaded: LoadedModel, engine: Engine, prompts: Sequence[list[int]], own: Answers
) -> list[Check]:
    """What Ollama says about an exported folder. ``model``: the GGUF of its FROM; ``engine``: ours in the same state, ``own`` its
    answers to ``prompts``."""
    program = shutil.which(OLLAMA)
    if program is None:
        return [Check(OLLAMA, None, ABSENT_OLLAMA)]
    modelfile = read_modelfile((folder / MODELFILE).read_text(encoding="utf-8"))
    talks = [_talk(text, modelfile) for text in GENERAL_PROMPTS]
    bos = bos_text(loaded)
    with tempfile.TemporaryDirectory() as temporary:
        request = {
            "model": str(folder.resolve()),
            "prompts": [loaded.tokenizer.decode(prompt).removeprefix(bos) for prompt in prompts],
            "conversations": [[{"role": "user", "content": text}] for text in GENERAL_PROMPTS],
            "max_tokens": TOKENS,
            "context": max(map(len, prompts)) + TOKENS + 8,
            "threads": max(1, engine.info.threads),
            "result": str(Path(temporary) / "result.json"),
        }
        (Path(temporary) / "request.json").write_bytes(orjson.dumps(request))
        script = str(Path(__file__).with_name("runtime_ollama.py"))
        command = [sys.executable, "-I", script, str(Path(temporary) / "request.json"), program]
        try:
            run_program(OLLAMA, command, TimeBound(size_of(model), own.seconds))
        except TimedOut as error:
            return [Check(OLLAMA, None, str(error))]
        except LocalsftError as error:
            return [Check(OLLAMA, False, str(error))]
        document = orjson.loads((Path(temporary) / "result.json").read_bytes())
    name = f"{OLLAMA} {document['version']}"
    if document["answers"] is None:
        return [Check(name, None, "it tells no probabilities of tokens, so its answers can't be compared; a newer one does")]
    stops = llama_cpp_stop_ids(load_base(model).metadata) | answer_ends(loaded)
    return [
        _counts(name, [len(prompt) for prompt in prompts], document["answers"]),
        _prompts(name, talks, document["chats"], loaded),
        _first_tokens(name, own.logits, document["answers"], loaded.tokenizer),
        _texts(name, document["answers"], prompts, own, engine, stops, loaded.tokenizer),
    ]


def _talk(text: str, modelfile: Sequence[tuple[str, str]]) -> list[Message]:
    """A conversation as Ollama completes it."""
    system = [Message("system", value) for key, value in modelfile if key == "SYSTEM"]
    return [*system, Message("user", text)]


def _counts(name: str, expected: Sequence[int], answers: Sequence[Mapping[str, Any]]) -> Check:
    wrong = [number for number, (n, answer) in enumerate(zip(expected, answers, strict=True), 1) if answer["count"] != n]
    return Check(
        f"{name}: tokens",
        not wrong,
        f"prompts {wrong} are of another number of tokens there" if wrong else f"{len(answers)} prompts are of as many tokens, BOS once",
    )


def _prompts(name: str, talks: Sequence[Sequence[Message]], chats: Sequence[Mapping[str, Any]], loaded: LoadedModel) -> Check:
    """The Modelfile's template by Ollama beside the model's own."""
    rows = [[{"role": m.role, "content": m.content} for m in talk] for talk in talks]
    texts = [loaded.template.render(row, add_generation_prompt=True).removeprefix(bos_text(loaded)) for row in rows]
    counts = [len(render_prompt(talk, loaded.tokenizer, loaded.template)) for talk in talks]
    wrong = [
        number
        for number, (text, count, chat) in enumerate(zip(texts, counts, chats, strict=True), 1)
        if chat["count"] != count or chat["text"] not in (text, None)
    ]
    return Check(
        f"{name}: prompts",
        not wrong,
        f"conversations {wrong} become other prompts there" if wrong else f"{len(chats)} conversations become the same prompts there",
    )


def _first_tokens(name: str, logits: Float32, answers: Sequence[Mapping[str, Any]], tokenizer: Tokenizer) -> Check:
    """The largest difference of probability among the tokens that are likeliest there."""
    apart = 0.0
    for row, answer in zip(_log_probabilities(logits), answers, strict=True):
        for token, value in _known(answer["top"], tokenizer):
            apart = max(apart, abs(float(np.exp(row[token]) - np.exp(value))))
    told = all(answer["top"] or answer["ended"] for answer in answers)
    words = (
        f"the likeliest first tokens after {len(answers)} prompts differ by up to {apart:.3f} of probability (at most {LIKELIEST_BOUND})"
    )
    return Check(f"{name}: probabilities", told and apart <= LIKELIEST_BOUND, words, {"apart": apart, "bound": LIKELIEST_BOUND})


def _texts(
    name: str,
    answers: Sequence[Mapping[str, Any]],
    prompts: Sequence[list[int]],
    own: Answers,
    engine: Engine,
    stops: frozenset[int],
    tokenizer: Tokenizer,
) -> Check:
    """Greedy texts. Ollama keeps back the token that ended one: it is taken to be the likeliest of ``stops``."""
    found = _log_probabilities(own.logits)
    theirs = []
    for row, answer, mine, prompt in zip(found, answers, own.texts, prompts, strict=True):
        for token, value in _known(answer["top"], tokenizer):
            row[token] = value
        ids = _ids(answer["tokens"], mine, tokenizer)
        if answer["ended"] and len(ids) < TOKENS:
            logits = last_logits(engine, [[*prompt, *ids]])[0]
            ids.append(max(stops, key=lambda token: float(logits[token])))
        theirs.append(ids[:TOKENS])
    return compare_texts(name, engine, prompts, own, theirs, found.astype(np.float32), stops, tokenizer)


def _ids(tokens: Sequence[Sequence[int]], mine: Sequence[int], tokenizer: Tokenizer) -> list[int]:
    """Ids of tokens that are told as bytes; where several have the same bytes, ours if it is one of them."""
    by_bytes = _by_bytes(tokenizer)
    ids = []
    for place, values in enumerate(tokens):
        same = by_bytes.get(bytes(values), [])
        if not same:
            break
        ids.append(mine[place] if place < len(mine) and mine[place] in same else same[0])
    return ids


def _known(top: Sequence[tuple[Sequence[int], float]], tokenizer: Tokenizer) -> list[tuple[int, float]]:
    """(id, logarithm of the probability) of the tokens whose bytes are those of one token only."""
    by_bytes = _by_bytes(tokenizer)
    return [(same[0], value) for values, value in top if len(same := by_bytes.get(bytes(values), [])) == 1]


def _by_bytes(tokenizer: Tokenizer) -> dict[bytes, list[int]]:
    found: dict[bytes, list[int]] = {}
    for token in range(tokenizer.vocab_size):
        found.setdefault(tokenizer.token_bytes(token), []).append(token)
    return found


def _log_probabilities(logits: Float32) -> Any:
    values = logits.astype(np.float64)
    values -= values.max(1, keepdims=True)
    return values - np.log(np.exp(values).sum(1, keepdims=True))
