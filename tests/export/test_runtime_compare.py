"""What the comparison with a runtime can see, and what it lets pass."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from localsft.engine.base import Engine
from localsft.export.runtime_compare import (
    TOKENS,
    Answers,
    answers,
    compare_effects,
    compare_logits,
    compare_stops,
    compare_texts,
    last_logits,
    until,
)
from localsft.export.runtimes import runtime_prompts
from localsft.export.source import Source
from localsft.export.verify import open_source_engine
from tests.export.tiny import gguf_base, source_of


def test_half_of_the_effect_is_seen_through_noise() -> None:
    rng = np.random.default_rng(0)
    ours = rng.standard_normal((10, 500)).astype(np.float32)
    noise = 0.3 * rng.standard_normal((10, 500)).astype(np.float32)
    assert compare_effects("x", ours, ours + noise).ok
    assert compare_effects("x", ours + 5, ours + noise - 5).ok  # softmax does not see what moves all logits alike
    assert not compare_effects("x", ours, ours / 2 + noise).ok
    assert not compare_effects("x", ours, noise).ok
    assert not compare_effects("x", ours, np.full_like(ours, np.nan)).ok


def test_an_effect_below_the_rounding_is_no_failure_and_no_proof() -> None:
    rng = np.random.default_rng(2)
    ours = rng.standard_normal((10, 500)).astype(np.float32)
    direction = rng.standard_normal((10, 1)) * ours  # rounding that falls by chance along the effect, otherwise for each prompt
    lost = compare_effects("x", ours, (ours + direction).astype(np.float32))
    assert lost.ok is None and "too little beside the rounding" in lost.detail
    assert compare_effects("x", ours, np.zeros_like(ours)).ok is False  # the adapter was not applied at all
    assert compare_effects("x", ours, -5 * ours + direction).ok is False
    assert compare_effects("x", ours, ours / 2 + 0.8 * direction).ok is False  # 3.3 errors below 1, if less below the bound


def test_our_side_of_the_comparison_rounds_nothing_to_bfloat16(trial: Trial) -> None:
    assert trial.engine.info.details["activations"] == "float32"


def test_other_logits_are_no_rounding() -> None:
    rng = np.random.default_rng(1)
    ours = rng.normal(size=(5, 300)).astype(np.float32)
    noise = 0.05 * rng.normal(size=ours.shape).astype(np.float32)
    assert compare_logits("x", ours, ours + noise + 3).ok  # softmax does not see the 3
    for wrong in (ours[:, ::-1], 0.7 * ours, ours + 0.4 * rng.normal(size=ours.shape), np.full_like(ours, np.nan), np.zeros_like(ours)):
        assert not compare_logits("x", ours, wrong).ok
    assert not compare_logits("x", np.zeros_like(ours), ours).ok


@dataclass
class Trial:
    """Our engine's answers to two prompts, to hold made-up texts of a runtime against."""

    source: Source
    engine: Engine
    prompts: list[list[int]]
    mine: Answers

    def check(self, theirs: Sequence[Sequence[int]], stops: Sequence[int] = (), rounding: float = 1e-4) -> Any:
        noise = np.zeros_like(self.mine.logits)
        noise[np.arange(len(noise)), self.mine.logits.argmax(1)] = rounding
        found = self.mine.logits + noise
        return compare_texts("x", self.engine, self.prompts, self.mine, theirs, found, stops, self.source.model.tokenizer)

    def logits_at(self, place: int) -> np.ndarray[Any, Any]:
        return last_logits(self.engine, [[*self.prompts[0], *self.mine.texts[0][:place]]])[0]


@pytest.fixture(scope="module")
def trial(tmp_path_factory: pytest.TempPathFactory) -> Trial:
    folder: Path = tmp_path_factory.mktemp("trial")
    source = source_of(folder, gguf_base(folder / "base.gguf"))
    engine = open_source_engine(source)
    engine.load_adapter(source.adapter.tensors)
    prompts = runtime_prompts(source)[:2]
    return Trial(source, engine, prompts, answers(engine, prompts))


def test_the_same_texts_are_the_same(trial: Trial) -> None:
    assert all(len(text) == TOKENS for text in trial.mine.texts) and trial.mine.seconds > 0
    check = trial.check(trial.mine.texts)
    assert check.ok and check.figures["same"] == 2


def test_another_token_needs_a_margin_that_rounding_explains(trial: Trial) -> None:
    first, second = np.argsort(trial.mine.logits[0])[:-3:-1].tolist()
    assert first == trial.mine.texts[0][0]
    margin = float(trial.mine.logits[0, first] - trial.mine.logits[0, second])
    theirs = [[second] * TOKENS, trial.mine.texts[1]]
    assert not trial.check(theirs, rounding=margin / 4).ok
    check = trial.check(theirs, rounding=margin)
    assert check.ok and len(check.figures["explained"]) == 1


def test_a_text_that_is_only_shorter_is_wrong(trial: Trial) -> None:
    check = trial.check([trial.mine.texts[0][:7], trial.mine.texts[1]], rounding=1e3)
    assert not check.ok and "after 7 tokens without one that ends answers" in check.detail
    assert not trial.check([[], trial.mine.texts[1]], rounding=1e3).ok


def test_both_texts_end_at_the_runtimes_own_stop_token(trial: Trial) -> None:
    """The runtime stops at a token that is none of ours: the texts up to it are what is compared."""
    whole = list(trial.mine.texts[0])
    stop = whole[9]
    cut = [until(text, [stop]) for text in trial.mine.texts]
    assert trial.check(cut, [stop]).figures["same"] == 2
    check = trial.check([cut[0][:-1], cut[1]], [stop], rounding=1e3)  # ends one token before it
    assert not check.ok and "without one that ends answers" in check.detail
    check = trial.check([whole, cut[1]], [stop], rounding=1e3)
    assert not check.ok and "goes on there behind" in check.detail


def test_a_stop_token_is_weighed_as_a_token(trial: Trial) -> None:
    """It stops where ours has another token, and the reverse: explained by a margin within rounding, and by nothing else."""
    whole = list(trial.mine.texts[0])
    place = next(i for i in range(TOKENS - 1) if trial.logits_at(i).argsort()[-2] not in whole[: i + 1])
    logits = trial.logits_at(place)
    stop = int(logits.argsort()[-2])
    margin = float(logits[whole[place]] - logits[stop])
    other = until(trial.mine.texts[1], [stop])
    there = [[*whole[:place], stop], other]
    assert trial.check(there, [stop], rounding=margin).ok
    assert not trial.check(there, [stop], rounding=margin / 4).ok
    # Ours stops at its own token, theirs says the other one and goes on.
    ends = whole[place]
    if ends not in whole[:place]:
        longer = [*whole[:place], stop, *[stop] * (TOKENS - place - 1)]
        theirs = [longer, until(trial.mine.texts[1], [ends])]
        assert trial.check(theirs, [ends], rounding=margin).ok
        assert not trial.check(theirs, [ends], rounding=margin / 4).ok


def test_a_runtime_that_goes_on_behind_the_end_of_answers_fails(trial: Trial) -> None:
    tokenizer = trial.source.model.tokenizer
    assert compare_stops("x", [2, 0], [0, 2], [2], tokenizer).ok
    more = compare_stops("x", [0, 2, 4], [0, 2], [2], tokenizer)
    assert more.ok and "would not at </s>" in more.detail
    less = compare_stops("x", [2], [0, 2], [2], tokenizer)
    assert less.ok and "would also at <|endoftext|>" in less.detail
    wrong = compare_stops("x", [0], [0], [2], tokenizer)
    assert wrong.ok is False and "goes on behind <|im_end|>" in wrong.detail
