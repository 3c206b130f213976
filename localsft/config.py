"""Every setting of a training run: the only home of defaults, limits and help texts.

A setting is one field below. The same field is a key of the TOML file (``[lora] rank = 8``), a flag of ``localsft train``
(``--rank 8``, generated from the field by ``localsft.cli``), a line of ``run.json``, and what the engine reads.
Values are checked in one place, ``resolve``; an error is one sentence that names the key or the flag.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Iterator, Mapping
from dataclasses import Field, asdict, dataclass, field, fields, is_dataclass, replace
from difflib import get_close_matches
from pathlib import Path
from typing import Annotated, Any, Literal, get_args, get_type_hints

import msgspec
from msgspec import Meta

from localsft.errors import UsageError

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

Linear = Literal["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
LINEARS: tuple[Linear, ...] = get_args(Linear)

Count = Annotated[int, Meta(ge=1)]
Seed = Annotated[int, Meta(ge=0, lt=2**32)]
Positive = Annotated[float, Meta(gt=0)]
NonNegative = Annotated[float, Meta(ge=0)]
Below1 = Annotated[float, Meta(ge=0, lt=1)]


def setting(default: Any, help: str, flag: bool = True) -> Any:
    """A field with its help text; ``flag=False`` keeps it out of the command line (TOML only)."""
    return field(default=default, metadata={"help": help, "flag": flag})


@dataclass(frozen=True, slots=True)
class LoraConfig:
    """The adapter: W + scale·(B·A) on the chosen linear layers."""

    rank: Count = setting(8, "Rank of the adapter.")
    alpha: Positive = setting(16.0, "Adapter strength: the update is scaled by alpha/rank (rslora: alpha/sqrt(rank)).")
    dropout: Below1 = setting(0.0, "Dropout on the adapter's input.")
    layers: Count | Literal["all"] = setting("all", "Adapt only the last N layers, or all.")
    targets: tuple[Linear, ...] = setting(LINEARS, "Linear layers to adapt, separated by commas.")
    variant: Literal["lora", "rslora", "dora"] = setting(
        "lora", "Kind of adapter: rslora scales by sqrt(rank), dora also trains the size of each output."
    )

    @property
    def scale(self) -> float:
        """The multiplier of B·A: alpha/rank, or alpha/√rank for rank-stabilised LoRA (arXiv:2312.03732)."""
        return self.alpha / (math.sqrt(self.rank) if self.variant == "rslora" else self.rank)


@dataclass(frozen=True, slots=True)
class OptimConfig:
    """AdamW, gradient clipping and the learning-rate schedule."""

    learning_rate: Positive = setting(2e-4, "Peak learning rate.")
    schedule: Literal["cosine", "linear", "constant"] = setting("cosine", "How the learning rate falls after the warm-up.")
    warmup: NonNegative = setting(0.05, "Warm-up: a fraction of all steps if below 1, else a number of steps.")
    weight_decay: NonNegative = setting(0.0, "Decoupled weight decay of AdamW.", flag=False)
    betas: tuple[Below1, Below1] = setting((0.9, 0.999), "Decay rates of AdamW's two moments.", flag=False)
    eps: Positive = setting(1e-8, "AdamW's epsilon.", flag=False)
    max_grad_norm: Positive = setting(1.0, "Clip the gradient to this global norm.", flag=False)

    def warmup_steps(self, steps: int) -> int:
        """Warm-up steps of a run of ``steps`` steps."""
        return int(self.warmup) if self.warmup >= 1 else round(self.warmup * steps)


@dataclass(frozen=True, slots=True)
class DataConfig:
    """What is read, what is supervised, and how examples are laid into batches."""

    path: str = setting("", "A file of conversations, or a folder with train, valid and test files.", flag=False)
    valid: str | None = setting(None, "Validation file. Default: the data folder's valid file, if there is one.")
    valid_fraction: Below1 = setting(0.0, "Hold out this fraction of the data for validation.")
    allow_leakage: bool = setting(False, "Train although validation rows stand in the training data too.")
    mask: Literal["assistant", "last", "all"] = setting("assistant", "Supervise all assistant turns, only the last one, or every token.")
    max_length: Count = setting(2048, "Longest example in tokens; longer ones are reported and left out.")
    tokens_per_pack: Count = setting(2048, "Most tokens computed at once; bounds memory, never changes what is learned.")
    pack: bool = setting(True, "Lay several examples into one batch without padding.")
    share_prefix: bool = setting(True, "Compute a prefix that several examples share only once.")


@dataclass(frozen=True, slots=True)
class TrainConfig:
    """A whole training run."""

    model: str = setting("smollm2-135m-instruct", "Base model: a catalogue name, a folder, a GGUF file, or a hub id.")
    quantize: Literal[4, 8] | None = setting(None, "Quantize a model folder of dense weights to so many bits. Default: as it is.")
    engine: Literal["auto", "cpu", "mlx"] = setting("auto", "What computes: mlx on Apple GPUs, cpu anywhere.")
    out: str | None = setting(None, "Run folder. Default: a new one in runs/.")
    init: str | None = setting(None, "Start from this adapter folder (of localsft import, or a run's adapter/), not from zero.")
    epochs: Count = setting(3, "Passes over the training data.")
    steps: Count | None = setting(None, "Number of optimizer steps, instead of epochs.")
    batch_size: Count = setting(8, "Examples in an optimizer step, however they are packed.")
    eval_every: Count | None = setting(None, "Validate every N steps. Default: after each epoch.")
    save_every: Count | None = setting(None, "Write a checkpoint every N steps. Default: after each epoch.")
    patience: Count | None = setting(None, "Stop after N validations without improvement. Default: never.")
    seed: Seed = setting(0, "Seed of the shuffle, the adapter's start and dropout.")
    threads: Count | None = setting(None, "Threads of the cpu engine. Default: one for each physical core.")
    lora: LoraConfig = LoraConfig()
    optim: OptimConfig = OptimConfig()
    data: DataConfig = DataConfig()


@dataclass(frozen=True, slots=True)
class Setting:
    """One leaf of ``TrainConfig``, as the command line, the TOML reader and the documentation see it."""

    key: str  # dotted, as in the TOML file: "lora.rank"
    name: str  # "rank"; unique over all settings
    hint: Any  # the annotated type
    default: Any
    help: str
    has_flag: bool

    @property
    def flag(self) -> str:
        """``--rank``; a switch that is on by default becomes ``--no-pack``."""
        return ("--no-" if self.hint is bool and self.default else "--") + self.name.replace("_", "-")

    @property
    def label(self) -> str:
        """How an error names this setting."""
        return f"{self.key} ({self.flag})" if self.has_flag else self.key


def settings(config_type: Any = TrainConfig, prefix: str = "") -> Iterator[Setting]:
    """Every leaf setting, in the order of the fields."""
    hints = get_type_hints(config_type, include_extras=True)
    entries: tuple[Field[Any], ...] = fields(config_type)
    for entry in entries:
        hint = hints[entry.name]
        if is_dataclass(hint):
            yield from settings(hint, f"{prefix}{entry.name}.")
        else:
            yield Setting(prefix + entry.name, entry.name, hint, entry.default, entry.metadata["help"], entry.metadata["flag"])


def resolve(*layers: Mapping[str, Any], origin: str = "") -> TrainConfig:
    """The configuration of nested or dotted mappings (``{"lora": {"rank": 4}}``, ``{"lora.rank": 4}``), later ones winning.

    Texts are converted as flags need it ("4" for an integer, "q_proj,v_proj" for a list). ``origin`` is put before a message.
    Raises ``UsageError`` for an unknown key (with the nearest known one), a value out of its type or limits, or settings that
    contradict each other.
    """
    known = {s.key: s for s in settings()}
    prefix = f"{origin}: " if origin else ""
    values: dict[str, Any] = {}
    for layer in layers:
        flat = dict(_flatten(layer, prefix, known))
        if flat.get("steps") is not None and "epochs" in flat:
            raise UsageError(f"{prefix}give either epochs (--epochs) or steps (--steps), not both")
        if "epochs" in flat or "steps" in flat:  # a later layer's epochs replace an earlier layer's steps, and the other way
            values.pop("epochs", None)
            values.pop("steps", None)
        values.update(flat)
    config = TrainConfig()
    groups: dict[str, dict[str, Any]] = {}
    for key, value in values.items():
        group, _, name = key.rpartition(".")
        groups.setdefault(group, {})[name] = _convert(known[key], value, prefix)
    nested = {group: replace(getattr(config, group), **chosen) for group, chosen in groups.items() if group}
    config = replace(config, **groups.get("", {}), **nested)
    _check(config, prefix)
    return config


def read_toml(path: Path) -> dict[str, Any]:
    """The settings of a TOML file, flat (``{"lora.rank": 8}``) and checked, for ``resolve``.

    Raises ``UsageError`` with file and line for a file that is missing or is not TOML, and as ``resolve`` does.
    """
    try:
        data = tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UsageError(f"{path}: no such file; give an existing TOML file to --config") from None
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise UsageError(f"{path}: can't be read as TOML: {error}") from None
    resolve(data, origin=str(path))
    return dict(_flatten(data, f"{path}: ", {s.key: s for s in settings()}))


def to_dict(config: TrainConfig) -> dict[str, Any]:
    """Nested plain values for JSON; ``resolve(to_dict(c)) == c``."""
    plain: dict[str, Any] = msgspec.to_builtins(asdict(config))
    if config.steps is not None:
        del plain["epochs"]  # not in force
    return plain


def _flatten(layer: Mapping[str, Any], prefix: str, known: Mapping[str, Setting], above: str = "") -> Iterator[tuple[str, Any]]:
    groups = {key.rpartition(".")[0] for key in known}
    for name, value in layer.items():
        key = f"{above}{name}"
        if isinstance(value, Mapping) and key in groups:
            yield from _flatten(value, prefix, known, f"{key}.")
        elif key in known:
            yield key, value
        elif key in groups:
            raise UsageError(f"{prefix}'{key}' is a group of settings; write [{key}] and the settings below it")
        else:
            raise UsageError(f"{prefix}unknown setting '{key}'; {_nearest_key(key, known)}")


def _nearest_key(key: str, known: Mapping[str, Setting]) -> str:
    group, _, name = key.rpartition(".")
    by_name = {s.name: s.key for s in known.values()}
    close = get_close_matches(name.replace("-", "_"), by_name, n=1, cutoff=0.6)
    if close:
        return f"did you mean '{by_name[close[0]]}'?"
    peers = [s.name for s in known.values() if s.key.rpartition(".")[0] == group]
    return f"the settings {f'of [{group}]' if group and peers else 'outside groups'} are {', '.join(peers or by_name)}"


def _convert(setting: Setting, value: Any, prefix: str) -> Any:
    given = value
    if isinstance(value, str) and setting.name == "targets":
        value = [part.strip() for part in value.split(",") if part.strip()]
    if setting.name == "targets" and isinstance(value, (list, tuple)):
        for name in value:
            if isinstance(name, str) and name not in LINEARS:
                near = get_close_matches(name, LINEARS, n=1, cutoff=0.5)
                hint = f"did you mean '{near[0]}'?" if near else f"choose from {', '.join(LINEARS)}"
                raise UsageError(f"{prefix}{setting.label}: unknown linear layer '{name}'; {hint}")
        value = list(dict.fromkeys(value))
    try:
        converted = msgspec.convert(value, setting.hint, strict=not isinstance(given, str))
    except msgspec.ValidationError:
        raise UsageError(f"{prefix}{setting.label} must be {describe(setting)}, not {given!r}") from None
    numbers = converted if isinstance(converted, tuple) else (converted,)
    if converted == () or any(isinstance(number, float) and not math.isfinite(number) for number in numbers):
        raise UsageError(f"{prefix}{setting.label} must be {describe(setting)}, not {given!r}")
    return converted


def _check(config: TrainConfig, prefix: str) -> None:
    if config.data.valid is not None and config.data.valid_fraction > 0:
        raise UsageError(f"{prefix}give either data.valid (--valid) or data.valid_fraction (--valid-fraction), not both")
    if config.optim.warmup >= 1 and config.optim.warmup != int(config.optim.warmup):
        raise UsageError(
            f"{prefix}optim.warmup (--warmup) must be a fraction below 1 or a whole number of steps, not {config.optim.warmup:g}"
        )


def choices(hint: Any) -> tuple[str, ...]:
    """What a type allows, as words, if it is a choice: ("cosine", "linear", "constant")."""
    return tuple(map(str, get_args(hint))) if getattr(hint, "__origin__", None) is Literal else ()


def describe(setting: Setting) -> str:
    """The values a setting takes, in words: "a whole number of at least 1"."""
    hint = setting.hint
    parts = [hint] if choices(hint) or hasattr(hint, "__metadata__") or not get_args(hint) else list(get_args(hint))
    if setting.name == "targets":
        return f"one or more of {', '.join(LINEARS)}"
    if setting.name == "betas":
        return "two numbers of at least 0 and below 1"
    return " or ".join(_describe_part(part) for part in parts if part is not type(None))


def _describe_part(part: Any) -> str:
    if choices(part):
        return "one of " + ", ".join(choices(part)) if len(choices(part)) > 1 else f"'{choices(part)[0]}'"
    if not hasattr(part, "__metadata__"):
        return {bool: "true or false", str: "a text"}[part]
    meta: Meta = part.__metadata__[0]
    limits = [
        f"{word} {limit}" for word, limit in (("of at least", meta.ge), ("above", meta.gt), ("and below", meta.lt)) if limit is not None
    ]
    return " ".join(["a whole number" if part.__origin__ is int else "a number", *limits])
