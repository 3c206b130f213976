"""``verify``: everything that was checked when a folder was exported, checked again."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from localsft.errors import InputError
from localsft.export.merge import ADAPTER, MERGE_TARGETS, check_merge
from localsft.export.ollama import check_modelfile
from localsft.export.proof import Check, Proof, check_files, read_proof
from localsft.export.source import Source
from localsft.export.verify import check_adapter
from localsft.export.write import ADAPTER_TARGETS


def verify_folder(folder: Path, source: Source, runtime_checks: Callable[[Path], list[Check]] | None = None) -> Proof:
    """The files against the hashes of ``localsft.json``, and the model in them against what was trained.

    Raises InputError where the folder has no proof, or one of an unknown target.
    """
    document = read_proof(folder)
    target, kind = str(document.get("target")), str(document.get("type", ""))
    checks = [check_files(folder, document["files"])]
    if target in ADAPTER_TARGETS:
        checks += check_adapter(folder, target, source)
    elif target == "ollama" and kind == ADAPTER:
        checks += [*check_adapter(folder, "gguf-lora", source), *check_modelfile(folder, source.model)]
    elif target in MERGE_TARGETS:
        checks += check_merge(folder, target, source, kind)
    else:
        raise InputError(f"{folder}: its proof is for the unknown target '{target}'; export again with this version")
    if runtime_checks:
        checks += runtime_checks(folder)
    return Proof(target, source.provenance, checks)
