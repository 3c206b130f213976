"""Runs token ids through llama.cpp's llama-server, for the proof of an export: ``python runtime_llama_server.py REQUEST.json SERVER``.

Stands by itself. The server listens on a socket file that only this user can reach, and ends with this process. The request: {model, lora,
prompts, max_tokens, candidates, plain_token, conversations, context, threads, logits, base_logits}. Writes the logarithms of the
probabilities after each prompt as float32 (prompts, V), which are the logits up to one number a prompt, to the files ``logits`` (with
the adapter) and ``base_logits`` (without), and one JSON document to the file ``result``.
"""

from __future__ import annotations

import http.client
import json
import os
import socket
import subprocess
import sys
import tempfile
import time
from array import array
from pathlib import Path
from typing import Any

GREEDY = {"temperature": 0.0, "samplers": ["top_k"], "top_k": 1, "cache_prompt": False}
FORCED = 1e6  # added to a logit so that its token comes next; probabilities are reported without it


class Connection(http.client.HTTPConnection):
    """HTTP over a socket file."""

    def __init__(self, path: str) -> None:
        super().__init__("localhost")
        self.path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.connect(self.path)


class Server:
    """A llama-server that has loaded the model."""

    def __init__(self, program: str, request: dict[str, Any], folder: str) -> None:
        self._socket = str(Path(folder) / "s.sock")
        command = [program, "-m", request["model"], "--host", self._socket, "-c", str(request["context"]), "-np", "1", "-ngl", "0"]
        command += ["-t", str(request["threads"]), "--jinja", *(["--lora", request["lora"]] if request["lora"] else [])]
        # LLAMA_ARG_CTX_SIZE and its like would change what is compared.
        environment = {key: value for key, value in os.environ.items() if not key.startswith("LLAMA_")}
        self._log = Path(folder) / "log"
        with self._log.open("wb") as log:
            self.process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, env=environment)
        while self._health() != 200:
            if self.process.poll() is not None:
                self.fail(f"ended with exit code {self.process.returncode}")
            time.sleep(0.05)

    def _health(self) -> int:
        connection = Connection(self._socket)
        try:
            connection.request("GET", "/health")
            return connection.getresponse().status
        except OSError:
            return 0
        finally:
            connection.close()

    def ask(self, path: str, document: dict[str, Any] | None = None) -> Any:
        """The answer to a GET, or to a POST of ``document``."""
        connection = Connection(self._socket)
        body = None if document is None else json.dumps(document)
        connection.request("GET" if body is None else "POST", path, body, {"Content-Type": "application/json"})
        response = connection.getresponse()
        content = response.read()
        connection.close()
        if response.status != 200:
            self.fail(f"{path} answers {response.status}: {content[:200].decode('utf-8', 'replace')}")
        return json.loads(content)

    def fail(self, words: str) -> None:
        lines = [line for line in self._log.read_text(errors="replace").splitlines() if line.strip()]
        errors = [line for line in lines if " E " in line or "error" in line.lower() or "failed" in line.lower()]
        sys.exit(f"llama-server {words}{': ' + errors[0] if errors else ''}")


def logits(server: Server, request: dict[str, Any], lora: list[dict[str, Any]], path: str) -> None:
    with open(path, "wb") as file:
        for prompt in request["prompts"]:
            # A part of a character would come without probabilities; so a plain token is made to come next.
            forced = {"n_predict": 1, "n_probs": 1 << 20, "logit_bias": [[request["plain_token"], FORCED]]}
            answer = server.ask("/completion", {**GREEDY, **forced, "prompt": prompt, "lora": lora})
            row = answer["completion_probabilities"][0]["top_logprobs"]
            values = array("f", bytes(4 * len(row)))
            for entry in row:
                values[entry["id"]] = entry["logprob"]
            if min(values) < -1e30:
                sys.exit("llama-server gives no probability for some tokens: they are less likely than a float can say")
            values.tofile(file)


def stops_at(server: Server, token: int, prompt: list[int], lora: list[dict[str, Any]]) -> bool:
    """Whether the server ends an answer at ``token``: it is made to say it."""
    forced = {"n_predict": 2, "logit_bias": [[token, FORCED]]}
    return bool(server.ask("/completion", {**GREEDY, **forced, "prompt": prompt, "lora": lora})["stop_type"] == "eos")


def main() -> None:
    request = json.loads(Path(sys.argv[1]).read_text())
    prompts = request["prompts"]
    with tempfile.TemporaryDirectory() as folder:
        server = Server(sys.argv[2], request, folder)
        try:
            lora = [{"id": 0, "scale": 1.0}] if request["lora"] else []
            if request["base_logits"]:
                logits(server, request, [{"id": 0, "scale": 0.0}], request["base_logits"])
            logits(server, request, lora, request["logits"])
            generated, stops = [], set()
            for prompt in prompts:
                wanted = {"n_predict": request["max_tokens"], "return_tokens": True}
                answer = server.ask("/completion", {**GREEDY, **wanted, "prompt": prompt, "lora": lora})
                generated.append(answer["tokens"][: request["max_tokens"]])
                if answer["stop_type"] == "eos":
                    stops.add(answer["tokens"][-1])
            shortest = min(prompts, key=len)
            stops |= {token for token in request["candidates"] if stops_at(server, token, shortest, lora)}
            rendered = []
            for messages in request["conversations"]:
                text = server.ask("/apply-template", {"messages": messages})["prompt"]
                rendered.append(server.ask("/tokenize", {"content": text, "add_special": True, "parse_special": True})["tokens"])
            document = {
                "version": str(server.ask("/props").get("build_info", "")),
                "generated": generated,
                "rendered": rendered,
                "stop_ids": sorted(stops),
            }
        finally:
            server.process.kill()
            server.process.wait()
    Path(request["result"]).write_text(json.dumps(document))


if __name__ == "__main__":
    main()
