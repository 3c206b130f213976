from __future__ import annotations

import hashlib
import os
import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest

from localsft.errors import InputError
from localsft.models.cards import ModelFile
from localsft.models.download import Address, Network, download
from tests.models.conftest import Server

CONTENT = os.urandom(3_000_000)
FILE = ModelFile("model.bin", len(CONTENT), hashlib.sha256(CONTENT).hexdigest())


def fetch(server: Server, target: Path, file: ModelFile = FILE) -> list[tuple[int, int]]:
    calls: list[tuple[int, int]] = []
    download(Address(f"{server.url}/model.bin?token=secret"), target, file, lambda done, size: calls.append((done, size)))
    return calls


@pytest.fixture
def target(tmp_path: Path) -> Path:
    return tmp_path / "cache" / "model.bin"


def part(target: Path) -> Path:
    return target.with_name("model.bin.part")


def test_a_whole_download_is_checked_and_put_in_place(server: Server, target: Path) -> None:
    server.files["/model.bin"] = CONTENT
    calls = fetch(server, target)
    assert target.read_bytes() == CONTENT
    assert calls[-1] == (len(CONTENT), len(CONTENT))
    assert [path.name for path in target.parent.iterdir()] == ["model.bin"]


def test_a_broken_download_goes_on_where_it_stopped(server: Server, target: Path) -> None:
    server.files["/model.bin"] = CONTENT
    server.break_after = [1_000_000, 500_000]
    fetch(server, target)
    assert target.read_bytes() == CONTENT
    assert [wanted for _, wanted in server.requests] == [None, "bytes=1000000-", "bytes=1500000-"]


def test_a_download_that_keeps_breaking_is_kept_for_the_next_time(server: Server, target: Path) -> None:
    server.files["/model.bin"] = CONTENT
    server.break_after = [1_000_000] + [0] * 10
    with pytest.raises(InputError, match=r"^model.bin: stopped at 1,000,000 of 3,000,000 bytes \(.+\); run the same command again"):
        fetch(server, target)
    assert not target.exists()
    assert part(target).stat().st_size == 1_000_000
    server.break_after = []
    fetch(server, target)
    assert server.requests[-1][1] == "bytes=1000000-"
    assert target.read_bytes() == CONTENT


def test_a_server_that_knows_no_ranges_sends_it_all_again(server: Server, target: Path) -> None:
    server.files["/model.bin"] = CONTENT
    server.ranges = False
    server.break_after = [1_000_000]
    fetch(server, target)
    assert target.read_bytes() == CONTENT


@pytest.mark.parametrize(
    ("content", "found"),
    [
        (CONTENT[:-1] + bytes([CONTENT[-1] ^ 1]), "SHA-256 "),
        (CONTENT + b"more", r"[34],\d+,\d+ bytes instead of 3,000,000"),
    ],
)
def test_a_corrupt_download_is_named_and_removed(server: Server, target: Path, content: bytes, found: str) -> None:
    server.files["/model.bin"] = content
    with pytest.raises(InputError, match=rf"^the download model.bin is corrupt \({found}.*\) and was removed; fetch it again"):
        fetch(server, target)
    assert list(target.parent.iterdir()) == []


def test_a_body_that_is_shorter_than_the_file_is_said(server: Server, target: Path) -> None:
    server.files["/model.bin"] = CONTENT[:1000]
    with pytest.raises(InputError, match=r"stopped at 1,000 of 3,000,000 bytes|the server says 416"):
        fetch(server, target)
    assert not target.exists()


def test_a_part_of_another_file_does_not_survive(server: Server, target: Path) -> None:
    server.files["/model.bin"] = CONTENT
    target.parent.mkdir()
    part(target).write_bytes(b"x" * 1000)
    with pytest.raises(InputError, match="is corrupt"):
        fetch(server, target)
    fetch(server, target)
    assert target.read_bytes() == CONTENT


@pytest.mark.parametrize(("status", "remedy"), [(404, "it is not there any more"), (401, "logged in"), (503, "try again later")])
def test_refusals_are_named_without_the_token(server: Server, target: Path, status: int, remedy: str) -> None:
    server.status = status
    with pytest.raises(InputError, match=rf"^model.bin: the server says {status} .*{remedy}") as caught:
        fetch(server, target)
    assert "secret" not in str(caught.value)


def test_nobody_listens(server: Server, target: Path) -> None:
    with pytest.raises(InputError, match=r"model.bin: stopped at 0 of 3,000,000 bytes \(.*refused"):
        download(Address("http://127.0.0.1:9/model.bin"), target, FILE, lambda done, size: None)


def test_a_proxy_is_used(server: Server, target: Path) -> None:
    server.files["http://files.invalid/model.bin"] = CONTENT
    download(Address("http://files.invalid/model.bin", Network(proxy=server.url)), target, FILE, lambda done, size: None)
    assert target.read_bytes() == CONTENT


def test_a_login_stays_with_its_server(server: Server, target: Path) -> None:
    server.files["/model.bin"] = CONTENT
    download(Address(f"{server.url}/model.bin", secret_headers=(("Authorization", "Bearer x"),)), target, FILE, lambda done, size: None)
    assert server.seen_headers[-1]["Authorization"] == "Bearer x"
    server.status, server.headers = 302, {"Location": f"{server.url}/elsewhere"}
    with pytest.raises(InputError, match="302"):
        download(
            Address(f"{server.url}/model.bin", secret_headers=(("Authorization", "Bearer x"),)),
            target.with_name("other"),
            FILE,
            lambda done, size: None,
        )
    assert "Authorization" not in server.seen_headers[-1]


def test_no_space_is_said_before_the_download(server: Server, target: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    server.files["/model.bin"] = CONTENT
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=1000))
    with pytest.raises(InputError, match=r"3 MB are needed and 0 MB are free; free some space, or set LOCALSFT_HOME"):
        fetch(server, target)
    assert server.requests == []
