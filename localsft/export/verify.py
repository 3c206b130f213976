"""The proof of an exported adapter: read back with another reader, compared as ΔW and as logits with what was trained."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Protocol, cast

import numpy as np

from localsft.batch import Float32, PackedBatch
from localsft.config import OptimConfig
from localsft.data.template import MARKS
from localsft.engine import open_engine
from localsft.engine.base import Engine
from localsft.errors import InputError, LocalsftError, MissingPart
from localsft.export.families import linears, named
from localsft.export.gguf import GGUF_FILE, read_gguf_lora
from localsft.export.lowrank import Update, difference, mlx_tensors
from localsft.export.mlx import read_mlx
from localsft.export.peft import read_peft
from localsft.export.proof import Check
from localsft.export.source import Probe, Provenance, Source, batches_of
from localsft.export.stop_rules import StopRule, rules_of
from localsft.export.template_rule import check_template
from localsft.session import LoadedModel
from localsft.tokenizer import Tokenizer

# Factors are stored in float32 as they were trained; all that may move is the scale, by one rounding to float32 (6e-8).
UPDATE_BOUND = 1e-6
# Of the adapter's own effect on the logits. The same factors give the same logits; a scale that is off by a rounding may move
# bfloat16 activations by one unit here and there.
LOGITS_BOUND = 1e-2
PLACES = 8  # of each probe at which logits are compared: with a vocabulary of 256k these are 128 MB


class WithLogits(Protocol):
    """What both engines offer beyond the Engine protocol."""

    def logits(self, batch: PackedBatch) -> Float32: ...


def read_back(folder: Path, target: str, base_modules: Iterable[str], model: LoadedModel) -> tuple[dict[str, Update], dict[str, str]]:
    """Updates and texts of an exported adapter, by the rules of its runtime. InputError for what the runtime would refuse."""
    if target == "mlx":
        return read_mlx(folder)
    if target == "peft":
        return read_peft(folder)[:2]
    return read_gguf_lora(folder / GGUF_FILE, model.base, base_modules)[:2]


def check_adapter(folder: Path, target: str, source: Source, engine: Engine | None = None) -> list[Check]:
    """Every check of an exported adapter that needs no foreign runtime. ``engine``: opened on the source's base and LoRA settings;
    made here if None."""
    modules = {**linears(source.model.base), **dict.fromkeys(source.updates)}
    try:
        found, texts = read_back(folder, target, modules, source.model)
    except InputError as error:
        return [Check("read back", False, str(error))]
    return [
        Check("read back", True, f"{len(found)} linears, as the runtime reads them"),
        check_updates(found, source.updates),
        check_provenance(texts, source.provenance),
        check_logits(found, source, engine),
        check_prompts(source.probes, source.model, rules_of(target, source.model, folder)),
        *check_template(target, source.model, folder),
    ]


def check_updates(found: Mapping[str, Update], trained: Mapping[str, Update]) -> Check:
    """ΔW of every linear: ‖ΔW_found - ΔW_trained‖ as a share of ‖ΔW_trained‖, at most UPDATE_BOUND; none missing, none more."""
    problems = [f"{name} is missing" for name in trained if name not in found]
    problems += [f"{name} was never trained" for name in found if name not in trained]
    worst, where = 0.0, ""
    for name in trained.keys() & found.keys():
        norm = trained[name].norm
        apart = difference(found[name], trained[name])
        share = apart / norm if norm else (0.0 if apart == 0 else np.inf)
        if share > worst:
            worst, where = share, name
        if not share <= UPDATE_BOUND:
            problems.append(f"{name} is off by {100 * share:.3g} % of its update")
    figures = {"linears": len(trained), "worst": worst, "worst_linear": where, "bound": UPDATE_BOUND}
    if problems:
        return Check("update", False, f"ΔW differs from the trained one: {named(sorted(problems), 3)}", figures)
    return Check("update", True, f"ΔW of {len(trained)} linears equals the trained one to {worst:.1e}", figures)


def check_provenance(texts: Mapping[str, str], provenance: Provenance) -> Check:
    """Whether the file itself carries the base's hash, the data's fingerprint and the version."""
    wrong = [key for key, text in provenance.texts().items() if texts.get(key) != text]
    bound = ", ".join(key.removeprefix("localsft.") for key in provenance.texts())
    return Check("provenance", not wrong, f"the file does not carry {named(wrong)}" if wrong else f"bound into the file: {bound}")


def open_source_engine(source: Source) -> Engine:
    """An exact engine on the source's base and LoRA settings: the one it was trained with, else the other one that runs it.

    Exact, because rounding on our side would be part of what an adapter seems to do here, and so draw the share of it that is found in
    another program below 1.
    """
    lora, base = source.adapter.lora, source.model.base
    try:
        return open_engine(source.engine, base, lora, OptimConfig(), exact=True)
    except (InputError, MissingPart) as first:
        other = "cpu" if source.engine == "mlx" else "mlx"
        try:
            return open_engine(other, base, lora, OptimConfig(), exact=True)
        except LocalsftError:
            raise first from None


def all_logits(engine: Engine, batches: Sequence[PackedBatch]) -> Float32:
    """float32 (targets of all batches, V)."""
    return np.concatenate([cast(WithLogits, engine).logits(batch) for batch in batches])


def check_logits(found: Mapping[str, Update], source: Source, engine: Engine | None = None) -> Check:
    """Logits of our engine on the probes with the file's adapter and with the trained one, as a share of what training changed."""
    try:
        opened = engine or open_source_engine(source)
    except LocalsftError as error:
        return Check("logits", None, f"no engine here runs this base: {error}")
    batches = batches_of(source.probes, PLACES)
    scale = source.adapter.lora.scale
    opened.load_adapter(source.adapter.tensors)
    trained = all_logits(opened, batches)
    opened.load_adapter(opened.unchanging())
    base = all_logits(opened, batches)
    try:
        opened.load_adapter(mlx_tensors(found, scale))
    except InputError as error:
        return Check("logits", False, str(error))
    return compare_logits(all_logits(opened, batches), trained, base, len(source.probes))


def compare_logits(found: Float32, trained: Float32, base: Float32, texts: int) -> Check:
    """‖found - trained‖ / ‖trained - base‖ over all supervised places of the probes."""
    effect = float(np.linalg.norm(trained.astype(np.float64) - base))
    apart = float(np.linalg.norm(found.astype(np.float64) - trained))
    figures = {"texts": texts, "places": len(trained), "largest": float(np.abs(found - trained).max()), "bound": LOGITS_BOUND}
    if effect == 0:
        return Check("logits", False, "the trained adapter does not change a single logit of the base", figures)
    share = apart / effect
    detail = f"logits at {len(trained)} places of {texts} texts are {100 * share:.2g} % of the adapter's effect away from the trained ones"
    return Check("logits", share <= LOGITS_BOUND, detail, {**figures, "share": share})


def check_prompts(probes: Sequence[Probe], model: LoadedModel, rules: Sequence[StopRule]) -> Check:
    """One BOS where the base wants one, never two; answers end with a token at which every program of ``rules`` stops.

    ``ok`` is None where the only thing that is amiss is that the base's files name no end token at all.
    """
    tokenizer = model.tokenizer
    ends = answer_ends(model)
    problems, silent, notes = [], [], []
    for number, probe in enumerate(probes, 1):
        ids = probe.prompt_ids
        if tokenizer.add_bos and ids[:1] != [tokenizer.bos_id]:
            problems.append(f"prompt {number} does not begin with BOS")
        if len(ids) > 1 and tokenizer.add_bos and ids[0] == ids[1] == tokenizer.bos_id:
            problems.append(f"prompt {number} begins with two BOS")
    for rule in rules:
        if not rule.ids:
            silent.append(f"{rule.program} never stops by itself: no eos_token_id in {rule.file} of the base; put {sorted(ends)} there")
            continue
        if ends and not ends & rule.ids:
            problems.append(
                f"{rule.program} goes on behind {token_names(ends, tokenizer)}, which ends answers: by {rule.file} it stops at "
                f"{token_names(rule.ids, tokenizer)}; add {sorted(ends)} to the end tokens there and export again"
            )
        for number, probe in enumerate(probes, 1):
            supervised = probe.ids[probe.weights > 0].tolist()
            if supervised and not rule.ids.intersection(supervised):
                problems.append(f"the answer of text {number} holds none of the stop tokens of {rule.program}")
        if other := tokenizer.stop_ids - rule.ids:
            notes.append(f"{rule.program} does not stop at {token_names(other, tokenizer)}, at which localsft does")
    figures = {
        "stop_ids": {rule.program: sorted(rule.ids) for rule in rules}, "ends": sorted(ends), "add_bos": tokenizer.add_bos,
    }  # fmt: skip
    if problems:
        return Check("prompts", False, named(problems, 2), figures)
    words = "one BOS" if tokenizer.add_bos else "no BOS, as the model wants it"
    found = f"{len(probes)} prompts: {words}"
    if silent:
        return Check("prompts", None, "; ".join([found, *silent]), figures)
    found += f"; answers end with a stop token of {' and '.join(rule.program for rule in rules)}"
    return Check("prompts", True, "; ".join([found, *notes]), figures)


def answer_ends(model: LoadedModel) -> frozenset[int]:
    """The control tokens that the chat template writes straight behind an answer, by one of which it ends; none where it writes none."""
    pattern = model.tokenizer.control_pattern
    talk = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "MARK"}]
    try:
        text = model.template.render(talk)
    except InputError:
        return frozenset()
    rest, found = text.rpartition("MARK")[2].translate(dict.fromkeys(map(ord, MARKS))), set()
    while pattern and (match := pattern.match(rest.lstrip())):
        found.add(model.tokenizer.control_tokens[match[0].strip()])
        rest = rest.lstrip()[match.end() :]
    return frozenset(found)


def token_names(ids: Iterable[int], tokenizer: Tokenizer) -> str:
    """Their texts, for a person."""
    known = (tokenizer.token_bytes(i).decode("utf-8", "replace") if i < tokenizer.vocab_size else f"token {i}" for i in sorted(ids))
    return named(list(known)) or "no token"
