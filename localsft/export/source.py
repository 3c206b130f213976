"""What an export starts from: a trained adapter, the base it belongs to, where both came from, and texts to try them on."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from localsft import __version__
from localsft.batch import Example, PackedBatch
from localsft.checkpoint import SavedAdapter, load_adapter
from localsft.config import TrainConfig, resolve
from localsft.data.conversation import Message
from localsft.data.pack import pack_step
from localsft.data.render import render_prompt
from localsft.errors import InputError, Refused
from localsft.export.families import layer_of, linears
from localsft.export.lowrank import Update, adapter_updates
from localsft.runs import Run
from localsft.session import LoadedModel, fingerprint, load_examples
from localsft.weights.names import LLAMA_LIKE

PROBES = 16
TOKENS_PER_PACK = 2048

# Asked where the run's own data are gone: any model says something to them, and an adapter changes what.
GENERAL_PROMPTS = (
    "Hello, who are you?", "What is the capital of France?", "Write a short apology for a late delivery.",
    "Explain what an invoice is.", "How do I reset my password?", "Name three colours of the rainbow.",
    "I was charged twice this month.", "Summarize: the meeting moved from Monday to Tuesday at noon.",
    "Translate 'good morning' into Spanish.", "Is 17 a prime number?", "Give me a title for a story about a lost dog.",
    "What does HTTP stand for?", "My order has not arrived. What now?", "List two uses of a paper clip.",
    "Write one sentence about the sea.", "Please cancel my subscription.",
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Provenance:
    """Bound into every exported file: what was trained, on what, from what. Hashes are hex; '' where nobody knows."""

    localsft: str
    base_name: str
    base_hash: str
    base_model: str  # the Hugging Face id of the original weights
    licence: str
    data_fingerprint: str
    run: str
    metrics: Mapping[str, float]

    def texts(self) -> dict[str, str]:
        """As key -> text, for the metadata of a file."""
        fields = asdict(self)
        del fields["metrics"]
        return {f"localsft.{'version' if key == 'localsft' else key}": str(value) for key, value in fields.items() if value}


@dataclass(frozen=True, slots=True)
class Probe:
    """A text to compare models on. ``ids`` int32 (n,), of which the first ``prompt`` are what a model would be given."""

    ids: np.ndarray[Any, np.dtype[np.int32]]
    weights: np.ndarray[Any, np.dtype[np.float32]]
    prompt: int
    messages: tuple[Message, ...] = ()

    @property
    def prompt_ids(self) -> list[int]:
        ids: list[int] = self.ids[: self.prompt].tolist()
        return ids

    def example(self, places: int | None = None) -> Example:
        """The text with its supervised tokens as targets, only the first ``places`` of them if given; every token where none is
        supervised, then the last ``places``."""
        weights = self.weights.copy() if self.weights[1:].any() else np.ones(len(self.ids), np.float32)
        weights[0] = 0
        targets = np.flatnonzero(weights)
        if places is None or len(targets) <= places:
            return Example(self.ids, weights)
        if not self.weights[1:].any():
            weights[:-places] = 0
            return Example(self.ids, weights)
        end = int(targets[places - 1]) + 1
        return Example(self.ids[:end], weights[:end])


def batches_of(probes: Sequence[Probe], places: int | None = None) -> list[PackedBatch]:
    """The probes' texts, prefixes that they share computed once."""
    return list(pack_step([probe.example(places) for probe in probes], TOKENS_PER_PACK, pack=True, share_prefix=True))


@dataclass(frozen=True, slots=True)
class Source:
    """A trained adapter that fits its base. ``updates`` by linear; ``probes`` of the holdout where there is one."""

    path: Path
    adapter: SavedAdapter
    updates: Mapping[str, Update]
    model: LoadedModel
    provenance: Provenance
    probes: Sequence[Probe]
    probes_from: str
    engine: str = "auto"


def open_source(
    folder: Path, model: LoadedModel, run: Run | None = None, *, base_model: str = "", licence: str = "", engine: str = "auto"
) -> Source:
    """The adapter in ``folder`` on ``model``, checked against it: hash, names, shapes, finite and not zero.

    ``base_model``, ``licence``: of the original weights; else taken from the base's own metadata. Raises Refused for an adapter
    of another base, with both names; InputError that says all at once for one that does not fit.
    """
    adapter = load_adapter(folder)
    check_base(adapter.base_name, adapter.base_hash, model, folder)
    updates = adapter_updates(adapter, str(folder))
    check_fit(updates, model, folder)
    info = run.info() if run else {}
    probes, where = _probes(info, model)
    own = _own_metadata(model)
    provenance = Provenance(
        localsft=str(info.get("localsft", __version__)),
        base_name=Path(model.name).name if Path(model.name).exists() else model.name,
        base_hash=model.base.hash,
        base_model=base_model or own[0],
        licence=licence or own[1],
        data_fingerprint=str(info.get("data", {}).get("train", {}).get("fingerprint", "")),
        run=run.name if run else "",
        metrics=_metrics(info),
    )
    trained_with = str(info.get("engine", {}).get("name", "auto")) if engine == "auto" else engine
    return Source(folder, adapter, updates, model, provenance, probes, where, trained_with)


def check_base(name: str, base_hash: str, model: LoadedModel, where: Path) -> None:
    """Raises Refused where the adapter was trained on other weights; an adapter without a hash passes."""
    if base_hash and base_hash != model.base.hash:
        raise Refused(
            f"{where} was trained on {name or 'another model'} (sha256 {base_hash[:12]}…), not on {model.name} "
            f"(sha256 {model.base.hash[:12]}…): on other weights it is noise; give --model the base that it was trained on"
        )


def check_fit(updates: Mapping[str, Update], model: LoadedModel, where: Path) -> None:
    """All that is wrong with an adapter on this base, in one InputError: unknown linears, shapes, mixed ranks, no effect."""
    shapes = linears(model.base)
    problems = []
    config = model.base.config
    exact = config.model_type in LLAMA_LIKE  # other families' folders may keep a linear under another name than the engine's
    for module, update in updates.items():
        if module not in shapes:
            if exact or layer_of(module) >= config.n_layers:
                problems.append(f"{module} is not in the base")
        elif update.shape != shapes[module]:
            problems.append(f"{module} is {update.shape}, the base's {shapes[module]}")
        parts = [update.a, update.b] + ([] if update.magnitude is None else [update.magnitude])
        if not all(np.isfinite(part).all() for part in parts):
            problems.append(f"{module} holds values that are not finite")
    if len({update.magnitude is None for update in updates.values()}) > 1:
        problems.append("some linears have magnitudes (DoRA) and others none")
    ranks = sorted({update.rank for update in updates.values()})
    if len(ranks) > 1:
        problems.append(f"ranks are mixed ({', '.join(map(str, ranks))})")
    if problems:
        raise InputError(f"{where} does not fit {model.name}: {'; '.join(problems[:4])}{_more(problems, 4)}; give the adapter's own base")
    if not any(update.b.any() for update in updates.values()):
        raise InputError(f"{where} changes nothing: lora_b is zero in every linear; train it first")


def _more(problems: Sequence[str], shown: int) -> str:
    return f"; and {len(problems) - shown} more" if len(problems) > shown else ""


def _own_metadata(model: LoadedModel) -> tuple[str, str]:
    """Hugging Face id and licence that the base's own file names."""
    metadata = model.base.metadata
    repository = str(metadata.get("general.base_model.0.repo_url", metadata.get("general.source.huggingface.repository", "")))
    name = repository.removeprefix("https://huggingface.co/")
    return name or (str(model.base.path) if not metadata else ""), str(metadata.get("general.license", ""))


def _metrics(info: Mapping[str, Any]) -> dict[str, float]:
    result = info.get("result") or {}
    keys = ("steps", "final_loss", "base_valid_loss", "best_valid_loss", "best_valid_token_accuracy")
    return {key: result[key] for key in keys if isinstance(result.get(key), int | float)}


def _probes(info: Mapping[str, Any], model: LoadedModel) -> tuple[list[Probe], str]:
    """Up to PROBES texts spread over the run's holdout (or its training data), else the general prompts; and which these are."""
    if info:
        try:
            config: TrainConfig = resolve(info["config"])
            examples = load_examples(config, model)
        except InputError as error:
            return general_probes(model), f"general prompts, as the run's data can't be read ({error})"
        part = examples.valid or examples.train
        name = "valid" if examples.valid else "train"
        step = max(1, len(part) // PROBES)
        chosen = [part[i] for i in range(0, len(part), step)][:PROBES]
        recorded = info.get("data", {}).get(name, {}).get("fingerprint", "")
        changed = "" if recorded in ("", fingerprint(part)) else ", changed since the training"
        return [probe_of(example) for example in chosen], f"{len(chosen)} {'holdout' if name == 'valid' else 'training'} examples{changed}"
    return general_probes(model), "general prompts, as there is no run with data"


def general_probes(model: LoadedModel) -> list[Probe]:
    """GENERAL_PROMPTS through the model's template."""
    probes = []
    for text in GENERAL_PROMPTS:
        messages = (Message("user", text),)
        ids = np.array(render_prompt(messages, model.tokenizer, model.template), np.int32)
        probes.append(Probe(ids, np.zeros(len(ids), np.float32), len(ids), messages))
    return probes


def probe_of(example: Example) -> Probe:
    """An example as a probe: its prompt ends where supervision begins."""
    supervised = np.flatnonzero(example.target_weights > 0)
    return Probe(example.token_ids, example.target_weights, int(supervised[0]) if len(supervised) else len(example.token_ids))
