"""``localsft``: the commands, loaded when they are named, and what becomes of an error."""

from __future__ import annotations

import importlib
import keyword
import sys
from collections.abc import Sequence

import click

from localsft import __version__
from localsft.cli.command import ExampleGroup
from localsft.errors import LocalsftError

COMMANDS = ("demo", "train", "resume", "plan", "data", "bench", "generate", "export", "verify", "import", "models", "doctor")
INTERRUPTED = 130
BUG = 70  # sysexits.h: an internal software error


class LocalsftGroup(ExampleGroup):
    """Each command is in the module of its name; only the one that runs is imported, or all of them for --help."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in COMMANDS:
            return None
        module = f"{cmd_name}_" if keyword.iskeyword(cmd_name) else cmd_name
        command: click.Command = importlib.import_module(f"localsft.cli.{module}").command
        return command


@click.group(
    cls=LocalsftGroup,
    example="localsft demo\nlocalsft train tickets.jsonl\nlocalsft generate --adapter runs/2026-11-22-tickets-1 --prompt 'Hello'",
)
@click.version_option(__version__, prog_name="localsft", message="%(prog)s %(version)s")
def cli() -> None:
    """Fine-tune a language model on your own conversations, on your own machine.

    What a person reads goes to stderr, results go to stdout. Exit codes: 0 done, 1 findings, 2 usage or input error, 3 refused,
    4 could not be measured, 130 interrupted.
    """


def main() -> None:
    """The console script."""
    sys.exit(run(sys.argv[1:]))


def run(arguments: Sequence[str]) -> int:
    """Carry out a command line; returns the exit code. Errors are one sentence on stderr, with --debug also a traceback."""
    debug = "--debug" in arguments
    try:
        code = cli.main(args=list(arguments), prog_name="localsft", standalone_mode=False)
        return code if isinstance(code, int) else 0
    except click.exceptions.Exit as error:
        return error.exit_code
    except click.UsageError as error:
        where = error.ctx.command_path if error.ctx else "localsft"
        return _fail(f"{error.format_message().rstrip('.')}; see '{where} --help'", error, 2, debug)
    except LocalsftError as error:
        return _fail(str(error), error, error.exit_code, debug)
    except (KeyboardInterrupt, click.Abort):
        click.echo("interrupted", err=True)
        return INTERRUPTED
    except MemoryError as error:
        return _fail("out of memory; lower --tokens-per-pack or choose a smaller model", error, 3, debug)
    except Exception as error:
        message = f"this is a bug in localsft ({type(error).__name__}: {error}); run it again with --debug and report the traceback"
        return _fail(message, error, BUG, debug)


def _fail(message: str, error: BaseException, code: int, debug: bool) -> int:
    from localsft.cli.output import visible

    if debug:
        import traceback

        traceback.print_exception(error)
    click.echo(f"localsft: {visible(message)}", err=True)
    return code
