"""``import``: adapters that PEFT, mlx-lm or llama.cpp trained or hold, as an adapter folder of ours that a run can start from."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from localsft.checkpoint import ADAPTER_FILE, save_adapter
from localsft.config import LINEARS, LoraConfig
from localsft.engine.adapter import adapter_shapes, fitting
from localsft.errors import InputError, Refused
from localsft.export.families import layer_of, linears, named
from localsft.export.gguf import read_gguf_lora
from localsft.export.lowrank import Update, mlx_tensors
from localsft.export.mlx import read_mlx
from localsft.export.peft import PEFT_FILE, read_peft
from localsft.export.source import check_base, check_fit
from localsft.session import LoadedModel

_BASE_HASH = "localsft.base_hash"


@dataclass(frozen=True, slots=True)
class Imported:
    """What was read: the format, the LoRA settings that describe it, and the base it names ('' where it names none)."""

    format: str
    lora: LoraConfig
    base_name: str
    linears: int


def import_adapter(path: Path, model: LoadedModel, out: Path) -> Imported:
    """Read an adapter of another program for ``model`` and write it as the adapter folder ``out``.

    Raises InputError that collects all that does not fit the base, UsageError for what can't be trained on (linears that one set of
    settings does not describe), Refused for an adapter of another base or an ``out`` that exists.
    """
    if out.exists():
        raise Refused(f"{out} (--out) exists already; choose a new folder")
    kind, updates, texts, base_name, dropout, rslora = _read(path, model)
    check_base(base_name, texts.get(_BASE_HASH, ""), model, path)
    check_fit(updates, model, path)
    lora = lora_of(updates, model, path, dropout, rslora)
    tensors = mlx_tensors(updates, lora.scale)
    fitted = fitting(tensors, adapter_shapes(linears(model.base), lora), str(path))
    save_adapter(out, fitted, lora, model.ref)
    return Imported(kind, lora, base_name, len(updates))


def _read(path: Path, model: LoadedModel) -> tuple[str, dict[str, Update], Mapping[str, str], str, float, bool]:
    """Format, updates, the file's texts, the base's name, dropout, whether rsLoRA."""
    if path.is_file() and path.suffix == ".gguf":
        updates, texts, metadata = read_gguf_lora(path, model.base, linears(model.base))
        name = str(metadata.get("localsft.base_name", metadata.get("general.base_model.0.name", "")))
        return "gguf-lora", updates, texts, name, 0.0, False
    if (path / PEFT_FILE).is_file():
        updates, texts, config = read_peft(path)
        dropout, rslora = float(config.get("lora_dropout") or 0.0), bool(config.get("use_rslora"))
        return "peft", updates, texts, str(config.get("base_model_name_or_path") or ""), dropout, rslora
    if (path / ADAPTER_FILE).is_file():
        updates, texts = read_mlx(path)
        return "mlx", updates, texts, texts.get("localsft.base_name", ""), 0.0, False
    if path.is_dir() and (found := sorted(path.glob("*.gguf"))):
        return _read(found[0], model)
    raise InputError(
        f"{path} is no adapter known here: give a folder with {PEFT_FILE} (PEFT) or {ADAPTER_FILE} (mlx-lm), or a GGUF adapter file"
    )


def lora_of(updates: Mapping[str, Update], model: LoadedModel, path: Path, dropout: float = 0.0, rslora: bool = False) -> LoraConfig:
    """The settings under which our engines would make exactly these tensors. InputError where there are none: other linears in
    different layers, or layers left out in the middle."""
    some = next(iter(updates.values()))
    dora = some.magnitude is not None
    rslora = rslora and not dora  # of both at once DoRA is kept; alpha makes the same scale
    alpha = some.scale * (some.rank**0.5 if rslora else some.rank)
    shapes = linears(model.base)
    layers = {name: layer_of(name) for name in shapes}
    lowest = min(layers[name] for name in updates)
    kinds = {name.rpartition(".")[2] for name in updates}
    every = {name.rpartition(".")[2] for name in shapes}
    targets = LINEARS if kinds == every else tuple(kind for kind in LINEARS if kind in kinds)
    n_layers = model.base.config.n_layers
    lora = LoraConfig(
        rank=some.rank,
        alpha=alpha,
        dropout=dropout,
        layers="all" if lowest == 0 else n_layers - lowest,
        targets=targets,
        variant="dora" if dora else "rslora" if rslora else "lora",
    )
    wanted = {
        name for name in shapes if layers[name] >= lowest and name.rpartition(".")[2] in (set(targets) if targets != LINEARS else every)
    }
    if wanted != set(updates):
        missing, extra = sorted(wanted - set(updates)), sorted(set(updates) - wanted)
        what = f"it lacks {named(missing)}" if missing else f"{named(extra)} can't be chosen with --targets"
        raise InputError(f"{path}: its linears are not the same ones in each of the last layers ({what}), so no run can continue it")
    return lora
