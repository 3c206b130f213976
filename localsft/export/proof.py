"""What was checked about an export, what came out, and the file in which it travels with the export."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import orjson

from localsft.atomic import write_atomic
from localsft.errors import InputError
from localsft.export.source import Provenance
from localsft.weights.load import sha256_file

PROOF_FILE = "localsft.json"


@dataclass(frozen=True, slots=True)
class Check:
    """One thing that was looked at. ``ok`` None: it could not be looked at here, ``detail`` says why."""

    name: str
    ok: bool | None
    detail: str
    figures: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Proof:
    """Everything that was checked about one export."""

    target: str
    provenance: Provenance
    checks: Sequence[Check]

    @property
    def holds(self) -> bool:
        """Nothing failed. A check that could not be made here is no failure; the update itself always can."""
        return all(check.ok is not False for check in self.checks)

    @property
    def failures(self) -> list[Check]:
        return [check for check in self.checks if check.ok is False]


def write_proof(folder: Path, proof: Proof, details: Mapping[str, Any]) -> None:
    """``localsft.json``: provenance, checks, and the SHA-256 of every other file in the folder."""
    files = {str(file.relative_to(folder)): sha256_file(file) for file in sorted(folder.rglob("*")) if file.is_file()}
    document = {
        "target": proof.target,
        "provenance": asdict(proof.provenance),
        **details,
        "holds": proof.holds,
        "checks": [asdict(check) for check in proof.checks],
        "files": {name: digest for name, digest in files.items() if name != PROOF_FILE},
    }
    options = orjson.OPT_INDENT_2 | orjson.OPT_APPEND_NEWLINE | orjson.OPT_SERIALIZE_NUMPY
    write_atomic(folder / PROOF_FILE, orjson.dumps(document, option=options))


def read_proof(folder: Path) -> dict[str, Any]:
    """The document of ``write_proof``. Raises InputError where it is missing or is not one."""
    path = folder / PROOF_FILE
    try:
        document = orjson.loads(path.read_bytes())
    except FileNotFoundError:
        raise InputError(f"{folder} has no {PROOF_FILE}, so localsft did not export it; localsft import reads adapters of others") from None
    except (OSError, orjson.JSONDecodeError) as error:
        raise InputError(f"{path}: can't be read ({error}); export again") from None
    if not isinstance(document, dict) or not isinstance(document.get("files"), dict) or not isinstance(document.get("provenance"), dict):
        raise InputError(f"{path}: is not the proof of an export; export again")
    return document


def check_files(folder: Path, files: Mapping[str, str]) -> Check:
    """Whether every file still has the hash that the proof names."""
    wrong = []
    for name, digest in files.items():
        path = folder / name
        if ".." in Path(name).parts or Path(name).is_absolute():
            wrong.append(f"{name} lies outside of the folder")
        elif not path.is_file():
            wrong.append(f"{name} is missing")
        elif sha256_file(path) != digest:
            wrong.append(f"{name} has changed")
    detail = "; ".join(wrong) if wrong else f"{len(files)} files are as they were written"
    return Check("files", not wrong, detail)
