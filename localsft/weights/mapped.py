"""Read-only memory maps of weight files."""

from __future__ import annotations

import contextlib
import mmap
import stat
from pathlib import Path

from localsft.errors import InputError


def map_file(path: Path) -> mmap.mmap | None:
    """Map a regular file read-only; None if it is empty, which mmap refuses.

    Raises InputError where ``path`` is missing, unreadable or not a regular file (opening a pipe would wait forever).
    """
    try:
        status = path.stat()
        if not stat.S_ISREG(status.st_mode):
            raise InputError(f"{path} is not a regular file; give the path of a weights file")
        with path.open("rb") as file:
            return mmap.mmap(file.fileno(), status.st_size, access=mmap.ACCESS_READ) if status.st_size else None
    except FileNotFoundError as error:
        raise InputError(f"{path} does not exist; check the path") from error
    except (OSError, ValueError) as error:  # ValueError: the file shrank since, or the path holds a NUL
        raise InputError(f"{path} can't be read ({error}); check the path and its permissions") from error


def release_pages(mapped: mmap.mmap) -> None:
    """Give back the memory of pages that were read and copied from; reading them again maps them again.

    All of them: with a page that is read the system maps those around it too, so that the edges of tensors that were given
    back one by one would add up to a fifth of a small file.
    """
    if hasattr(mmap, "MADV_DONTNEED"):  # not on Windows, which trims mapped pages by itself
        mapped.madvise(mmap.MADV_DONTNEED)


def close_map(mapped: mmap.mmap | None) -> None:
    """Close a map, or leave that to the last numpy view of it where there still is one."""
    if mapped is not None:
        with contextlib.suppress(BufferError):
            mapped.close()
