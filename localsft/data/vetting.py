"""A chat template is tried in a child process before it is used: one that eats memory or time ends there, not here.

minijinja counts steps, but a template can double a text forty times in forty steps, and the process dies with the allocation.
The child renders stock conversations under the kernel's limits of memory and processor time. A template that behaves there
and bites only on certain rows can still end the process that renders them; it can't reach anything else.

Run as ``python -m localsft.data.vetting`` this module is the child: {"source", "bos", "eos"} on stdin, exit code 0, or 1 with
one line on stderr.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from contextlib import suppress
from pathlib import Path
from typing import Any

from localsft.data.template import ChatTemplate
from localsft.errors import InputError

CPU_SECONDS = 1  # of the child, its start included; honest templates take a few milliseconds
MEMORY = 512 << 20  # bytes beyond what the child has after its imports
WALL_SECONDS = 60  # only against a child that hangs without working


def vet(template: ChatTemplate) -> None:
    """Try ``template`` on stock conversations in a child process.

    Raises:
        InputError: it takes more than a second of processor time or 512 MiB.
    """
    task = {"source": template.source, "bos": template.bos, "eos": template.eos}
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
            f"{template.where}: the chat template takes more than a second or {MEMORY >> 20} MiB on a short conversation, "
            "as a hostile one does; pass another with --template"
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
    template = ChatTemplate(task["source"], bos=task["bos"], eos=task["eos"])
    with open("/proc/self/statm") if sys.platform == "linux" else open(os.devnull) as file:
        pages = int((file.read() or "0").split()[0])
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    resource.setrlimit(resource.RLIMIT_CPU, (CPU_SECONDS, CPU_SECONDS))
    if pages:  # other systems do not hold a process to RLIMIT_AS; there the processor time is the limit
        size = pages * resource.getpagesize() + MEMORY
        resource.setrlimit(resource.RLIMIT_AS, (size, size))
    for messages, tools in stock_conversations():
        for prompt in (False, True):
            with suppress(InputError):  # refusing a conversation is a template's right
                template.render(messages, tools, add_generation_prompt=prompt)
    return 0


if __name__ == "__main__":
    sys.exit(main())
