"""Commands whose help starts with an example, and options made from the settings of a training run."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, TypeVar, get_args

import click

if TYPE_CHECKING:
    from localsft.config import Setting

F = TypeVar("F", bound=Callable[..., Any])


class ExampleCommand(click.Command):
    """A command that shows ``example`` before anything else, and knows --debug (which ``main`` reads)."""

    def __init__(self, *args: Any, example: str, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.example = example
        self.params.append(debug_option())

    def format_help(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        write_example(self.example, formatter)
        super().format_help(ctx, formatter)


class ExampleGroup(click.Group):
    """A group of such commands."""

    command_class = ExampleCommand

    def __init__(self, *args: Any, example: str, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.example = example
        self.params.append(debug_option())

    def format_help(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        write_example(self.example, formatter)
        super().format_help(ctx, formatter)


def write_example(example: str, formatter: click.HelpFormatter) -> None:
    formatter.write("Example:\n")
    for line in example.splitlines():
        formatter.write(f"  {line}\n")
    formatter.write("\n")


def debug_option() -> click.Option:
    return click.Option(["--debug"], is_flag=True, expose_value=False, help="Show a traceback with an error.")


def setting_options(function: F) -> F:
    """Every setting of ``TrainConfig`` that has a flag, as an option; the function gets them as keyword arguments.

    Values stay texts: ``localsft.config.resolve`` converts and checks them, so that a flag and a config file are held to the
    same limits, in the same words.
    """
    from localsft.config import settings

    return _with_options([setting for setting in settings() if setting.has_flag], function)


def some_settings(*names: str) -> Callable[[F], F]:
    """The options of these settings of ``TrainConfig`` only, as ``setting_options`` makes them."""
    from localsft.config import settings

    return partial(_with_options, [setting for setting in settings() if setting.name in names])


def _with_options(chosen: Sequence[Setting], function: F) -> F:
    for setting in reversed(chosen):
        if setting.hint is bool:
            text = f"Do not {setting.help[0].lower()}{setting.help[1:]}" if setting.default else setting.help
            option = click.option(setting.flag, setting.name, flag_value=not setting.default, default=None, help=text)
        else:
            shown = ", ".join(setting.default) if isinstance(setting.default, tuple) else setting.default
            note = "" if setting.default is None else f"  [default: {shown}]"
            option = click.option(setting.flag, setting.name, metavar=_metavar(setting.hint), help=setting.help + note)
        function = option(function)
    return function


def given_settings(values: dict[str, Any]) -> dict[str, Any]:
    """The settings that were given on the command line, by key, for ``localsft.config.resolve``."""
    from localsft.config import settings

    return {setting.key: values[setting.name] for setting in settings() if values.get(setting.name) is not None}


def _metavar(hint: Any) -> str:
    from localsft.config import choices

    if choices(hint):
        return "|".join(choices(hint))
    parts = [hint] if hasattr(hint, "__metadata__") or not get_args(hint) else get_args(hint)
    names = []
    for part in parts:
        origin = getattr(part, "__origin__", part)
        if origin is int or origin is float:
            names.append("N" if origin is int else "X")
        elif getattr(hint, "__origin__", None) is not tuple:
            names.extend(choices(part))
    return "|".join(names) or "TEXT"
