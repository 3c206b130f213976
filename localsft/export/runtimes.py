"""The proof in the program that will serve the model, where that is installed: mlx-lm, transformers with PEFT, llama.cpp.

Each runs in a process of its own on token ids of the probes and returns logits after each prompt and 50 greedy tokens. What has to
agree: the change that the adapter makes to the logits (kernels that round differently cancel in it), and the text; where a
text differs, both tokens must have been so close that the measured rounding explains it.
"""

from __future__ import annotations

import os
import shutil
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import orjson

from localsft.batch import Float32
from localsft.config import LoraConfig, OptimConfig
from localsft.engine import open_engine
from localsft.engine.base import Engine
from localsft.errors import LocalsftError
from localsft.export.merged import DENSE, write_merged
from localsft.export.ollama_proof import ABSENT_OLLAMA, OLLAMA, ollama_checks, ollama_program
from localsft.export.proof import Check
from localsft.export.runtime_compare import (
    TOKENS,
    Answers,
    answers,
    compare_effects,
    compare_logits,
    compare_prompts,
    compare_stops,
    compare_texts,
    last_logits,
)
from localsft.export.runtime_process import TimeBound, TimedOut, run_program, size_of
from localsft.export.source import Source, general_probes
from localsft.export.stop_rules import llama_cpp_stop_ids, mlx_lm_stop_ids, transformers_stop_ids
from localsft.export.verify import answer_ends, open_source_engine
from localsft.session import LoadedModel
from localsft.weights.load import load_base

PROMPTS = 10
PROMPT_TOKENS = 2000  # of the holdout's prompts together; general prompts take the places that are left
MLX, PEFT, NODE, SERVER = "mlx-lm", "transformers", "node-llama-cpp", "llama-server"


@dataclass(frozen=True, slots=True)
class Runtime:
    """``start``: the command, to which the request's file is added, and then ``program``. ``modules``: where node finds its packages."""

    name: str
    start: tuple[str, ...]
    modules: str = ""
    program: tuple[str, ...] = ()


def llama_runtimes() -> list[Runtime]:
    """llama.cpp by its llama-server, on PATH or beside a llama-cli on PATH; and through node-llama-cpp, whose node_modules lie in
    LOCALSFT_NODE_LLAMA_CPP or in the current folder."""
    found = []
    if server := _llama_server():
        script = str(Path(__file__).with_name("runtime_llama_server.py"))
        found.append(Runtime(SERVER, (sys.executable, "-I", script), program=(server,)))
    node = shutil.which("node")
    for folder in (os.environ.get("LOCALSFT_NODE_LLAMA_CPP", ""), "."):
        if node and folder and (Path(folder) / "node_modules/node-llama-cpp/package.json").is_file():
            return [*found, Runtime(NODE, (node, str(Path(__file__).with_name("runtime_llama.mjs"))), folder)]
    return found


def _llama_server() -> str | None:
    if server := shutil.which("llama-server"):
        return server
    cli = shutil.which("llama-cli")
    return shutil.which("llama-server", path=str(Path(cli).resolve().parent)) if cli else None


def absent_llama() -> str:
    """Why llama.cpp can't be asked, and how it could."""
    if shutil.which("llama-cli"):
        return "llama-cli is on PATH but no llama-server, which says token ids and probabilities; put that of the same build beside it"
    return "llama.cpp is not installed here: neither llama-server on PATH nor node-llama-cpp (npm install node-llama-cpp)"


def mlx_runtime() -> Runtime | None:
    """mlx-lm of this environment."""
    if find_spec("mlx") is None or find_spec("mlx_lm") is None:
        return None
    return Runtime(MLX, (sys.executable, "-m", "localsft.engine.mlx.mlx_lm_run"))


def peft_runtime(adapter: bool = True) -> Runtime | None:
    """transformers and PEFT of this environment, or of the Python that LOCALSFT_PEFT_PYTHON names."""
    script = str(Path(__file__).with_name("runtime_peft.py"))
    if python := os.environ.get("LOCALSFT_PEFT_PYTHON"):
        return Runtime(PEFT, (python, "-I", script))  # -I: else peft would be the module of that name beside the script
    needed = ("torch", "transformers", *(("peft",) if adapter else ()))
    return None if any(find_spec(name) is None for name in needed) else Runtime(PEFT, (sys.executable, "-I", script))


@dataclass(frozen=True, slots=True)
class Subject:
    """What is run: the model, an adapter on it or '', and our engine in the same state."""

    model: Path
    adapter: str
    engine: Engine
    loaded: LoadedModel


def run_runtime(runtime: Runtime, subject: Subject, prompts: Sequence[Sequence[int]], folder: Path, own: float = 0.0) -> dict[str, Any]:
    """The runtime's document, "logits" and "base_logits" (None without an adapter) read into it as (prompts, V). ``own``: the seconds
    that our engine took for the same.

    Raises LocalsftError with the last line that the process wrote where it fails, TimedOut where it takes too long.
    """
    talks = [[{"role": m.role, "content": m.content} for m in probe.messages] for probe in general_probes(subject.loaded)]
    tokenizer, template = subject.loaded.tokenizer, subject.loaded.template
    request: dict[str, Any] = {
        "model": str(subject.model.resolve()),
        "adapter": subject.adapter,
        "lora": subject.adapter or None,
        "modules": runtime.modules,
        "prompts": prompts,
        "max_tokens": TOKENS,
        "candidates": sorted(tokenizer.stop_ids | expected_stops(runtime, subject) | answer_ends(subject.loaded)),
        "plain_token": tokenizer.encode("a")[0],
        "conversations": talks,
        "texts": [template.render(talk, add_generation_prompt=True) for talk in talks],
        "context": max(map(len, prompts)) + TOKENS + 8,
        "threads": max(1, subject.engine.info.threads),
        "logits": str(folder / "logits.f32"),
        "base_logits": str(folder / "base.f32") if subject.adapter else None,
        "result": str(folder / "result.json"),
    }
    (folder / "request.json").write_bytes(orjson.dumps(request, option=orjson.OPT_SERIALIZE_NUMPY))
    bound = TimeBound(size_of(subject.model), own * (2 if subject.adapter else 1))
    out = run_program(runtime.name, [*runtime.start, str(folder / "request.json"), *runtime.program], bound)
    result = folder / "result.json"  # Node's script says it on stdout instead
    document: dict[str, Any] = orjson.loads(result.read_bytes() if result.exists() else out[out.index("{") :])
    for key in ("logits", "base_logits"):
        document[key] = np.fromfile(request[key], np.float32).reshape(len(prompts), -1) if request[key] else None
    return document


def expected_stops(runtime: Runtime, subject: Subject) -> frozenset[int]:
    """Where the runtime should stop, by our reading of the files that it loads."""
    if runtime.name in (NODE, SERVER):
        return llama_cpp_stop_ids(load_base(subject.model).metadata)
    return (mlx_lm_stop_ids if runtime.name == MLX else transformers_stop_ids)(subject.model)


def check_runtime(runtime: Runtime, subject: Subject, prompts: Sequence[list[int]], own: Answers, base: Float32 | None) -> list[Check]:
    """Effect, logits, text, stop tokens and prompts of one runtime beside our engine. ``own``: our engine's answers to ``prompts``;
    ``base``: its logits after them without the adapter."""
    with tempfile.TemporaryDirectory() as folder:
        try:
            document = run_runtime(runtime, subject, prompts, Path(folder), own.seconds)
        except TimedOut as error:
            return [Check(runtime.name, None, str(error))]
        except LocalsftError as error:
            return [Check(runtime.name, False, str(error))]
    name = f"{runtime.name} {document['version']}".replace("transformers transformers", "transformers")
    ours, theirs, loaded = own.logits, document["logits"], subject.loaded
    theirs = theirs[:, : ours.shape[1]]  # some runtimes pad the vocabulary
    stops = document["stop_ids"]
    checks = []
    if base is not None and document["base_logits"] is not None:
        checks.append(compare_effects(name, ours - base, theirs - document["base_logits"][:, : ours.shape[1]]))
    checks.append(compare_logits(name, ours, theirs))
    checks.append(compare_texts(name, subject.engine, prompts, own, document["generated"], theirs, stops, loaded.tokenizer))
    if stops or expected_stops(runtime, subject):
        checks.append(compare_stops(name, stops, expected_stops(runtime, subject), answer_ends(loaded), loaded.tokenizer))
    else:
        checks.append(Check(f"{name}: stop", None, "the base's files name no token that ends an answer"))
    return [*checks, compare_prompts(name, document, loaded)]


def installed(target: str, kind: str = "") -> list[Runtime]:
    """The runtimes of a target that are here; ``kind``: the type of merged weights."""
    found: list[Runtime | None]
    if target == "mlx":
        found = [mlx_runtime()]
    elif target == "peft":
        found = [peft_runtime()]
    elif target == "merged":
        found = [mlx_runtime(), peft_runtime(adapter=False) if kind in DENSE else None]
    else:
        return llama_runtimes()
    return [runtime for runtime in found if runtime is not None]


_ABSENT_MLX = "mlx-lm is not installed here: pip install 'localsft[mlx]'"
_ABSENT_PEFT = (
    "transformers with torch and peft is not installed here: pip install torch transformers peft, here or where LOCALSFT_PEFT_PYTHON points"
)
ABSENT: Mapping[str, Callable[[], str]] = {
    "mlx": lambda: _ABSENT_MLX,
    "peft": lambda: _ABSENT_PEFT,
    "merged": lambda: f"{_ABSENT_MLX}; {_ABSENT_PEFT}",
    "gguf-lora": absent_llama,
    "merged-gguf": absent_llama,
    "ollama": absent_llama,
}


def runtime_prompts(source: Source) -> list[list[int]]:
    """PROMPTS prompts: those of the holdout, up to PROMPT_TOKENS, and general ones."""
    prompts: list[list[int]] = []
    for probe in source.probes:
        if len(prompts) < PROMPTS and sum(map(len, prompts)) + probe.prompt <= PROMPT_TOKENS:
            prompts.append(probe.prompt_ids)
    general = [probe.prompt_ids for probe in general_probes(source.model)]
    return [*prompts, *(ids for ids in general if ids not in prompts)][:PROMPTS]


def adapter_runtime_checks(target: str, source: Source, opened: Engine | None = None) -> Callable[[Path], list[Check]]:
    """What the runtime of an adapter target says about a folder; a check without an answer where it is not installed."""

    def checks(folder: Path) -> list[Check]:
        runtimes = installed(target)
        if not runtimes:
            return [Check("runtime", None, ABSENT[target]())]
        base = source.model.base
        if target == "gguf-lora" and not base.metadata:
            return [Check("runtime", None, "the base is a folder, which llama.cpp does not load")]
        try:
            engine = opened or open_source_engine(source)
        except LocalsftError as error:
            return [Check("runtime", None, f"no engine here runs this base to compare {runtimes[0].name} with: {error}")]
        prompts = runtime_prompts(source)
        engine.load_adapter(engine.unchanging())
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
            subject = Subject(model, adapter, engine, source.model)
            own = answers(engine, prompts)
            return [check for runtime in runtimes for check in check_runtime(runtime, subject, prompts, own, plain)]

    return checks


def merged_runtime_checks(target: str, source: Source, kind: str) -> Callable[[Path], list[Check]]:
    """What the runtimes of a merged model say about a folder: llama.cpp about a GGUF; mlx-lm, and transformers where it is dense."""

    def checks(folder: Path) -> list[Check]:
        path = folder if target == "merged" else folder / "model.gguf"
        runtimes = installed(target, kind)
        absent = [] if runtimes else [Check("runtime", None, ABSENT[target]())]
        ollama = ollama_program() if target == "ollama" else None
        if target == "ollama" and ollama is None:
            absent.append(Check(OLLAMA, None, ABSENT_OLLAMA))
        if not runtimes and ollama is None:
            return absent
        try:
            engine = open_merged(path, source)
        except LocalsftError as error:
            return [Check("runtime", None, f"no engine here runs the merged model: {error}")]
        prompts = runtime_prompts(source)
        subject = Subject(path, "", engine, source.model)
        own = answers(engine, prompts)
        found = [check for runtime in runtimes for check in check_runtime(runtime, subject, prompts, own, None)]
        if ollama is not None:
            found += ollama_checks(ollama, folder, path, source.model, engine, prompts, own)
        return [*absent, *found]

    return checks


def ollama_adapter_checks(source: Source) -> Callable[[Path], list[Check]]:
    """What Ollama says about its adapter form, which no other program loads as it stands."""

    def checks(folder: Path) -> list[Check]:
        ollama = ollama_program()
        if ollama is None:
            return [Check(OLLAMA, None, ABSENT_OLLAMA)]
        try:
            engine = open_source_engine(source)
        except LocalsftError as error:
            return [Check("runtime", None, f"no engine here runs this base to compare Ollama with: {error}")]
        engine.load_adapter(source.adapter.tensors)
        prompts = runtime_prompts(source)
        return ollama_checks(ollama, folder, source.model.base.path, source.model, engine, prompts, answers(engine, prompts))

    return checks


def open_merged(path: Path, source: Source) -> Engine:
    """The merged model in an engine that runs its base, with an adapter that changes nothing."""
    name = open_source_engine(source).info.name
    return open_engine(name, load_base(path), LoraConfig(rank=1, layers=1), OptimConfig(), exact=True)


def runtime_checks_of(target: str, source: Source, kind: str = "") -> Callable[[Path], list[Check]]:
    """The runtime's checks for any target."""
    if target in ("mlx", "peft", "gguf-lora"):
        return adapter_runtime_checks(target, source)
    return ollama_adapter_checks(source) if kind == "adapter" else merged_runtime_checks(target, source, kind)
