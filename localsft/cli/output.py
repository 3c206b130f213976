"""What a person sees, on stderr, and what a program reads, on stdout."""

from __future__ import annotations

import os
import re
import signal
import sys
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.console import Console

# Control characters (C0 without tab and newline, DEL, C1), line separators, marks that change the direction of text, and
# lone surrogates: in a model's output they could move the cursor, recolour the screen or reorder what is read.
_UNSAFE = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028\u2029\u202a-\u202e\u2066-\u2069\ud800-\udfff]")


def visible(text: str) -> str:
    """``text`` with what a terminal would obey written out: an escape becomes the four characters ``\\x1b``."""
    return _UNSAFE.sub(lambda match: match[0].encode("unicode_escape", "surrogatepass").decode("ascii"), text)


def say(text: str = "") -> None:
    """A line for a person, on stderr."""
    import click

    click.echo(text, err=True)


def program() -> str:
    """What a person types to call this program: its name where the shell finds it, else the way it was called."""
    import shutil

    if shutil.which("localsft"):
        return "localsft"
    return sys.argv[0] if os.path.basename(sys.argv[0]) == "localsft" else f"{sys.executable} -m localsft"


def console() -> Console:
    """stderr with colour and width, plain off a terminal or with NO_COLOR."""
    from rich.console import Console

    return Console(stderr=True, highlight=False, soft_wrap=not sys.stderr.isatty())


def write_json(document: Mapping[str, Any] | list[Any]) -> None:
    """One JSON document on stdout; numbers that are not finite become null."""
    import orjson

    options = orjson.OPT_INDENT_2 | orjson.OPT_APPEND_NEWLINE | orjson.OPT_SERIALIZE_NUMPY
    write(orjson.dumps(document, option=options).decode())


def write(text: str) -> None:
    """Text on stdout, at once. When its reader has gone (``| head``), the command ends as by SIGPIPE, with code 141."""
    import click

    try:
        sys.stdout.write(text)
        sys.stdout.flush()
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # also for the interpreter's last flush
        raise click.exceptions.Exit(128 + signal.SIGPIPE) from None


def megabytes(count: float) -> str:
    """Bytes for a person: "98 MB", "1.2 GB"."""
    return f"{count / 1e9:.1f} GB" if count >= 1e9 else f"{count / 1e6:,.0f} MB"
