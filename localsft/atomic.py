"""Files and folders that are either whole or absent: a temporary name beside the target, fsync, rename, fsync of the folder.

A reader, or a run that is continued after a power cut, never sees half of anything. What a killed process leaves behind has
a name that starts with ``.tmp-``; ``leftovers`` lists it.
"""

from __future__ import annotations

import errno
import os
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from localsft.errors import InputError, LocalsftError, Refused

PREFIX = ".tmp-"
FULL_DISK = (errno.ENOSPC, errno.EDQUOT)


def write_atomic(path: Path, content: bytes) -> None:
    """Write ``content`` to ``path``, replacing an older file in one step.

    Raises ``InputError`` that names the path and the remedy when the disk is full or the folder can't be written; an older
    file is then as it was.
    """
    with atomic_file(path) as file:
        file.write(content)


@contextmanager
def atomic_file(path: Path) -> Iterator[BinaryIO]:
    """Yield a binary file to fill piece by piece; when the block ends without an error it becomes ``path``, else it is removed.

    Raises ``InputError`` as ``write_atomic`` does.
    """
    temporary = _beside(path)
    try:
        with open(temporary, "xb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
        sync_folder(path.parent)
    except OSError as error:
        raise write_error(path, error) from error
    finally:
        temporary.unlink(missing_ok=True)


@contextmanager
def atomic_folder(path: Path, replace: bool = False) -> Iterator[Path]:
    """Yield a new folder to fill; when the block ends without an error it becomes ``path``, else it is removed.

    Parents are created. An existing ``path`` is ``Refused`` unless ``replace``: then the two are exchanged at the end, and
    the old folder keeps existing under a ``.tmp-`` name until the new one is in place. Raises ``InputError`` as
    ``write_atomic`` does, for the block's own writes too.
    """
    if path.exists() and not replace:
        raise Refused(f"{path} exists already; choose another folder, or remove it first")
    temporary = _beside(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary.mkdir()
        yield temporary
        _sync_tree(temporary)
        _move_into_place(temporary, path)
        sync_folder(path.parent)
    except OSError as error:
        inside = error.filename is not None and Path(os.fsdecode(error.filename)).is_relative_to(path.parent)
        if inside or error.errno in FULL_DISK:
            raise write_error(path, error) from error
        raise  # the block failed to read something else: not ours to explain
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def write_error(path: Path, error: OSError) -> LocalsftError:
    """The sentence for a failed write: a full disk, no permission, or what the system says."""
    if error.errno in FULL_DISK:
        return InputError(f"{path}: the disk is full, so it was not written; free some space, or write to another disk")
    return InputError(f"{path}: can't be written ({os.strerror(error.errno or 0)}); choose a place that you may write to")


def sync_folder(folder: Path) -> None:
    """Make renames in ``folder`` last through a power cut."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def leftovers(folder: Path) -> list[Path]:
    """What killed processes left half-written in ``folder``."""
    return sorted(folder.glob(f"{PREFIX}*"))


def _beside(path: Path) -> Path:
    return path.parent / f"{PREFIX}{path.name}-{os.getpid()}-{secrets.token_hex(4)}"


def _move_into_place(temporary: Path, path: Path) -> None:
    if not path.exists():
        os.rename(temporary, path)
        return
    old = _beside(path)
    os.rename(path, old)
    try:
        os.rename(temporary, path)
    except OSError:
        os.rename(old, path)
        raise
    shutil.rmtree(old)


def _sync_tree(folder: Path) -> None:
    for parent, _, names in os.walk(folder):
        for name in names:
            handle = os.open(os.path.join(parent, name), os.O_RDONLY)
            try:
                os.fsync(handle)
            finally:
                os.close(handle)
        sync_folder(Path(parent))
