from __future__ import annotations

import errno
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from localsft.atomic import atomic_folder, leftovers, write_atomic
from localsft.errors import InputError, Refused


def failing(code: int) -> Callable[..., Any]:
    def fail(*_: object) -> None:
        raise OSError(code, os.strerror(code))

    return fail


def test_writes_and_replaces(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    write_atomic(path, b"one")
    write_atomic(path, b"two")
    assert path.read_bytes() == b"two"
    assert leftovers(tmp_path) == []
    assert path.stat().st_mode & 0o777 == 0o666 & ~_umask()


@pytest.mark.parametrize("call", ["fsync", "replace"])
def test_full_disk_keeps_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: str) -> None:
    path = tmp_path / "a.json"
    write_atomic(path, b"old")
    monkeypatch.setattr(os, call, failing(errno.ENOSPC))
    with pytest.raises(InputError, match=rf"^{path}: the disk is full, so it was not written; free some space"):
        write_atomic(path, b"new")
    monkeypatch.undo()
    assert path.read_bytes() == b"old"
    assert leftovers(tmp_path) == []


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full, which only Linux has")
def test_a_really_full_device_is_reported(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="the disk is full"), atomic_folder(tmp_path / "run"), open("/dev/full", "wb") as file:
        file.write(b"x")
        file.flush()
    assert list(tmp_path.iterdir()) == []


def test_missing_parent_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"none/a.json: can't be written \(No such file or directory\); choose a place"):
        write_atomic(tmp_path / "none" / "a.json", b"")


def test_folder_appears_whole(tmp_path: Path) -> None:
    path = tmp_path / "runs" / "one"
    with atomic_folder(path) as folder:
        (folder / "sub").mkdir()
        (folder / "sub" / "a").write_text("a")
        assert not path.exists()
    assert (path / "sub" / "a").read_text() == "a"
    assert [p.name for p in path.parent.iterdir()] == ["one"]


def test_an_error_in_the_block_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(KeyError), atomic_folder(tmp_path / "one") as folder:
        (folder / "a").write_text("a")
        raise KeyError
    assert list(tmp_path.iterdir()) == []


def test_an_unrelated_missing_file_stays_its_own_error(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError), atomic_folder(tmp_path / "one"):
        Path("/nowhere/at/all").read_bytes()


def test_an_existing_folder_is_refused_or_replaced(tmp_path: Path) -> None:
    path = tmp_path / "one"
    path.mkdir()
    (path / "old").write_text("old")
    with pytest.raises(Refused, match="exists already; choose another folder"), atomic_folder(path):
        pass
    with atomic_folder(path, replace=True) as folder:
        (folder / "new").write_text("new")
        assert (path / "old").exists()
    assert [p.name for p in path.iterdir()] == ["new"]
    assert [p.name for p in tmp_path.iterdir()] == ["one"]


def test_a_failed_exchange_keeps_the_old_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "one"
    path.mkdir()
    (path / "old").write_text("old")
    real, calls = os.rename, []

    def second_fails(source: Any, target: Any) -> None:
        calls.append(source)
        if len(calls) == 2:
            raise OSError(errno.ENOSPC, "full")
        real(source, target)

    monkeypatch.setattr(os, "rename", second_fails)
    with pytest.raises(InputError, match="the disk is full"), atomic_folder(path, replace=True) as folder:
        (folder / "new").write_text("new")
    assert [p.name for p in path.iterdir()] == ["old"]
    assert [p.name for p in tmp_path.iterdir()] == ["one"]


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
