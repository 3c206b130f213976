"""Generation with a cache equals reading everything again for each token; slots, stops and sampling."""

from __future__ import annotations

from collections import defaultdict
from typing import Any

import numpy as np
import pytest

from localsft.batch import Example
from localsft.engine.base import Sampling
from localsft.engine.cpu.engine import CpuEngine
from localsft.engine.cpu.ops import Ops, available_isas
from localsft.engine.sampling import Sampler
from tests.engine.cpu.cases import Golden, alone, load_golden


@pytest.fixture(scope="module", params=["tiny_tied", "tiny_untied"])
def golden(request: pytest.FixtureRequest) -> Golden:
    return load_golden(request.param)


def collect(engine: CpuEngine, prompts: list[Any], sampling: Sampling) -> dict[int, list[int]]:
    answers: dict[int, list[int]] = defaultdict(list)
    for token in engine.generate(prompts, sampling):
        answers[token.prompt].append(token.token_id)
    return answers


def last_logits(engine: CpuEngine, ids: list[int]) -> Any:
    """Logits after ``ids``, by the training path: no cache involved."""
    weights = np.zeros(len(ids) + 1, np.float32)
    weights[-1] = 1
    return engine.logits(alone(Example(np.array([*ids, 0], np.int32), weights)))[0]


@pytest.mark.parametrize("isa", available_isas())
def test_greedy_equals_reading_again(golden: Golden, isa: str) -> None:
    engine = golden.engine(Ops(isa, 2))
    prompts = [example.token_ids[:n] for example, n in zip(golden.examples, (7, 9, 1, 30, 12), strict=True)]
    answers = collect(engine, prompts, Sampling(max_tokens=12))
    for i, prompt in enumerate(prompts):
        ids = prompt.tolist()
        for token in answers[i]:
            logits = last_logits(engine, ids)
            # bfloat16 inputs on the training path, float32 when decoding: near ties may fall either way
            margin = 0.05 * float(logits.std()) if engine.ops.act_bf16 else 1e-4
            assert logits[token] >= logits.max() - margin
            ids.append(token)


def test_many_prompts_share_few_slots(golden: Golden) -> None:
    engine = golden.engine(Ops("", 2))
    random = np.random.default_rng(0)
    prompts = [random.integers(0, 211, size=n).astype(np.int32) for n in random.integers(1, 40, size=37)]
    together = collect(engine, prompts, Sampling(max_tokens=9))
    assert sorted(together) == list(range(37)) and all(len(answer) == 9 for answer in together.values())
    for i in (0, 17, 36):
        ids = prompts[i].tolist()
        for token in together[i]:
            logits = last_logits(engine, ids)
            assert logits[token] >= logits.max() - 0.05 * float(logits.std())
            ids.append(token)


def test_stop_ids_end_an_answer(golden: Golden) -> None:
    engine = golden.engine(Ops("", 1))
    prompt = golden.examples[0].token_ids[:5]
    free = [token.token_id for token in engine.generate([prompt], Sampling(max_tokens=10))]
    stop = free[3]
    stopped = list(engine.generate([prompt], Sampling(max_tokens=10, stop_ids=(stop,))))
    assert [token.token_id for token in stopped] == free[: free.index(stop) + 1]
    assert stopped[-1].finish == "stop" and all(token.finish == "" for token in stopped[:-1])
    assert [t.finish for t in engine.generate([prompt], Sampling(max_tokens=2))] == ["", "length"]


def test_the_adapter_takes_part(golden: Golden) -> None:
    engine = golden.engine(Ops("", 1))
    prompts = [example.token_ids for example in golden.examples]
    with_adapter = collect(engine, prompts, Sampling(max_tokens=8))
    engine.load_adapter({name: np.zeros_like(value) for name, value in engine.adapter().items()})
    assert collect(engine, prompts, Sampling(max_tokens=8)) != with_adapter


def test_sampling_is_a_function_of_seed_and_prompt(golden: Golden) -> None:
    engine = golden.engine(Ops("", 1))
    prompts = [golden.examples[0].token_ids, golden.examples[3].token_ids]
    hot = Sampling(max_tokens=20, temperature=1.0, seed=5)
    both = collect(engine, prompts, hot)
    assert collect(engine, prompts, hot) == both
    assert collect(engine, prompts[:1], hot)[0] == both[0]
    assert collect(engine, prompts, Sampling(max_tokens=20, temperature=1.0, seed=6)) != both


def test_top_p_keeps_the_smallest_nucleus() -> None:
    logits = np.log(np.array([0.5, 0.3, 0.15, 0.05], np.float32))
    drawn = [Sampler(Sampling(temperature=1.0, top_p=0.7, seed=s), 0).choose(logits) for s in range(400)]
    assert set(drawn) == {0, 1}
    assert 0.55 < drawn.count(0) / 400 < 0.70  # 0.5 / 0.8 = 0.625; six standard deviations are 0.15
    assert {Sampler(Sampling(temperature=1.0, seed=s), 0).choose(logits) for s in range(400)} == {0, 1, 2, 3}
    assert Sampler(Sampling(), 0).choose(logits) == 0
