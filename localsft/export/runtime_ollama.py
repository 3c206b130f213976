"""Serves an exported folder with Ollama, for the proof of the export: ``python runtime_ollama.py REQUEST.json OLLAMA``.

Stands by itself. A server of its own, with an empty library in a temporary folder, creates the model from the folder's Modelfile; the
user's own server and library are not touched. The request: {model, prompts (texts, control tokens in them), conversations, max_tokens,
context, threads, result}. Writes one JSON document to the file ``result``: {version, answers, chats}. An answer: {count: the prompt's
tokens there, tokens: bytes of each greedy token, top: [[bytes, logarithm of the probability], ...] of the first, ended: at a stop text}. A
chat: {count, text: the prompt by the Modelfile's template, None from an Ollama that does not say}. ``answers`` None: it is too old to tell.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

NAME = "localsft-proof"
LIKELIEST = 20  # as many as Ollama tells


class Untold(Exception):
    """An older Ollama, which tells no probabilities."""


class Server:
    """``ollama serve`` at a free port."""

    def __init__(self, program: str, folder: str) -> None:
        self._program = program
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self._host = f"127.0.0.1:{free.getsockname()[1]}"
        kept = {key: value for key, value in os.environ.items() if not key.startswith(("OLLAMA_", "LLAMA_"))}
        self._environment = {**kept, "OLLAMA_HOST": self._host, "OLLAMA_MODELS": folder + "/models", "OLLAMA_NUM_PARALLEL": "1"}
        self._log = Path(folder) / "log"
        with self._log.open("wb") as log:
            self._process = subprocess.Popen([program, "serve"], stdin=subprocess.DEVNULL, stdout=log, stderr=log, env=self._environment)
        while True:
            try:
                self.version = str(self.ask("/api/version")["version"])
                return
            except OSError:
                if self._process.poll() is not None:
                    sys.exit(f"ollama serve ended with exit code {self._process.returncode}: {self._words()}")
                time.sleep(0.05)

    def create(self, modelfile: Path) -> None:
        """As a user does."""
        command = [self._program, "create", NAME, "-f", str(modelfile)]
        done = subprocess.run(
            command, stdin=subprocess.DEVNULL, capture_output=True, text=True, errors="replace", env=self._environment, check=False
        )
        if done.returncode:
            words = [line for line in done.stderr.splitlines() if line.strip()]
            sys.exit(f"ollama create refuses the Modelfile: {words[-1] if words else f'exit code {done.returncode}'}")

    def ask(self, path: str, document: dict[str, Any] | None = None) -> Any:
        """The answer to a GET, or to a POST of ``document``."""
        body = None if document is None else json.dumps({"model": NAME, "stream": False, **document}).encode()
        try:
            with urllib.request.build_opener(urllib.request.ProxyHandler({})).open(f"http://{self._host}{path}", body) as response:
                return json.load(response)
        except urllib.error.HTTPError as error:
            sys.exit(f"ollama answers {error.code} to {path}: {error.read()[:200].decode('utf-8', 'replace')}")

    def end(self) -> None:
        """The server, and the runner that it started."""
        self._process.send_signal(signal.SIGTERM)
        try:
            self._process.wait(20)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()

    def _words(self) -> str:
        lines = [line for line in self._log.read_text(errors="replace").splitlines() if line.strip()]
        return lines[-1][:300] if lines else "it wrote nothing"


def said_bytes(entry: dict[str, Any]) -> list[int]:
    """Of one token: none of a control token, of which Ollama leaves the key out."""
    found: list[int] = entry.get("bytes") or []
    return found


def answer(server: Server, prompt: str, options: dict[str, Any]) -> dict[str, Any]:
    """What follows a prompt that is taken as it stands."""
    said = server.ask("/api/generate", {"prompt": prompt, "raw": True, "logprobs": True, "top_logprobs": LIKELIEST, "options": options})
    tokens = said.get("logprobs") or []
    if not tokens and said.get("response"):
        raise Untold
    return {
        "count": said["prompt_eval_count"],
        "tokens": [said_bytes(entry) for entry in tokens],
        "top": [[said_bytes(entry), entry["logprob"]] for entry in tokens[0]["top_logprobs"]] if tokens else [],
        "ended": said["done_reason"] == "stop",
    }


def chat(server: Server, messages: list[dict[str, str]], options: dict[str, Any]) -> dict[str, Any]:
    """How a conversation becomes a prompt."""
    shown = server.ask("/api/chat", {"messages": messages, "_debug_render_only": True, "options": {**options, "num_predict": 1}})
    said = server.ask("/api/chat", {"messages": messages, "options": {**options, "num_predict": 1}})
    return {"count": said["prompt_eval_count"], "text": (shown.get("_debug_info") or {}).get("rendered_template")}


def main() -> None:
    request = json.loads(Path(sys.argv[1]).read_text())
    options = {
        "temperature": 0.0,
        "top_k": 1,
        "repeat_penalty": 1.0,
        "num_predict": request["max_tokens"],
        "num_ctx": request["context"],
        "num_thread": request["threads"],
        "num_gpu": 0,
    }
    with tempfile.TemporaryDirectory() as folder:
        server = Server(sys.argv[2], folder)
        try:
            server.create(Path(request["model"]) / "Modelfile")
            document: dict[str, Any] = {
                "version": server.version,
                "answers": [answer(server, prompt, options) for prompt in request["prompts"]],
                "chats": [chat(server, messages, options) for messages in request["conversations"]],
            }
        except Untold:
            document = {"version": server.version, "answers": None}
        finally:
            server.end()
    Path(request["result"]).write_text(json.dumps(document))


if __name__ == "__main__":
    main()
