"""The proof in the program that will serve the model, where that is installed: mlx-lm, transformers with PEFT, llama.cpp.

Each runs in a process of its own on token ids of the probes and returns logits after each prompt and 50 greedy tokens. What has to
agree: the change that the adapter makes to the logits (kernels that round differently cancel in it), and the text; where a
text differs, both tokens must have been so close that the measured rounding explains it.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any, cast

import numpy as np
import orjson
from numpy.typing import NDArray

from localsft.batch import Example, Float32
from localsft.config import LoraConfig, OptimConfig
from localsft.data.pack import pack_step
from localsft.engine import open_engine
from localsft.engine.base import Engine, Sampling
from localsft.errors import LocalsftError
from localsft.export.merged import DENSE, write_merged
from localsft.export.proof import Check
from localsft.export.source import Source, general_probes
from localsft.export.verify import WithLogits, open_source_engine
from localsft.session import LoadedModel
from localsft.weights.load import load_base

PROMPTS = 10
PROMPT_TOKENS = 2000  # of the holdout's prompts together; general prompts take the places that are left
TOKENS = 50
EFFECT_BOUNDS = (0.9, 1.1)
LOGITS_BOUND = 0.2  # of the logits' spread
_SECONDS = 3600


@dataclass(frozen=True, slots=True)
class Runtime:
    """``start``: the command, to which the request's file is added. ``modules``: where node finds its packages."""

    name: str
    start: tuple[str, ...]
    modules: str = ""


def llama_runtime() -> Runtime | None:
    """llama.cpp through node-llama-cpp, whose node_modules lie in LOCALSFT_NODE_LLAMA_CPP or in the current folder."""
    node = shutil.which("node")
    for folder in (os.environ.get("LOCALSFT_NODE_LLAMA_CPP", ""), "."):
        if node and folder and (Path(folder) / "node_modules/node-llama-cpp/package.json").is_file():
            return Runtime("llama.cpp", (node, str(Path(__file__).with_name("runtime_llama.mjs"))), folder)
    return None


def mlx_runtime() -> Runtime | None:
    """mlx-lm of this environment."""
    if find_spec("mlx") is None or find_spec("mlx_lm") is None:
        return None
    return Runtime("mlx-lm", (sys.executable, "-m", "localsft.engine.mlx.mlx_lm_run"))


def peft_runtime(adapter: bool = True) -> Runtime | None:
    """transformers and PEFT of this environment, or of the Python that LOCALSFT_PEFT_PYTHON names."""
    script = str(Path(__file__).with_name("runtime_peft.py"))
    if python := os.environ.get("LOCALSFT_PEFT_PYTHON"):
        return Runtime("transformers", (python, "-I", script))  # -I: else peft would be the module of that name beside the script
    needed = ("torch", "transformers", *(("peft",) if adapter else ()))
    return None if any(find_spec(name) is None for name in needed) else Runtime("transformers", (sys.executable, "-I", script))


@dataclass(frozen=True, slots=True)
class Subject:
    """What is run: the model, an adapter on it or '', and our engine in the same state."""

    model: Path
    adapter: str
    engine: Engine
    loaded: LoadedModel


def run_runtime(runtime: Runtime, subject: Subject, prompts: Sequence[Sequence[int]], folder: Path) -> dict[str, Any]:
    """The runtime's document, "logits" and "base_logits" (None without an adapter) read into it as (prompts, V).

    Raises LocalsftError with the last line that the process wrote where it fails.
    """
    talks = [[{"role": m.role, "content": m.content} for m in probe.messages] for probe in general_probes(subject.loaded)]
    template = subject.loaded.template
    request: dict[str, Any] = {
        "model": str(subject.model.resolve()),
        "adapter": subject.adapter,
        "lora": subject.adapter or None,
        "modules": runtime.modules,
        "prompts": prompts,
        "max_tokens": TOKENS,
        "stop_ids": sorted(subject.loaded.tokenizer.stop_ids),
        "conversations": talks,
        "texts": [template.render(talk, add_generation_prompt=True) for talk in talks],
        "context": max(map(len, prompts)) + TOKENS + 8,
        "threads": max(1, subject.engine.info.threads),
        "logits": str(folder / "logits.f32"),
        "base_logits": str(folder / "base.f32") if subject.adapter else None,
        "result": str(folder / "result.json"),
    }
    (folder / "request.json").write_bytes(orjson.dumps(request, option=orjson.OPT_SERIALIZE_NUMPY))
    try:
        done = subprocess.run([*runtime.start, str(folder / "request.json")], capture_output=True, text=True, timeout=_SECONDS, check=False)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise LocalsftError(f"{runtime.name} could not be run: {error}") from None
    if done.returncode:
        lines = [line for line in done.stderr.splitlines() if line.strip()]
        raise LocalsftError(f"{runtime.name} failed: {next(iter(reversed(lines)), f'exit code {done.returncode}')[:300]}")
    result = folder / "result.json"  # Node's script says it on stdout instead
    document: dict[str, Any] = orjson.loads(result.read_bytes() if result.exists() else done.stdout[done.stdout.index("{") :])
    for key in ("logits", "base_logits"):
        document[key] = np.fromfile(request[key], np.float32).reshape(len(prompts), -1) if request[key] else None
    return document


def check_runtime(runtime: Runtime, subject: Subject, prompts: Sequence[list[int]], base: Float32 | None) -> list[Check]:
    """Effect, text and prompts of one runtime beside our engine. ``base``: our logits after the prompts without the adapter."""
    with tempfile.TemporaryDirectory() as folder:
        try:
            document = run_runtime(runtime, subject, prompts, Path(folder))
        except LocalsftError as error:
            return [Check(runtime.name, False, str(error))]
    name = f"{runtime.name} {document['version']}".replace("transformers transformers", "transformers")
    ours, theirs = last_logits(subject.engine, prompts), document["logits"]
    theirs = theirs[:, : ours.shape[1]]  # some runtimes pad the vocabulary
    checks = []
    if base is not None and document["base_logits"] is not None:
        checks.append(compare_effects(name, ours - base, theirs - document["base_logits"][:, : ours.shape[1]]))
    checks.append(compare_logits(name, ours, theirs))
    checks.append(compare_texts(name, subject.engine, prompts, document["generated"], ours, theirs, subject.loaded))
    return [*checks, compare_prompts(name, document, subject.loaded)]


def runtime_prompts(source: Source) -> list[list[int]]:
    """PROMPTS prompts: those of the holdout, up to PROMPT_TOKENS, and general ones."""
    prompts: list[list[int]] = []
    for probe in source.probes:
        if len(prompts) < PROMPTS and sum(map(len, prompts)) + probe.prompt <= PROMPT_TOKENS:
            prompts.append(probe.prompt_ids)
    general = [probe.prompt_ids for probe in general_probes(source.model)]
    return [*prompts, *(ids for ids in general if ids not in prompts)][:PROMPTS]


def _centred(logits: Float32) -> NDArray[np.float64]:
    values = logits.astype(np.float64)
    values -= values.mean(1, keepdims=True)
    return values


def compare_effects(name: str, ours: Float32, theirs: Float32) -> Check:
    """How much of the adapter's change of the logits the runtime makes: ⟨theirs, ours⟩ / ‖ours‖², each row less its mean.

    What moves all the logits of a prompt alike changes no probability, but can be most of an adapter's change and of its rounding.
    """
    a, b = _centred(ours), _centred(theirs)
    share = float(np.vdot(a, b) / np.vdot(a, a)) if a.any() else 0.0
    apart = float(np.linalg.norm(b - a) / np.linalg.norm(a)) if a.any() else np.inf
    low, high = EFFECT_BOUNDS
    detail = f"the adapter moves the logits {100 * share:.1f} % as far as here, along the same way (rounding aside: {100 * apart:.1f} %)"
    return Check(f"{name}: effect", low <= share <= high, detail, {"share": share, "apart": apart, "bounds": [low, high]})


def compare_logits(name: str, ours: Float32, theirs: Float32) -> Check:
    """How far the runtime's logits after the prompts are from ours, as a share of their spread: ‖theirs - ours‖ / ‖ours‖, each less its
    mean. Rounding is part of it, so it can't be explained away by a rounding that is measured on the same logits."""
    a, b = _centred(ours), _centred(theirs)
    apart = float(np.linalg.norm(b - a) / np.linalg.norm(a)) if a.any() else np.inf
    detail = f"the logits after {len(ours)} prompts are {100 * apart:.1f} % of their spread apart (at most {100 * LOGITS_BOUND:.0f} %)"
    return Check(f"{name}: logits", apart <= LOGITS_BOUND, detail, {"apart": apart, "bound": LOGITS_BOUND})


def compare_texts(
    name: str, engine: Engine, prompts: Sequence[list[int]], theirs: Sequence[list[int]], ours: Float32, found: Float32, loaded: LoadedModel
) -> Check:
    """The same greedy tokens, or at the first one that differs a margin that rounding explains.

    Rounding is measured: the largest difference between the runtime's logits and ours, each less its mean, among the ten likeliest tokens
    after the prompts. Two logits may each be off by it.
    """
    stops = tuple(sorted(loaded.tokenizer.stop_ids))
    mine: list[list[int]] = [[] for _ in prompts]
    for token in engine.generate([np.array(prompt, np.int32) for prompt in prompts], Sampling(TOKENS, stop_ids=stops)):
        mine[token.prompt].append(token.token_id)
    top = np.argsort(ours, axis=1)[:, -10:]
    centred = (ours - ours.mean(1, keepdims=True)) - (found - found.mean(1, keepdims=True))
    rounding = float(np.abs(np.take_along_axis(centred, top, axis=1)).max())
    same = 0
    explained: list[str] = []
    wrong: list[str] = []
    for number, (prompt, a, b) in enumerate(zip(prompts, mine, theirs, strict=True), 1):
        place = next((i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b)))
        if a == b:
            same += 1
        elif place >= min(len(a), len(b)):
            wrong.append(f"prompt {number} ends after {len(b)} tokens there, {len(a)} here")
        else:
            logits = last_logits(engine, [[*prompt, *a[:place]]])[0]
            margin = float(logits[a[place]] - logits[b[place]])
            one, other = (loaded.tokenizer.decode([ids[place]]) for ids in (a, b))
            where = f"prompt {number}, token {place + 1}: {one!r} before {other!r}"
            (explained if margin <= 2 * rounding else wrong).append(f"{where} by {margin:.3f}")
    figures = {"same": same, "of": len(prompts), "tokens": TOKENS, "rounding": rounding, "explained": explained, "wrong": wrong}
    words = f"{same} of {len(prompts)} greedy texts of {TOKENS} tokens are the same"
    if explained:
        words += f"; {len(explained)} part where two logits are closer than rounding (2 x {rounding:.3f}), first {explained[0]}"
    if wrong:
        words += f"; {len(wrong)} differ beyond rounding: {wrong[0]}"
    return Check(f"{name}: text", not wrong, words, figures)


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


def adapter_runtime_checks(target: str, source: Source, opened: Engine | None = None) -> Callable[[Path], list[Check]]:
    """What the runtime of an adapter target says about a folder; a check without an answer where it is not installed."""

    def checks(folder: Path) -> list[Check]:
        runtime = {"mlx": mlx_runtime, "peft": peft_runtime, "gguf-lora": llama_runtime}[target]()
        if runtime is None:
            return [Check("runtime", None, f"the runtime of --to {target} is not installed here")]
        base = source.model.base
        if target == "gguf-lora" and not base.metadata:
            return [Check("runtime", None, "the base is a folder, which llama.cpp does not load")]
        try:
            engine = opened or open_source_engine(source)
        except LocalsftError as error:
            return [Check("runtime", None, f"no engine here runs this base to compare {runtime.name} with: {error}")]
        prompts = runtime_prompts(source)
        engine.load_adapter({name: np.zeros_like(values) for name, values in source.adapter.tensors.items()})
        plain = last_logits(engine, prompts)
        engine.load_adapter(source.adapter.tensors)
        with tempfile.TemporaryDirectory() as temporary:
            model, adapter = base.path, str(folder.resolve())
            if target == "gguf-lora":
                adapter = str((folder / "adapter.gguf").resolve())
            elif base.metadata or (target == "peft" and base.config.quantization):
                # The same weights in the form that the runtime loads: quantized as they are for MLX, float32 for torch.
                model = Path(temporary)
                write_merged(model, source.model, {}, "base" if target == "mlx" else "f32", {})
            return check_runtime(runtime, Subject(model, adapter, engine, source.model), prompts, plain)

    return checks


def merged_runtime_checks(target: str, source: Source, kind: str) -> Callable[[Path], list[Check]]:
    """What the runtimes of a merged model say about a folder: llama.cpp about a GGUF; mlx-lm, and transformers where it is dense."""

    def checks(folder: Path) -> list[Check]:
        path = folder if target == "merged" else folder / "model.gguf"
        found: list[Runtime | None] = [llama_runtime()]
        if target == "merged":
            found = [mlx_runtime(), peft_runtime(adapter=False) if kind in DENSE else None]
        runtimes = [runtime for runtime in found if runtime is not None]
        if not runtimes:
            return [Check("runtime", None, f"no runtime of --to {target} is installed here")]
        try:
            engine = open_merged(path, source)
        except LocalsftError as error:
            return [Check("runtime", None, f"no engine here runs the merged model: {error}")]
        prompts = runtime_prompts(source)
        subject = Subject(path, "", engine, source.model)
        return [check for runtime in runtimes for check in check_runtime(runtime, subject, prompts, None)]

    return checks


def open_merged(path: Path, source: Source) -> Engine:
    """The merged model in an engine that runs its base, with an adapter that changes nothing."""
    name = open_source_engine(source).info.name
    return open_engine(name, load_base(path), LoraConfig(rank=1, layers=1), OptimConfig())


def runtime_checks_of(target: str, source: Source, kind: str = "") -> Callable[[Path], list[Check]] | None:
    """The runtime's checks for any target; None for Ollama's adapter form, which only Ollama loads as it stands."""
    if target in ("mlx", "peft", "gguf-lora"):
        return adapter_runtime_checks(target, source)
    return None if kind == "adapter" else merged_runtime_checks(target, source, kind)
