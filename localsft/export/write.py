"""``export``: write, read back, prove; only then does the folder appear."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Literal, get_args

from localsft.atomic import atomic_folder
from localsft.errors import Finding, UsageError
from localsft.export.card import GIT_ATTRIBUTES, usage_of, write_card
from localsft.export.gguf import write_gguf_lora
from localsft.export.mlx import write_mlx
from localsft.export.peft import write_peft
from localsft.export.proof import Check, Proof, write_proof
from localsft.export.source import Source
from localsft.export.verify import check_adapter

AdapterTarget = Literal["mlx", "peft", "gguf-lora"]
ADAPTER_TARGETS: tuple[AdapterTarget, ...] = get_args(AdapterTarget)
WRITERS: dict[AdapterTarget, Callable[[Path, Source], None]] = {"mlx": write_mlx, "peft": write_peft, "gguf-lora": write_gguf_lora}


def export_adapter(
    source: Source,
    target: AdapterTarget,
    out: Path,
    *,
    hub_layout: bool = False,
    runtime_checks: Callable[[Path], list[Check]] | None = None,
) -> Proof:
    """Write the adapter for ``target`` into the new folder ``out`` and prove it; ``runtime_checks`` adds what only a foreign
    runtime can say.

    Raises Finding when the proof does not hold (``out`` then does not exist), Refused when ``out`` exists, UsageError for what the
    target can't express.
    """
    if target not in ADAPTER_TARGETS:
        raise UsageError(f"--to {target}: there is no such target; choose {', '.join(ADAPTER_TARGETS)}")
    with atomic_folder(out) as folder:
        WRITERS[target](folder, source)
        checks = check_adapter(folder, target, source)
        if runtime_checks and all(check.ok is not False for check in checks):
            checks += runtime_checks(folder)
        proof = Proof(target, source.provenance, checks)
        finish(folder, proof, source, hub_layout)
    return proof


def finish(folder: Path, proof: Proof, source: Source, hub_layout: bool, details: Mapping[str, Any] | None = None) -> None:
    """Raise Finding for a proof that does not hold; else write the card and the proof into ``folder``."""
    if not proof.holds:
        raise Finding(
            f"the export --to {proof.target} does not hold, so nothing was written: " + "; ".join(c.detail for c in proof.failures)
        )
    title = source.provenance.run or source.path.name
    write_card(folder, proof.target, title, source.provenance, proof.checks, usage_of(proof.target, source.provenance))
    if hub_layout:
        (folder / ".gitattributes").write_text(GIT_ATTRIBUTES)
    write_proof(folder, proof, {"adapter": str(source.path.resolve()), "probes": source.probes_from, **(details or {})})
