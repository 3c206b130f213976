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
from numpy.typing import NDArray

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


Ids = Mapping[bytes, Sequence[int]]


def ollama_program() -> str | None:
    """Ollama's command line, from PATH."""
    return shutil.which(OLLAMA)


def ollama_checks(
    program: str, folder: Path, model: Path, loaded: LoadedModel, engine: Engine, prompts: Sequence[list[int]], own: Answers
) -> list[Check]:
    """What Ollama (``program``) says about an exported folder. ``model``: the GGUF of its FROM; ``engine``: ours in the same state, ``own``
    its answers to ``prompts``."""
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
    ids = _ids_by_bytes(loaded.tokenizer)
    return [
        _counts(name, [len(prompt) for prompt in prompts], document["answers"]),
        _prompts(name, talks, document["chats"], loaded),
        _first_tokens(name, own.logits, document["answers"], ids),
        _texts(name, document["answers"], prompts, own, engine, stops, ids, loaded.tokenizer),
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


def _first_tokens(name: str, logits: Float32, answers: Sequence[Mapping[str, Any]], ids: Ids) -> Check:
    """The largest difference of probability among the tokens that are likeliest there."""
    apart = 0.0
    for row, answer in zip(_log_probabilities(logits), answers, strict=True):
        for token, value in _known(answer["top"], ids):
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
    ids: Ids,
    tokenizer: Tokenizer,
) -> Check:
    """Greedy texts. Ollama keeps back the token that ended one: it is taken to be the likeliest of ``stops``."""
    found = _log_probabilities(own.logits)
    theirs = []
    for row, answer, mine, prompt in zip(found, answers, own.texts, prompts, strict=True):
        for token, value in _known(answer["top"], ids):
            row[token] = value
        text = _ids_of(answer["tokens"], mine, ids)
        if answer["ended"] and len(text) == len(answer["tokens"]) < TOKENS:
            logits = last_logits(engine, [[*prompt, *text]])[0]
            text.append(max(stops, key=lambda token: float(logits[token])))
        theirs.append(text[:TOKENS])
    return compare_texts(name, engine, prompts, own, theirs, found.astype(np.float32), stops, tokenizer)


def _ids_of(tokens: Sequence[Sequence[int]], mine: Sequence[int], ids: Ids) -> list[int]:
    """Ids of tokens that are told as bytes, up to one that the vocabulary does not have; where several have the same bytes, ours if it is
    one of them."""
    found: list[int] = []
    for place, values in enumerate(tokens):
        same = ids.get(bytes(values), ())
        if not same:
            break
        found.append(mine[place] if place < len(mine) and mine[place] in same else same[0])
    return found


def _known(top: Sequence[tuple[Sequence[int], float]], ids: Ids) -> list[tuple[int, float]]:
    """(id, logarithm of the probability) of the tokens whose bytes are those of one token only."""
    return [(same[0], value) for values, value in top if len(same := ids.get(bytes(values), ())) == 1]


def _ids_by_bytes(tokenizer: Tokenizer) -> Ids:
    """Ollama tells no bytes of a control token, so those all stand under b""."""
    control = set(tokenizer.control_tokens.values())
    found: dict[bytes, list[int]] = {}
    for token in range(tokenizer.vocab_size):
        found.setdefault(b"" if token in control else tokenizer.token_bytes(token), []).append(token)
    return found


def _log_probabilities(logits: Float32) -> NDArray[np.float64]:
    """Of each row of logits."""
    values = logits.astype(np.float64)
    values -= values.max(1, keepdims=True)
    values -= np.log(np.exp(values).sum(1, keepdims=True))
    return values
