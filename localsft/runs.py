"""The run folder: what a training run leaves behind, and the only truth about it.

    run.json        resolved config, base-model hash, data fingerprints, versions, ISA, and the result at the end
    metrics.jsonl   one line a step, and one a validation
    adapter/        the best adapter so far (mlx-lm's format)
    checkpoints/    what a continued run needs
    eval/           scored holdouts

Any index over run folders can be rebuilt from them.
"""

from __future__ import annotations

import datetime
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import orjson

from localsft.atomic import write_atomic, write_error
from localsft.errors import InputError, Refused, UsageError

ROOT = Path("runs")


@dataclass(frozen=True, slots=True)
class Run:
    """One run folder."""

    path: Path

    @property
    def name(self) -> str:
        return self.path.name

    @property
    def adapter(self) -> Path:
        return self.path / "adapter"

    @property
    def checkpoints(self) -> Path:
        return self.path / "checkpoints"

    @property
    def eval(self) -> Path:
        return self.path / "eval"

    def write_info(self, info: Mapping[str, Any]) -> None:
        """Replace run.json in one step. Numbers that are not finite become null. Raises ``InputError`` on a full disk."""
        write_atomic(self.path / "run.json", orjson.dumps(dict(info), option=_JSON | orjson.OPT_INDENT_2 | orjson.OPT_APPEND_NEWLINE))

    def info(self) -> dict[str, Any]:
        """run.json. Raises ``InputError`` when it is missing or is not a JSON object."""
        path = self.path / "run.json"
        try:
            info = orjson.loads(path.read_bytes())
        except FileNotFoundError:
            raise InputError(f"{self.path} is not a run folder: it has no run.json") from None
        except (OSError, orjson.JSONDecodeError) as error:
            raise InputError(f"{path}: can't be read: {error}") from None
        if not isinstance(info, dict):
            raise InputError(f"{path}: must be a JSON object")
        return info

    def append_metrics(self, record: Mapping[str, Any]) -> None:
        """Add one line to metrics.jsonl, whole or (after a crash) recognisably torn. Raises ``InputError`` on a full disk."""
        path = self.path / "metrics.jsonl"
        try:
            with open(path, "ab", buffering=0) as file:
                file.write(orjson.dumps(dict(record), option=_JSON | orjson.OPT_APPEND_NEWLINE))
        except OSError as error:
            raise write_error(path, error) from error

    def metrics(self) -> list[dict[str, Any]]:
        """All lines of metrics.jsonl; a last line without an end, torn by a crash, does not count.

        Raises ``InputError`` with the line number for any other line that is not a JSON object.
        """
        path = self.path / "metrics.jsonl"
        if not path.exists():
            return []
        records = []
        for number, line in enumerate(path.read_bytes().split(b"\n")[:-1], start=1):
            try:
                record = orjson.loads(line)
            except orjson.JSONDecodeError as error:
                raise InputError(f"{path}, line {number}: not JSON ({error}); remove the line to go on without it") from None
            if not isinstance(record, dict):
                raise InputError(f"{path}, line {number}: must be a JSON object; remove the line to go on without it")
            records.append(record)
        return records

    def keep_metrics(self, step: int) -> None:
        """Drop the lines of metrics.jsonl that came after ``step``, and a torn one, before a run goes on from there."""
        kept = [record for record in self.metrics() if record.get("step", 0) <= step]
        write_atomic(self.path / "metrics.jsonl", b"".join(orjson.dumps(record, option=orjson.OPT_APPEND_NEWLINE) for record in kept))


def create(out: str | None, data: str, root: Path = ROOT) -> Run:
    """Make a new run folder: ``out``, or ``root/DATE-NAME-N`` with the data's name and the first free number.

    Two processes that start at once get two folders. Raises ``Refused`` when ``out`` exists and is not empty, and
    ``InputError`` when the folder can't be made.
    """
    if out is not None:
        path = Path(out)
        try:
            path.mkdir(parents=True, exist_ok=True)
            if any(path.iterdir()):
                raise Refused(f"{path} (--out) exists already and is not empty; choose another folder, or remove it first")
        except FileExistsError:
            raise Refused(f"{path} (--out) is a file; choose a folder that does not exist yet") from None
        except OSError as error:
            raise write_error(path, error) from error
        return Run(path)
    prefix = f"{datetime.date.today().isoformat()}-{_short_name(data)}"
    try:
        root.mkdir(parents=True, exist_ok=True)
        number = 1
        while True:
            path = root / f"{prefix}-{number}"
            try:
                path.mkdir()
            except FileExistsError:
                number += 1
            else:
                return Run(path)
    except OSError as error:
        raise write_error(root, error) from error


def list_runs(root: Path = ROOT) -> list[Run]:
    """The run folders in ``root``, by name; other folders are passed over."""
    if not root.is_dir():
        return []
    return [Run(path) for path in sorted(root.iterdir(), key=_natural) if (path / "run.json").is_file()]


def open_run(name: str, root: Path = ROOT) -> Run:
    """A run by its folder or, in ``root``, by its name. Raises ``UsageError`` when there is none."""
    for path in (Path(name), root / name):
        if (path / "run.json").is_file():
            return Run(path)
    raise UsageError(f"there is no run '{name}': neither {name}/run.json nor {root / name}/run.json exists")


_JSON = orjson.OPT_SERIALIZE_NUMPY | orjson.OPT_NON_STR_KEYS


def _short_name(data: str) -> str:
    """ "examples/billing-support" or ".../billing-support/train.jsonl" or "billing-support.jsonl" -> "billing-support"."""
    path = Path(data).absolute()
    stem = path.name if path.is_dir() else path.name.partition(".")[0]
    if stem in ("train", "data") and not path.is_dir():
        stem = path.parent.name
    return re.sub(r"[^A-Za-z0-9_]+", "-", stem).strip("-").lower()[:40] or "run"


def _natural(path: Path) -> list[tuple[int, str]]:
    """Sort key: run-2 before run-10."""
    return [(int(part), "") if part.isdigit() else (-1, part) for part in re.split(r"([0-9]+)", path.name)]
