"""From a configuration to a trainer that can start: base model, tokenizer, examples, engine, run folder."""

from __future__ import annotations

import datetime
import platform
import resource
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import xxhash

from localsft import __version__
from localsft.batch import Example
from localsft.checkpoint import BaseRef, load_adapter
from localsft.config import TrainConfig, to_dict
from localsft.data.formats import read_conversations
from localsft.data.leakage import Leak, find_leaks
from localsft.data.load import LoadReport, Part, data_files, load_dataset, load_file
from localsft.data.pack import pack_eval
from localsft.data.render import chat_template
from localsft.data.split import split
from localsft.data.template import ChatTemplate
from localsft.engine import open_engine
from localsft.engine.base import BatchSize, Engine
from localsft.engine.distributed import ALONE, Team
from localsft.errors import InputError, Refused, UsageError
from localsft.plan import Fit, Work, count_work, fit_memory, measure_speed
from localsft.runs import Run
from localsft.tokenizer import Tokenizer, load_tokenizer
from localsft.train import Plan, Totals, Trainer
from localsft.weights.load import BaseModel, load_base


@dataclass(frozen=True, slots=True)
class LoadedModel:
    """A base model with the tokenizer and the chat template that belong to it."""

    name: str
    base: BaseModel
    tokenizer: Tokenizer
    template: ChatTemplate

    @property
    def ref(self) -> BaseRef:
        return BaseRef(self.name, self.base.hash, self.base.config.n_layers)


@dataclass(frozen=True, slots=True)
class Examples:
    """What a run trains on and what it is judged by, with an account of every row."""

    train: Sequence[Example]
    valid: Sequence[Example]
    reports: dict[str, LoadReport]


def load_model(name: str, path: Path) -> LoadedModel:
    """A GGUF file or a model folder. Raises InputError for what can't be used, naming the file and the remedy."""
    base = load_base(path)
    tokenizer = load_tokenizer(base.metadata, str(path)) if base.metadata else load_tokenizer(path)
    return LoadedModel(name, base, tokenizer, chat_template(tokenizer, where=f"the chat template of {name}"))


def load_examples(config: TrainConfig, model: LoadedModel) -> Examples:
    """The data that ``config.data`` names, rendered and tokenized; what was left out is in the reports."""
    data = config.data
    tokenizer, template = model.tokenizer, model.template

    def load(file: Path) -> Part:
        return load_file(file, tokenizer, template, mask=data.mask, max_length=data.max_length)

    dataset = load_dataset(data.path, tokenizer, template, mask=data.mask, max_length=data.max_length)
    reports = {"train": dataset.train.report}
    if data.valid is not None:
        valid_file = Path(data.valid)
        if not valid_file.exists():
            raise InputError(f"{valid_file} (--valid): no such file; check the path")
        part: Part | None = load(valid_file)
    else:
        part = dataset.valid
    train: Sequence[Example] = dataset.train.examples
    valid: Sequence[Example] = part.examples if part else ()
    if part:
        reports["valid"] = part.report
    elif data.valid_fraction:
        train, valid = hold_out(train, data_files(data.path)["train"], data.valid_fraction)
    return Examples(train, valid, reports)


def refuse_leakage(config: TrainConfig) -> list[Leak]:
    """The validation rows that the training data repeats, where ``allow_leakage`` lets them pass.

    Raises Refused where it does not: the validation loss would be that of rows which the run has learned by heart.
    """
    files = data_files(config.data.path)
    valid = Path(config.data.valid) if config.data.valid is not None else files.get("valid")
    if valid is None:
        return []
    leaks = find_leaks(read_conversations(files["train"]), read_conversations(valid))
    if leaks and not config.data.allow_leakage:
        exact = sum(leak.exact for leak in leaks)
        raise Refused(
            f"{valid}: {exact} rows are also in {files['train']} and {len(leaks) - exact} nearly so (first: {leaks[0]}); the validation "
            "loss would measure memory; remove them from one side, split again with `localsft data split`, or pass --allow-leakage"
        )
    return leaks


def hold_out(examples: Sequence[Example], file: Path, fraction: float) -> tuple[Sequence[Example], Sequence[Example]]:
    """The split of ``localsft data split`` over the rows of ``file``: near duplicates on one side, whatever the order of the rows."""
    conversations = list(read_conversations(file))
    parts = split(conversations, {"valid": fraction})
    held = {conversation.source for conversation, part in zip(conversations, parts, strict=True) if part == "valid"}
    train = [example for example in examples if example.source not in held]
    valid = [example for example in examples if example.source in held]
    if not train or not valid:
        raise InputError(
            f"{file}: data.valid_fraction (--valid-fraction) {fraction:g} leaves nothing to {'validate' if train else 'train'} on, as near "
            "duplicates stay on one side; give another fraction, or rows that differ"
        )
    return train, valid


def fingerprint(examples: Sequence[Example]) -> str:
    """A hash of the examples (ids and weights) that does not depend on their order."""
    return xxhash.xxh3_128_hexdigest(b"".join(sorted(_hash(example) for example in examples)))


def order_hash(examples: Sequence[Example]) -> str:
    """A hash of the examples in their order, on which the batches of a run depend."""
    return xxhash.xxh3_128_hexdigest(b"".join(map(_hash, examples)))


def _hash(example: Example) -> bytes:
    return xxhash.xxh3_128_digest(example.token_ids.tobytes() + np.asarray(example.target_weights, np.float32).tobytes())


def open_fitting(
    config: TrainConfig, model: LoadedModel, work: Work, cache: Path | None, resumed_isa: str = ""
) -> tuple[Engine, TrainConfig, Fit]:
    """The engine, and the configuration with packs that fit the machine's free memory. Raises Refused where none do."""

    def opened(recompute: bool) -> Engine:
        return open_engine(
            config.engine,
            model.base,
            config.lora,
            config.optim,
            seed=config.seed,
            threads=config.threads,
            cache=cache,
            checkpoint=recompute,
            resumed_isa=resumed_isa,
        )

    engine = opened(False)
    free = engine.memory(BatchSize(0, 0), BatchSize(0, 0), False) + available_memory()  # what it holds already is in its own account too
    fit = fit_memory(engine.memory, work, config.data.tokens_per_pack, free)
    if fit.recompute:
        del engine
        engine = opened(True)
    fit = replace(fit, memory=fit.memory + engine.speed_up(work.typical.n_tokens, free - fit.memory))
    engine.hold_to(fit.memory)
    return engine, replace(config, data=replace(config.data, tokens_per_pack=fit.tokens_per_pack)), fit


def available_memory() -> int:
    """Bytes that this process may still take without swapping, less a tenth for others."""
    import psutil

    return int(psutil.virtual_memory().available * 0.9)


def examine(config: TrainConfig, model: LoadedModel, examples: Examples) -> dict[str, Any]:
    """The document of ``localsft plan``: the run's work, its memory by the engine's own account, its time by a measurement."""
    before = resident_mb()
    work = count_work(examples.train, examples.valid, config)
    engine, config, fit = open_fitting(config, model, work, cache=None)
    rate = measure_speed(engine, work.typical)
    valid = pack_eval(examples.valid, config.data.tokens_per_pack, pack=config.data.pack, share_prefix=config.data.share_prefix)
    seconds = work.tokens_computed / rate
    return {
        "model": model.name,
        "engine": engine.info.name,
        "isa": engine.info.isa,
        "threads": engine.info.threads,
        "examples": len(examples.train),
        "steps": work.plan.steps,
        "epochs": work.plan.epochs,
        "tokens": work.tokens,
        "tokens_computed": work.tokens_computed,
        "largest_batch_tokens": work.largest.tokens,
        "batches_per_step": work.batches_per_step,
        "tokens_per_pack": fit.tokens_per_pack,
        "recompute_layers": fit.recompute,
        "peak_memory_mb": round(before + fit.memory / 1e6),
        "available_memory_mb": round(available_memory() / 1e6),
        "tokens_per_second": work.tokens / seconds,
        "train_seconds": seconds,
        "valid_seconds": sum(batch.n_tokens for batch in valid) / rate / 2,  # no backward pass
    }


def make_trainer(
    config: TrainConfig,
    model: LoadedModel,
    examples: Examples,
    make_run: Callable[[], Run],
    cache: Path | None = None,
    team: Team = ALONE,
) -> Trainer:
    """The engine and the loop; then makes the run folder and writes run.json, so that what can't start leaves none behind.

    In a team only rank 0 has a run folder; that all ranks were given the same is checked first.

    Raises Refused where the run would not fit the machine's memory.
    """
    if not examples.train:
        raise InputError("there is no training example with a supervised token; see what was left out and why")
    engine, config, _ = open_fitting(config, model, count_work(examples.train, examples.valid, config), cache)
    if config.init is not None:
        load_initial(engine, config, model)
    check_team(team, config, model, examples, 0)
    run = make_run() if team.rank == 0 else Run(Path("(on rank 0)"))
    trainer = Trainer(engine, config, examples.train, examples.valid, run, model.ref, team=team)
    if team.rank == 0:
        run.write_info(run_info(config, model, examples, engine, trainer.plan))
    return trainer


def check_team(team: Team, config: TrainConfig, model: LoadedModel, examples: Examples, step: int) -> None:
    """Raises InputError where the ranks were not given the same. Memory, threads, engines and folders may differ."""
    if team.size == 1:
        return
    settings = to_dict(config)
    for own in ("engine", "threads", "out", "model", "data"):
        settings.pop(own, None)
    team.check_same({
        "base model": model.base.hash,
        "set of training examples": b"".join(map(_hash, examples.train)).hex(),
        "set of validation examples": b"".join(map(_hash, examples.valid)).hex(),
        "configuration": repr(settings),
        "checkpoint to go on from": str(step),
    })  # fmt: skip


def load_initial(engine: Engine, config: TrainConfig, model: LoadedModel) -> None:
    """Give the engine the adapter that ``config.init`` names. Raises Refused for one of another base, with both names, and UsageError,
    with the flags to give, where the run's LoRA settings are not the adapter's."""
    saved = load_adapter(Path(str(config.init)))
    if saved.base_hash and saved.base_hash != model.base.hash:
        raise Refused(
            f"{config.init} (--init) was trained on {saved.base_name or 'another model'} (sha256 {saved.base_hash[:12]}…), not on "
            f"{model.name} (sha256 {model.base.hash[:12]}…); give --model the base that it was trained on"
        )
    theirs, ours = saved.lora, config.lora
    differ = any(getattr(theirs, name) != getattr(ours, name) for name in ("rank", "layers", "variant"))
    if differ or set(theirs.targets) != set(ours.targets) or abs(theirs.scale - ours.scale) > 1e-6 * theirs.scale:
        flags = f"--rank {theirs.rank} --alpha {theirs.alpha:.9g} --layers {theirs.layers} --variant {theirs.variant}"
        raise UsageError(f"{config.init} (--init) has other LoRA settings than this run; give {flags} --targets {','.join(theirs.targets)}")
    engine.load_adapter(saved.tensors)


def run_info(config: TrainConfig, model: LoadedModel, examples: Examples, engine: Engine, plan: Plan) -> dict[str, Any]:
    """run.json before the first step: everything that another run needs to be the same or to be compared."""
    return {
        "localsft": __version__,
        "started": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
        "config": to_dict(config),
        "base": {"name": model.name, "path": str(model.base.path), "hash": model.base.hash, "model_type": model.base.config.model_type},
        "engine": asdict(engine.info),
        "data": {
            name: {**asdict(report), "fingerprint": fingerprint(part), "order": order_hash(part)}
            for (name, report), part in zip(examples.reports.items(), (examples.train, examples.valid), strict=False)
        }
        | {"train_examples": len(examples.train), "valid_examples": len(examples.valid)},
        "plan": asdict(plan),
        "machine": {"system": platform.platform(), "python": platform.python_version(), "numpy": np.__version__},
        "result": None,
    }


def result(trainer: Trainer) -> dict[str, Any]:
    """The document that ``train --json`` ends with; also ``result`` of run.json."""
    totals: Totals = trainer.totals
    info = trainer.engine.info
    seconds = totals.train_seconds
    return {
        "run": str(trainer.run.path),
        "engine": info.name,
        "isa": info.isa,
        "threads": info.threads,
        "model": trainer.base.name,
        "examples": len(trainer.train),
        "steps": totals.step,
        "epochs": totals.step / trainer.plan.per_epoch,
        "tokens": totals.tokens,
        "tokens_computed": totals.tokens_computed,
        "tokens_supervised": totals.tokens_supervised,
        "train_seconds": seconds,
        "tokens_per_second": totals.tokens / seconds if seconds else 0.0,
        "first_loss": totals.first_loss,
        "final_loss": totals.final_loss,
        "base_valid_loss": totals.base_valid_loss,
        "base_valid_token_accuracy": totals.base_valid_accuracy,
        "best_valid_loss": totals.best_valid_loss,
        "best_valid_token_accuracy": totals.best_valid_accuracy,
        "best_step": totals.best_step,
        "skipped_steps": totals.skipped_steps,
        "peak_memory_mb": peak_memory_mb(),
        "adapter": str(trainer.run.adapter),
    }


def resident_mb() -> float:
    """The resident set of this process now, in MB of 10^6 bytes."""
    import psutil

    return float(psutil.Process().memory_info().rss) / 1e6


def peak_memory_mb() -> int:
    """The largest resident set of this process so far, in MB of 10^6 bytes (ru_maxrss is in KiB on Linux, bytes on macOS)."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return round(peak * (1 if sys.platform == "darwin" else 1024) / 1e6)
