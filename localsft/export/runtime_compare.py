"""What a runtime computed beside what our engine computes: logits, greedy texts, where answers end, and prompts."""

from __future__ import annotations

import time
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

from localsft.batch import Example, Float32
from localsft.data.pack import pack_step
from localsft.engine.base import Engine, Sampling
from localsft.export.proof import Check
from localsft.export.source import general_probes
from localsft.export.verify import WithLogits, token_names
from localsft.session import LoadedModel
from localsft.tokenizer import Tokenizer

TOKENS = 50
EFFECT_BOUNDS = (0.9, 1.1)
LOGITS_BOUND = 0.2  # of the logits' spread


@dataclass(frozen=True, slots=True)
class Answers:
    """What an engine makes of prompts: ``logits`` float32 (prompts, V) after each, ``texts`` TOKENS greedy tokens that end at no stop
    token, and the ``seconds`` that it took."""

    logits: Float32
    texts: Sequence[Sequence[int]]
    seconds: float


def answers(engine: Engine, prompts: Sequence[list[int]]) -> Answers:
    """Of an engine as it is, its adapter with it."""
    start = time.monotonic()
    logits = last_logits(engine, prompts)
    texts: list[list[int]] = [[] for _ in prompts]
    for token in engine.generate([np.array(prompt, np.int32) for prompt in prompts], Sampling(TOKENS)):
        texts[token.prompt].append(token.token_id)
    return Answers(logits, texts, time.monotonic() - start)


def last_logits(engine: Engine, prompts: Sequence[Sequence[int]]) -> Float32:
    """Our logits after each prompt: float32 (prompts, V)."""
    rows = []
    for prompt in prompts:
        ids = np.array([*prompt, 0], np.int32)
        weights = np.zeros(len(ids), np.float32)
        weights[-1] = 1
        batches = list(pack_step([Example(ids, weights)], len(ids), pack=False, share_prefix=False))
        rows.append(cast(WithLogits, engine).logits(batches[0])[0])
    return np.stack(rows)


def _centred(logits: Float32) -> NDArray[np.float64]:
    values = logits.astype(np.float64)
    values -= values.mean(1, keepdims=True)
    return values


def compare_effects(name: str, ours: Float32, theirs: Float32) -> Check:
    """How much of the adapter's change of the logits the runtime makes: ⟨theirs, ours⟩ / ‖ours‖², each row less its mean.

    What moves all the logits of a prompt alike changes no probability, but can be most of an adapter's change and of its rounding.
    After a few steps an adapter does less than a runtime's rounding. A share out of bounds which three of its standard errors, as a ratio
    over prompts (Cochran, Sampling Techniques, 3rd ed., eq. 6.9), don't tell from 1 is no failure: the check could not be made.
    ``ours`` must be exact: rounding in it would draw the share below 1.
    """
    a, b = _centred(ours), _centred(theirs)
    squares, products = (a * a).sum(1), (a * b).sum(1)
    share = float(products.sum() / squares.sum()) if a.any() else 0.0
    residuals = products - share * squares
    error = float(np.sqrt(len(a) / max(len(a) - 1, 1) * (residuals**2).sum()) / squares.sum()) if a.any() else 0.0
    apart = float(np.linalg.norm(b - a) / np.linalg.norm(a)) if a.any() else np.inf
    low, high = EFFECT_BOUNDS
    found = f"{100 * share:.1f} ± {100 * error:.1f} % as far as here"
    figures = {"share": share, "error": error, "apart": apart, "bounds": [low, high]}
    holds = low <= share <= high
    if not holds and abs(share - 1) <= 3 * error:
        return Check(f"{name}: effect", None, f"the adapter does too little beside the rounding there to be told: {found}", figures)
    words = f"the adapter moves the logits {found}, along the same way (rounding aside: {100 * apart:.1f} %)"
    return Check(f"{name}: effect", holds, words, figures)


def compare_logits(name: str, ours: Float32, theirs: Float32) -> Check:
    """How far the runtime's logits after the prompts are from ours, as a share of their spread: ‖theirs - ours‖ / ‖ours‖, each less its
    mean. Rounding is part of it, so it can't be explained away by a rounding that is measured on the same logits."""
    a, b = _centred(ours), _centred(theirs)
    apart = float(np.linalg.norm(b - a) / np.linalg.norm(a)) if a.any() else np.inf
    detail = f"the logits after {len(ours)} prompts are {100 * apart:.1f} % of their spread apart (at most {100 * LOGITS_BOUND:.0f} %)"
    return Check(f"{name}: logits", apart <= LOGITS_BOUND, detail, {"apart": apart, "bound": LOGITS_BOUND})


def compare_texts(
    name: str,
    engine: Engine,
    prompts: Sequence[list[int]],
    mine: Answers,
    theirs: Sequence[Sequence[int]],
    found: Float32,
    stops: Collection[int],
    tokenizer: Tokenizer,
) -> Check:
    """The same greedy tokens up to the first at which the runtime stops, or at the first one that differs a margin that rounding explains.

    ``theirs``: its texts, a stop token included; ``found``: its logits after the prompts. Both texts end at the runtime's own ``stops``, so
    that ending is a token like any other: a text that is only shorter has no explanation.
    Rounding is measured: the largest difference between the runtime's logits and ours, each less its mean, among the ten likeliest tokens
    after the prompts. Two logits may each be off by it.
    """
    ours = mine.logits
    top = np.argsort(ours, axis=1)[:, -10:]
    centred = (ours - ours.mean(1, keepdims=True)) - (found - found.mean(1, keepdims=True))
    rounding = float(np.abs(np.take_along_axis(centred, top, axis=1)).max())
    same = 0
    explained: list[str] = []
    wrong: list[str] = []
    for number, (prompt, text, b) in enumerate(zip(prompts, mine.texts, theirs, strict=True), 1):
        a = until(text, stops)
        place = next((i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b)))
        if list(b) != until(b, stops):
            wrong.append(f"prompt {number} goes on there behind a token that ends answers")
        elif a == list(b):
            same += 1
        elif place >= min(len(a), len(b)):
            wrong.append(f"prompt {number} ends there after {len(b)} tokens without one that ends answers, here after {len(a)}")
        else:
            logits = last_logits(engine, [[*prompt, *a[:place]]])[0]
            margin = float(logits[a[place]] - logits[b[place]])
            one, other = (token_names([ids[place]], tokenizer) for ids in (a, b))
            where = f"prompt {number}, token {place + 1}: {one!r} before {other!r}"
            (explained if margin <= 2 * rounding else wrong).append(f"{where} by {margin:.3f}")
    figures = {"same": same, "of": len(prompts), "tokens": TOKENS, "rounding": rounding, "explained": explained, "wrong": wrong}
    words = f"{same} of {len(prompts)} greedy texts of {TOKENS} tokens are the same"
    if explained:
        words += f"; {len(explained)} part where two logits are closer than rounding (2 x {rounding:.3f}), first {explained[0]}"
    if wrong:
        words += f"; {len(wrong)} differ beyond rounding: {wrong[0]}"
    return Check(f"{name}: text", not wrong, words, figures)


def until(text: Sequence[int], stops: Collection[int]) -> list[int]:
    """``text`` up to and with its first stop token, at most TOKENS."""
    end = next((i for i, token in enumerate(text) if token in stops), len(text))
    return list(text[: min(end + 1, TOKENS)])


def compare_stops(name: str, found: Collection[int], expected: Collection[int], ends: Collection[int], tokenizer: Tokenizer) -> Check:
    """Whether the runtime, by what itself says (``found``), stops at a token that ends a trained answer (``ends``); where that is not what
    its files make one expect (``expected``), the difference is named."""
    figures = {"stop_ids": sorted(found), "expected": sorted(expected), "ends": sorted(ends)}
    words = f"stops at {token_names(found, tokenizer)}"
    if ends and not set(ends) & set(found):
        words = f"goes on behind {token_names(ends, tokenizer)}, which ends trained answers; it {words}"
        return Check(f"{name}: stop", False, words, figures)
    if more := set(found) - set(expected):
        words += f"; by its files it would not at {token_names(more, tokenizer)}"
    if less := set(expected) - set(found):
        words += f"; by its files it would also at {token_names(less, tokenizer)}"
    return Check(f"{name}: stop", True, words, figures)


def compare_prompts(name: str, document: Mapping[str, Any], loaded: LoadedModel) -> Check:
    """The token ids that the runtime itself makes of conversations, by its own tokenizer, template and BOS rule."""
    expected = [probe.prompt_ids for probe in general_probes(loaded)]
    if "tokenized" in document:
        bos = [loaded.tokenizer.bos_id] if document["prepends_bos"] else []
        found = [ids if bos and ids[:1] == bos else [*bos, *ids] for ids in document["tokenized"]]
    elif document.get("rendered") is not None:
        found = [list(map(int, ids)) for ids in document["rendered"]]
    else:
        return Check(f"{name}: prompts", None, "the base has no tokenizer files for it")
    wrong = [number for number, (a, b) in enumerate(zip(expected, found, strict=True), 1) if a != b]
    detail = f"other ids for conversations {wrong}" if wrong else f"{len(expected)} conversations become the same ids there"
    return Check(f"{name}: prompts", not wrong, detail)
