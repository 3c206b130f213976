"""Where the files are that ship with localsft and are not code: model cards and example datasets."""

from __future__ import annotations

from pathlib import Path


def shared_folder(name: str) -> Path:
    """The folder ``models`` or ``examples``: inside an installed package, or at the top of a checkout.

    The package's own copy comes first: beside an installed package, a folder of that name would be somebody else's.
    """
    package = Path(__file__).resolve().parent
    installed = package / "share" / name
    return installed if installed.is_dir() else package.parent / name
