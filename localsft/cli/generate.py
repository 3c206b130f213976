"""``localsft generate``: one answer, from a base model or with an adapter."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from localsft.cli.command import ExampleCommand
from localsft.cli.output import visible, write, write_json
from localsft.errors import InputError, UsageError

if TYPE_CHECKING:
    from localsft.data.conversation import Message


@click.command(
    cls=ExampleCommand,
    name="generate",
    example="localsft generate --adapter runs/2026-11-22-tickets-1 --prompt 'Where is my invoice?'",
)
@click.option("--adapter", metavar="RUN", help="A run or an adapter folder. Without it the base model answers.")
@click.option("--model", metavar="M", help="Base model. Default: the one the run was trained on, else the default model.")
@click.option("--prompt", metavar="TEXT", help="What the user says; '-' reads it from standard input.")
@click.option("--system", metavar="TEXT", help="A system prompt to go with --prompt.")
@click.option(
    "--messages", type=click.Path(path_type=Path), metavar="F.json", help="A whole conversation instead: a JSON list of messages."
)
@click.option("--max-tokens", type=click.IntRange(1), default=256, show_default=True, help="Longest answer.")
@click.option("--temperature", type=click.FloatRange(0), default=0.0, show_default=True, help="0 always takes the likeliest token.")
@click.option("--top-p", type=click.FloatRange(0, 1, min_open=True), default=1.0, show_default=True, help="Draw from the likeliest tokens.")
@click.option("--seed", type=click.IntRange(0), default=0, show_default=True, help="Seed of the draws.")
@click.option("--engine", type=click.Choice(["auto", "cpu", "mlx"]), default="auto", show_default=True, help="What computes.")
@click.option("--threads", type=click.IntRange(1), help="Threads of the cpu engine. Default: one for each physical core.")
@click.option("--json", "as_json", is_flag=True, help="One JSON document on stdout.")
def command(prompt: str | None, system: str | None, messages: Path | None, as_json: bool, **options: Any) -> None:
    """Answer one prompt or conversation; the answer goes to stdout as it is made.

    On a terminal control characters of the answer are shown, not obeyed.
    """
    from localsft.answer import find_adapter, open_for_answers, stream
    from localsft.cli.train import open_model
    from localsft.config import TrainConfig
    from localsft.engine.base import Sampling

    conversation = read_conversation(prompt, system, messages)
    adapter, trained_on = find_adapter(options["adapter"]) if options["adapter"] else (None, None)
    model = open_model(options["model"] or trained_on or TrainConfig().model)
    engine = open_for_answers(model, adapter, options["engine"], options["threads"])
    sampling = Sampling(options["max_tokens"], options["temperature"], options["top_p"], options["seed"])
    shown = visible if sys.stdout.isatty() else str
    text, tokens, finish = "", 0, ""
    for piece in stream(model, engine, [conversation], sampling):
        text, tokens, finish = text + piece.text, tokens + 1, piece.finish
        if not as_json:
            write(shown(piece.text))
    if as_json:
        write_json({"text": text, "tokens": tokens, "finish": finish, "model": model.name, "adapter": str(adapter) if adapter else None})
    else:
        write("\n")


def read_conversation(prompt: str | None, system: str | None, file: Path | None) -> list[Message]:
    """The messages of --prompt and --system, or of --messages."""
    from localsft.data.conversation import Message

    if (prompt is None) == (file is None):
        raise UsageError("give either --prompt TEXT or --messages F.json")
    if file is not None:
        if system is not None:
            raise UsageError("--system goes with --prompt; put the system message into the file")
        return read_messages(file)
    text = sys.stdin.read() if prompt == "-" else str(prompt)
    return [*([Message("system", system)] if system is not None else []), Message("user", text)]


def read_messages(file: Path) -> list[Message]:
    """A JSON list of messages, or an object with "messages"."""
    import orjson

    from localsft.data.openai import openai_messages

    try:
        value = orjson.loads(file.read_bytes())
    except (OSError, orjson.JSONDecodeError) as error:
        raise InputError(f"{file} (--messages): can't be read as JSON ({error}); write a list of messages into it") from None
    messages = list(openai_messages(value.get("messages") if isinstance(value, dict) else value, str(file)))
    if messages[-1].role == "assistant":
        raise InputError(f"{file} (--messages): the last message is the assistant's already; remove it to get another answer")
    return messages
