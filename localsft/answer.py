"""Text in, text out: conversations through a model, with or without an adapter."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from localsft.checkpoint import ADAPTER_FILE, SavedAdapter, load_adapter
from localsft.config import LoraConfig, OptimConfig
from localsft.data.conversation import Message
from localsft.data.render import render_prompt
from localsft.engine import open_engine
from localsft.engine.base import Engine, Sampling
from localsft.errors import Refused, UsageError
from localsft.models.cache import locate
from localsft.quantized import quantized_copy
from localsft.runs import open_run
from localsft.session import LoadedModel

# The adapter of an engine that only speaks for the base: B is zero, so that it changes nothing, and small.
NO_ADAPTER = LoraConfig(rank=1, layers=1)


@dataclass(frozen=True, slots=True)
class Piece:
    """A bit of one conversation's answer; ``finish`` is 'stop' or 'length' with the last one, else ''."""

    conversation: int
    text: str
    finish: str = ""


@dataclass(frozen=True, slots=True)
class Answer:
    """A whole answer. ``tokens`` counts the stop token too."""

    text: str
    tokens: int
    finish: str


def find_adapter(name: str) -> tuple[Path, str | None]:
    """An adapter's folder, and the base model that its run.json names: from a run (folder or name) or an adapter folder.

    Where the run quantized its base, that is the quantized copy, made again if the cache has lost it. Raises ``UsageError`` when
    there is neither run nor adapter.
    """
    if (Path(name) / ADAPTER_FILE).is_file():
        return Path(name), None
    run = open_run(name)
    if not (run.adapter / ADAPTER_FILE).is_file():
        raise UsageError(f"--adapter {name}: the run has no adapter yet; train it to its first validation")
    config = run.info()["config"]
    model, bits = str(config["model"]), config.get("quantize")
    return run.adapter, model if bits is None else str(quantized_copy(locate(model).path, bits))


def open_for_answers(model: LoadedModel, adapter: Path | None, engine: str = "auto", threads: int | None = None) -> Engine:
    """An engine that generates. Raises ``Refused`` for an adapter that was trained on other weights."""
    saved: SavedAdapter | None = None
    if adapter is not None:
        saved = load_adapter(adapter)
        if saved.base_hash and saved.base_hash != model.base.hash:
            raise Refused(
                f"{adapter} was trained on {saved.base_name or 'another model'} with hash {saved.base_hash[:12]}, "
                f"and {model.name} has {model.base.hash[:12]}; give --model the base that it was trained on"
            )
    opened = open_engine(engine, model.base, saved.lora if saved else NO_ADAPTER, OptimConfig(), threads=threads)
    if saved:
        opened.load_adapter(saved.tensors)
    return opened


def stream(model: LoadedModel, engine: Engine, conversations: Sequence[Sequence[Message]], sampling: Sampling) -> Iterator[Piece]:
    """The answers to several conversations as they are decoded together; the model's own stop tokens end them."""
    prompts = [np.array(render_prompt(messages, model.tokenizer, model.template), np.int32) for messages in conversations]
    decoders = [model.tokenizer.stream() for _ in prompts]
    sampling = replace(sampling, stop_ids=(*sampling.stop_ids, *sorted(model.tokenizer.stop_ids)))
    for token in engine.generate(prompts, sampling):
        decoder = decoders[token.prompt]
        text = "" if token.finish == "stop" else decoder.push(token.token_id)
        yield Piece(token.prompt, text + decoder.finish() if token.finish else text, token.finish)


def answer(model: LoadedModel, engine: Engine, conversations: Sequence[Sequence[Message]], sampling: Sampling) -> list[Answer]:
    """The same, when all is said."""
    texts, tokens, finish = [""] * len(conversations), [0] * len(conversations), [""] * len(conversations)
    for piece in stream(model, engine, conversations, sampling):
        texts[piece.conversation] += piece.text
        tokens[piece.conversation] += 1
        finish[piece.conversation] = piece.finish
    return [Answer(*parts) for parts in zip(texts, tokens, finish, strict=True)]
