"""A runtime that hangs, fails or is interrupted leaves nothing running, and what is said names it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from localsft.errors import LocalsftError
from localsft.export import runtime_process, runtimes
from localsft.export.runtime_process import TimeBound, TimedOut, run_program, size_of
from localsft.export.runtimes import Runtime, adapter_runtime_checks
from localsft.export.write import export_adapter
from tests.export.tiny import gguf_base, source_of

# A program that starts another, as a runtime starts a server, writes both process ids and hangs.
HANGS = (
    "import os, subprocess, sys, time; child = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(600)']); "
    "open(sys.argv[1], 'w').write(f'{os.getpid()} {child.pid}'); print('loading', file=sys.stderr, flush=True); time.sleep(600)"
)


def command(pids: Path) -> list[str]:
    return [sys.executable, "-c", HANGS, str(pids)]


def wait_for(pids: Path) -> None:
    while not pids.exists() or len(pids.read_text().split()) < 2:
        time.sleep(0.05)


def gone(pids: Path) -> bool:
    """Whether both processes ended; one that nobody has collected yet counts as ended."""
    for _ in range(100):
        running = [pid for pid in map(int, pids.read_text().split()) if is_running(pid)]
        if not running:
            return True
        time.sleep(0.05)
    return False


def is_running(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    status = Path(f"/proc/{pid}/stat")
    return not (status.exists() and status.read_text().rpartition(")")[2].split()[0] == "Z")


def test_the_bound_follows_from_the_work() -> None:
    short, long = TimeBound(100_000_000, 1.0), TimeBound(5_000_000_000, 30.0)
    assert short.seconds == pytest.approx(300 + 5 + 200) and long.seconds == pytest.approx(300 + 250 + 6000)
    assert str(short) == "505 s (300 to start, 5 to load 100 MB, 200 for what took 1.0 s here)"


def test_a_hung_program_is_ended_with_its_children(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runtime_process, "STARTING", 3.0)
    with pytest.raises(TimedOut, match=r"thing gave no answer within 3 s \(.*\) and was ended.*its last words: loading"):
        run_program("thing", command(tmp_path / "pids"), TimeBound(0, 0.0))
    assert gone(tmp_path / "pids")


@pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGKILL])
def test_it_ends_with_whoever_started_it(tmp_path: Path, how: signal.Signals) -> None:
    code = (
        "import sys; from localsft.export.runtime_process import TimeBound, run_program; "
        "run_program('thing', sys.argv[1:], TimeBound(0, 0.0))"
    )
    with subprocess.Popen([sys.executable, "-c", code, *command(tmp_path / "pids")]) as starter:
        wait_for(tmp_path / "pids")
        starter.send_signal(how)
    assert gone(tmp_path / "pids")


def test_ctrl_c_ends_it_too(tmp_path: Path) -> None:
    def interrupt() -> None:
        wait_for(tmp_path / "pids")
        os.kill(os.getpid(), signal.SIGINT)

    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background jobs ignore it from the start
    try:
        thread = threading.Thread(target=interrupt)
        thread.start()
        with pytest.raises(KeyboardInterrupt):
            run_program("thing", command(tmp_path / "pids"), TimeBound(0, 0.0))
        thread.join()
    finally:
        signal.signal(signal.SIGINT, before)
    assert gone(tmp_path / "pids")


def test_a_failure_is_told_in_its_own_last_words() -> None:
    with pytest.raises(LocalsftError, match="thing failed: ValueError: no such model"):
        run_program("thing", [sys.executable, "-c", "raise ValueError('no such model')"], TimeBound(0, 0.0))
    with pytest.raises(LocalsftError, match="thing failed with exit code 3"):
        run_program("thing", [sys.executable, "-c", "raise SystemExit(3)"], TimeBound(0, 0.0))
    with pytest.raises(LocalsftError, match="thing failed: it could not be started"):
        run_program("thing", ["/nowhere/thing"], TimeBound(0, 0.0))


def test_size_of_a_file_and_of_a_folder(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"123")
    (tmp_path / "b").write_bytes(b"4567")
    assert size_of(tmp_path / "a") == 3 and size_of(tmp_path) == 7


@pytest.mark.parametrize(("program", "ok"), [("import time; time.sleep(600)", None), ("raise ValueError('can not load it')", False)])
def test_an_export_says_what_its_runtime_did(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, program: str, ok: bool | None) -> None:
    """No answer is no finding; a runtime that refuses the file is one."""
    source = source_of(tmp_path, gguf_base(tmp_path / "base.gguf"))
    monkeypatch.setattr(runtime_process, "STARTING", 2.0)
    monkeypatch.setattr(runtime_process, "SLOWER", 0.0)
    fake = Runtime(runtimes.NODE, (sys.executable, "-c", program))
    monkeypatch.setattr(runtimes, "installed", lambda *_: [fake])
    checks: Any = []

    def runtime_checks(folder: Path) -> Any:
        checks.extend(adapter_runtime_checks("gguf-lora", source)(folder))
        return [] if ok is False else checks

    export_adapter(source, "gguf-lora", tmp_path / "out", runtime_checks=runtime_checks)
    (check,) = checks
    assert check.ok is ok and check.name == runtimes.NODE
    assert "gave no answer within" in check.detail if ok is None else "can not load it" in check.detail


def test_a_llama_cli_without_its_server_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("LOCALSFT_NODE_LLAMA_CPP", raising=False)
    monkeypatch.chdir(tmp_path)
    assert runtimes.llama_runtimes() == [] and "neither llama-server on PATH" in runtimes.absent_llama()
    (tmp_path / "real").mkdir()
    for name in ("llama-cli", "llama-server"):
        (tmp_path / "real" / name).write_text("#!/bin/sh\n")
        (tmp_path / "real" / name).chmod(0o755)
    (tmp_path / "llama-cli").symlink_to(tmp_path / "real" / "llama-cli")
    (found,) = runtimes.llama_runtimes()  # beside the file that the link names
    assert found.name == runtimes.SERVER and found.program == (str(tmp_path / "real" / "llama-server"),)
    (tmp_path / "real" / "llama-server").unlink()
    assert runtimes.llama_runtimes() == [] and "put that of the same build beside it" in runtimes.absent_llama()
