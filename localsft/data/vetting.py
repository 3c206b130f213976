"""A chat template is tried in a child process before it is compiled here: one that eats memory, time or the stack ends there.

minijinja counts steps, but a template can double a text forty times in forty steps, and the process dies with the allocation;
and a chain of fifty thousand operators overflows the stack of minijinja's compiler. The child compiles the template and renders
stock conversations, on a small stack, under the kernel's limits of memory and processor time. A template that behaves there and
bites only on certain rows can still end the process that renders them; it can't reach anything else.

Run as ``python -m localsft.data.vetting`` this module is the child: {"source", "bos", "eos"} on stdin, exit code 0 if it passed.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from contextlib import suppress
from pathlib import Path
from typing import Any

from localsft.data.template import ChatTemplate, TooManySteps
from localsft.errors import InputError

CPU_SECONDS = 1  # of the child, its start included; honest templates take a few milliseconds
MEMORY = 512 << 20  # bytes beyond what the child has after its imports
STACK = 512 << 10  # bytes, as a thread on macOS has; any thread that renders later has as much
WALL_SECONDS = 60  # only against a child that hangs without working


def vet(source: str, *, bos: str = "", eos: str = "", where: str = "the chat template") -> None:
    """Try a template's ``source`` on stock conversations in a child process; one that can't be compiled passes, to be told of later.

    Raises:
        InputError: it takes more than a second of processor time, 512 MiB, MAX_STEPS of minijinja or a small stack.
    """
    task = {"source": source, "bos": bos, "eos": eos}
    package = str(Path(__file__).parents[2])
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([package, os.environ.get("PYTHONPATH", "")]), "RUST_BACKTRACE": "0"}
    try:
        child = subprocess.run(
            [sys.executable, "-m", "localsft.data.vetting"],
            input=json.dumps(task).encode(),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            timeout=WALL_SECONDS,
            env=environment,
            check=False,
        )
        died = child.returncode != 0
    except subprocess.TimeoutExpired:
        died = True
    if died:
        raise InputError(
            f"{where}: the chat template takes more than a second or {MEMORY >> 20} MiB on a short conversation, loops without end "
            "or nests too deep, as a hostile one does; pass another with --template"
        )


def stock_conversations() -> list[tuple[list[dict[str, Any]], list[dict[str, Any]]]]:
    """Short conversations with their tools: one to nine turns, with and without system message, reasoning and tool calls."""
    system = {"role": "system", "content": "Be brief."}
    turns = [{"role": role, "content": f"{role} {i}"} for i in range(4) for role in ("user", "assistant")]
    tools = [{"type": "function", "function": {"name": "look", "description": "Look.", "parameters": {"type": "object", "properties": {}}}}]
    call = {"id": "call12345", "type": "function", "function": {"name": "look", "arguments": {"at": "this"}}}
    calling = [
        turns[0],
        {"role": "assistant", "content": "", "tool_calls": [call]},
        {"role": "tool", "content": "seen", "tool_call_id": "call12345", "name": "look"},
        {"role": "assistant", "content": "<think>\nhm\n</think>\n\nSeen."},
    ]
    plain: list[tuple[list[dict[str, Any]], list[dict[str, Any]]]] = [(turns[:n], []) for n in (1, 2, 3, 8)]
    return [*plain, *[([system, *rows], tools) for rows in (turns[:2], calling)], (calling, tools), (calling, [])]


def main() -> int:
    """The child."""
    import resource

    task = json.load(sys.stdin)
    with open("/proc/self/statm") if sys.platform == "linux" else open(os.devnull) as file:
        pages = int((file.read() or "0").split()[0])
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    resource.setrlimit(resource.RLIMIT_CPU, (CPU_SECONDS, CPU_SECONDS))
    if pages:  # other systems do not hold a process to RLIMIT_AS; there the processor time is the limit
        size = pages * resource.getpagesize() + MEMORY
        resource.setrlimit(resource.RLIMIT_AS, (size, size))
    threading.stack_size(STACK)
    passed: list[bool] = []
    trial = threading.Thread(target=_try, args=(task, passed))
    trial.start()
    trial.join()
    return 0 if passed else 1


def _try(task: dict[str, str], passed: list[bool]) -> None:
    with suppress(InputError):  # no template at all: told where it is compiled
        template = ChatTemplate(task["source"], bos=task["bos"], eos=task["eos"])
        for messages, tools in stock_conversations():
            for prompt in (False, True):
                try:
                    template.render(messages, tools, add_generation_prompt=prompt)
                except TooManySteps:  # a fast machine takes them all in less than a second
                    return
                except InputError:  # refusing a conversation is a template's right
                    pass
    passed.append(True)


if __name__ == "__main__":
    sys.exit(main())
