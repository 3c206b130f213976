"""``export --to merged|merged-gguf|ollama``: the adapter inside the weights, refused where rounding would erase it."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Literal, get_args

from localsft.atomic import atomic_folder
from localsft.config import LoraConfig, OptimConfig
from localsft.engine import open_engine
from localsft.errors import LocalsftError, Refused, UsageError
from localsft.evaluate import evaluate
from localsft.export import merged, merged_gguf
from localsft.export.gguf import GGUF_FILE, write_gguf_lora
from localsft.export.lowrank import Update
from localsft.export.ollama import check_modelfile, write_modelfile
from localsft.export.proof import Check, Proof
from localsft.export.source import Source, batches_of
from localsft.export.stop_rules import rules_of
from localsft.export.survival import Survival, check_loss, check_survival
from localsft.export.template_rule import check_template
from localsft.export.verify import check_adapter, check_prompts, open_source_engine
from localsft.export.write import finish
from localsft.weights.load import BaseModel, load_base

MergeTarget = Literal["merged", "merged-gguf", "ollama"]
MERGE_TARGETS: tuple[MergeTarget, ...] = get_args(MergeTarget)
DEFAULT_TYPES: Mapping[MergeTarget, str] = {"merged": "bf16", "merged-gguf": "Q8_0", "ollama": "Q8_0"}
ADAPTER = "adapter"  # --to ollama --type adapter: the base's file and a GGUF adapter, nothing merged

# What a merged model is run with: an adapter of rank 1 whose B is zero changes nothing.
_NOTHING = LoraConfig(rank=1, layers=1)


def export_merged(
    source: Source,
    target: MergeTarget,
    out: Path,
    kind: str = "",
    *,
    tokenizer_from: Path | None = None,
    system: str = "",
    hub_layout: bool = False,
    runtime_checks: Callable[[Path], list[Check]] | None = None,
) -> Proof:
    """Merge the adapter as ``kind`` (the target's default if '') into the new folder ``out`` and prove it.

    Raises Refused where less than 90 % of the update would survive or the loss would be worse than its bound, naming a wider type
    that holds; Finding where the written files are not what they should be; ``out`` then does not exist.
    """
    kind = kind or DEFAULT_TYPES[target]
    if target == "ollama" and kind == ADAPTER:
        return _export_ollama_adapter(source, out, system, hub_layout, runtime_checks)
    with atomic_folder(out) as folder:
        if target == "merged":
            merged.write_merged(folder, source.model, source.updates, kind, source.provenance.texts(), tokenizer_from)
        else:
            merged_gguf.write_merged_gguf(folder, source, kind)
        if target == "ollama":
            write_modelfile(folder, source.model, f"./{merged_gguf.MERGED_GGUF}", system=system)
        checks = check_merge(folder, target, source, kind)
        weak = [check for check in checks if check.name in ("survival", "loss") and check.ok is False]
        if weak and not any(check.ok is False for check in checks if check not in weak):
            details = "; ".join(check.detail for check in weak)
            raise Refused(f"--type {kind} would lose what was trained: {details}; {wider(source, target, kind)}")
        if runtime_checks and all(check.ok is not False for check in checks):
            checks += runtime_checks(folder)
        proof = Proof(target, source.provenance, checks)
        finish(folder, proof, source, hub_layout, {"type": kind})
    return proof


def check_merge(folder: Path, target: MergeTarget, source: Source, kind: str) -> list[Check]:
    """Every check of a merged model that needs no foreign runtime."""
    if target == "merged":
        checks, parts = merged.check_merged(folder, source, kind)
    else:
        checks, parts = merged_gguf.check_merged_gguf(folder / merged_gguf.MERGED_GGUF, source)
    if not parts:
        return checks
    checks.append(check_survival(parts, kind))
    checks.append(check_merged_loss(folder if target == "merged" else folder / merged_gguf.MERGED_GGUF, source))
    checks.append(check_prompts(source.probes, source.model, rules_of(target, source.model, folder)))
    checks += check_template(target, source.model, folder)
    if target == "ollama":
        checks += check_modelfile(folder, source.model)
    return checks


def check_merged_loss(path: Path, source: Source) -> Check:
    """The merged model in our engine beside the base with and without the adapter, on the probes."""
    batches = batches_of(source.probes)
    try:
        engine = open_source_engine(source)
        engine.load_adapter(source.adapter.tensors)
        trained = evaluate(engine, batches).loss
        engine.load_adapter(engine.unchanging())
        base = evaluate(engine, batches).loss
        name = engine.info.name
        del engine
        found = evaluate(open_engine(name, load_base(path), _NOTHING, OptimConfig(), exact=True), batches).loss
    except LocalsftError as error:
        return Check("loss", None, f"could not be measured here: {error}")
    return check_loss(base, trained, found)


def wider(source: Source, target: MergeTarget, kind: str) -> str:
    """Which wider type holds the update, found by trying them in turn; or what to do where none does."""
    types = merged.TYPES if target == "merged" else merged_gguf.TYPES
    candidates = types[types.index(kind) + 1 :] if kind in types else types
    for candidate in candidates:
        parts = list(_measure(target)(source.model.base, source.updates, candidate))
        check = check_survival(parts, candidate)
        if check.ok:
            return f"use --type {candidate} ({check.detail}), or export the adapter by itself"
    return "no wider type holds it either; export the adapter by itself, --to mlx, peft or gguf-lora"


def _measure(target: MergeTarget) -> Callable[[BaseModel, Mapping[str, Update], str], Iterator[Survival]]:
    return merged.measure if target == "merged" else merged_gguf.measure


def _export_ollama_adapter(
    source: Source, out: Path, system: str, hub_layout: bool, runtime_checks: Callable[[Path], list[Check]] | None
) -> Proof:
    """FROM the base's own file and ADAPTER: the adapter on exactly the weights that it was trained on."""
    if not source.model.base.metadata:
        raise UsageError("--to ollama --type adapter: the base is a folder, and Ollama wants a GGUF; use --to merged and convert that")
    with atomic_folder(out) as folder:
        write_gguf_lora(folder, source)
        os.symlink(source.model.base.path.resolve(), folder / "base.gguf")
        write_modelfile(folder, source.model, "./base.gguf", f"./{GGUF_FILE}", system)
        checks = [*check_adapter(folder, "gguf-lora", source), *check_modelfile(folder, source.model)]
        if runtime_checks and all(check.ok is not False for check in checks):
            checks += runtime_checks(folder)
        proof = Proof("ollama", source.provenance, checks)
        finish(folder, proof, source, hub_layout, {"type": ADAPTER})
    return proof
