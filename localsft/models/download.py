"""One file over HTTP: continued where it stopped, checked, and in place only when it is whole.

While it is on its way the file has the name ``X.part``. Its bytes are believed only after the SHA-256 of all of them was
compared, so that a part may be continued from any server that has the file.
"""

from __future__ import annotations

import hashlib
import http.client
import os
import shutil
import urllib.error
import urllib.request
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from localsft.atomic import sync_folder, write_error
from localsft.errors import InputError
from localsft.models.cards import ModelFile

Progress = Callable[[int, int], None]  # bytes there, bytes in all

CHUNK = 1 << 20
TIMEOUT = 60.0  # seconds without a byte
ATTEMPTS = 4  # connections in a row that may break off


@dataclass(frozen=True, slots=True)
class Network:
    """How to get out: certificates (a CA bundle file) and proxy beyond what the environment says."""

    cert: str | None = None
    proxy: str | None = None

    def opener(self) -> urllib.request.OpenerDirector:
        import ssl

        context = ssl.create_default_context()
        if self.cert is not None:
            context.load_verify_locations(self.cert)
        else:
            import certifi  # some Python builds know no certificates of the system's

            context.load_verify_locations(certifi.where())
        handlers: list[urllib.request.BaseHandler] = [urllib.request.HTTPSHandler(context=context)]
        if self.proxy is not None:
            handlers.append(urllib.request.ProxyHandler({"http": self.proxy, "https": self.proxy}))
        return urllib.request.build_opener(*handlers)


@dataclass(frozen=True, slots=True)
class Address:
    """Where a file is. ``secret_headers`` go to that server only, not to one that it redirects to."""

    url: str
    network: Network = Network()
    secret_headers: tuple[tuple[str, str], ...] = ()

    @property
    def name(self) -> str:
        """The file name: a whole URL may carry a token, so messages don't show it."""
        return self.url.partition("?")[0].rpartition("/")[2]


def download(address: Address, target: Path, file: ModelFile, progress: Progress) -> None:
    """Fetch a file to ``target``; ``file`` says how many bytes it must have, and their hash.

    Raises ``InputError``: the connection breaks off for good (the part is kept and continued next time), the file is longer
    than it should be or has another hash (the part is removed), the disk is full.
    """
    part = target.with_name(target.name + ".part")
    target.parent.mkdir(parents=True, exist_ok=True)
    if part.exists() and part.stat().st_size > file.size:
        part.unlink()
    check_space(part, file.size - _size(part))
    opener = address.network.opener()
    failures = 0
    while (before := _size(part)) < file.size:
        try:
            _continue(opener, address, part, file, progress)
        except urllib.error.HTTPError as error:
            raise InputError(f"{address.name}: the server says {error.code} {error.reason}; {_remedy(error.code)}") from None
        except (urllib.error.URLError, http.client.HTTPException, TimeoutError, ConnectionError) as error:
            broken = getattr(error, "reason", None) or str(error) or type(error).__name__
        else:
            broken = "the connection ended early"
        if _size(part) >= file.size:
            break
        failures = 1 if _size(part) > before else failures + 1
        if failures >= ATTEMPTS or _size(part) == before == 0:
            there = f"{_size(part):,} of {file.size:,} bytes"
            raise InputError(f"{address.name}: stopped at {there} ({broken}); run the same command again to go on from there")
    move_checked(part, target, file, f"the download {address.name}")


def move_checked(part: Path, target: Path, file: ModelFile, what: str) -> None:
    """Give the whole file its name, if its size and hash are right; else remove it and raise ``InputError``."""
    size, digest = _size(part), sha256(part)
    wrong = f"{size:,} bytes instead of {file.size:,}" if size != file.size else ""
    if file.sha256 is not None and digest != file.sha256:
        wrong = wrong or f"SHA-256 {digest[:12]}... instead of {file.sha256[:12]}..."
    if wrong:
        part.unlink()
        raise InputError(f"{what} is corrupt ({wrong}) and was removed; fetch it again, and if that fails alike, from another place")
    try:
        with open(part, "rb") as handle:
            os.fsync(handle.fileno())
        os.replace(part, target)
        sync_folder(target.parent)
    except OSError as error:
        raise write_error(target, error) from error


def sha256(path: Path) -> str:
    """Of a file, as hex."""
    digest = hashlib.sha256()
    with open(path, "rb", buffering=0) as stream:
        while piece := stream.read(CHUNK):
            digest.update(piece)
    return digest.hexdigest()


def check_space(path: Path, needed: int) -> None:
    """Raise ``InputError`` before a long download that the disk can't hold."""
    free = shutil.disk_usage(path.parent).free
    if needed > free:
        raise InputError(
            f"{path.parent}: {needed / 1e6:,.0f} MB are needed and {free / 1e6:,.0f} MB are free; free some space, or set LOCALSFT_HOME"
        )


def _continue(opener: urllib.request.OpenerDirector, address: Address, part: Path, file: ModelFile, progress: Progress) -> None:
    start = _size(part)
    request = urllib.request.Request(address.url, headers={"Accept-Encoding": "identity"})
    if start:
        request.add_header("Range", f"bytes={start}-")
    for header, value in address.secret_headers:
        request.add_unredirected_header(header, value)
    with opener.open(request, timeout=TIMEOUT) as response:
        continued = response.status == 206 and response.headers.get("Content-Range", "").startswith(f"bytes {start}-")
        if not continued:
            start = 0  # the server sends everything, whatever we asked for
        with open(part, "r+b" if continued else "wb") as stream:
            stream.seek(start)
            _copy(response, stream, part, start, file.size, progress)


def _copy(response: http.client.HTTPResponse, stream: BinaryIO, part: Path, done: int, size: int, progress: Progress) -> None:
    while piece := response.read1(CHUNK):
        try:
            stream.write(piece)
            stream.flush()
        except OSError as error:
            raise write_error(part, error) from error
        done += len(piece)
        progress(min(done, size), size)
        if done > size:
            return  # not the file we know; the check after the loop says so


def _size(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0


def _remedy(code: int) -> str:
    if code in (401, 403, 407):
        return "fetch it with a program that is logged in there, and give the file to --from"
    if code == 404:
        return "it is not there any more; fetch it from another place and give the file to --from"
    return "try again later"
