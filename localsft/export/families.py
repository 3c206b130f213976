"""Which model families each target can express, and what their linears are called there.

A family is config.json's ``model_type``. GGUF: architecture and permuted q/k rows as llama.cpp's convert_hf_to_gguf.py has
them; tensor names come from the gguf package, which that converter uses too. Families whose converter splits, merges or
transposes linears (internlm2, deepseek, qwen3_next, gpt2, ...) are not in the table: an adapter on such a linear has no
low-rank counterpart of the same rank there.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from localsft.errors import MissingPart, UsageError
from localsft.weights.load import BaseModel
from localsft.weights.names import PERMUTED


@dataclass(frozen=True, slots=True)
class Family:
    """``gguf``: llama.cpp's architecture; ``permuted``: q and k rows in its order; ``peft``: HF names equal ours."""

    gguf: str
    permuted: bool = False
    peft: bool = True


FAMILIES: dict[str, Family] = {
    "llama": Family("llama", permuted=True),
    "mistral": Family("llama", permuted=True),
    "mixtral": Family("llama", permuted=True),
    "qwen2": Family("qwen2"),
    "qwen2_moe": Family("qwen2moe"),
    "qwen3": Family("qwen3"),
    "qwen3_moe": Family("qwen3moe"),
    "gemma": Family("gemma"),
    "gemma2": Family("gemma2"),
    "gemma3_text": Family("gemma3"),
    "phi3": Family("phi3"),
    "phimoe": Family("phimoe"),
    "smollm3": Family("smollm3", permuted=True),
    "granite": Family("granite", permuted=True),
    "granitemoe": Family("granitemoe", permuted=True),
    "olmo2": Family("olmo2"),
    "olmo3": Family("olmo2"),
    "olmoe": Family("olmoe"),
    "cohere": Family("command-r"),
    "cohere2": Family("cohere2"),
    "glm4": Family("glm4"),
    "starcoder2": Family("starcoder2"),
    "stablelm": Family("stablelm"),
}

_EXPERTS = re.compile(r"\.switch_mlp\.")
# Under block_sparse_moe the converter knows the experts by mixtral's own names.
_MIXTRAL_EXPERTS = re.compile(r"\.block_sparse_moe\.switch_mlp\.(gate|down|up)_proj")
_MIXTRAL_NAMES = {"gate": "w1", "down": "w2", "up": "w3"}


def family_of(model_type: str, target: str) -> Family:
    """Raises UsageError, naming family and target, for a family that the target can't express."""
    if model_type not in FAMILIES:
        raise UsageError(
            f"--to {target}: adapters of the {model_type} family can't be written for {target}, whose model arranges the weights "
            f"differently; export it --to mlx (families that can: {', '.join(FAMILIES)})"
        )
    return FAMILIES[model_type]


def gguf_architecture(base: BaseModel) -> str:
    """The architecture of the base as a GGUF: its own, where it is one."""
    own = base.metadata.get("general.architecture")
    return str(own) if own else family_of(base.config.model_type, "gguf").gguf


def permutes(base: BaseModel) -> bool:
    """Whether GGUF keeps the base's q and k rows permuted."""
    own = base.metadata.get("general.architecture")
    return own in PERMUTED if own else family_of(base.config.model_type, "gguf").permuted


def gguf_modules(modules: Iterable[str], base: BaseModel) -> dict[str, str]:
    """Linear -> its name in a GGUF of the base's architecture, without ``.weight``.

    Raises UsageError that names the linears which llama.cpp keeps in another form, MissingPart without the gguf package.
    """
    gguf = import_gguf()
    name = gguf_architecture(base)
    architecture = next((arch for arch, text in gguf.MODEL_ARCH_NAMES.items() if text == name), None)
    if architecture is None:
        raise UsageError(f"the gguf package does not know the architecture '{name}'; update it: pip install -U gguf")
    table = gguf.get_tensor_name_map(architecture, base.config.n_layers)
    names = {module: table.get_name(_converter_name(module)) for module in modules}
    unknown = [module for module, found in names.items() if found is None]
    if unknown:
        raise UsageError(f"llama.cpp's {name} has no counterpart of {named(unknown)}; export --to mlx, or train without (--targets)")
    return names


def _converter_name(module: str) -> str:
    """A linear under the name by which the converter finds its place: mlx-lm stacks experts as ``switch_mlp``."""
    module = _MIXTRAL_EXPERTS.sub(lambda found: f".block_sparse_moe.experts.{_MIXTRAL_NAMES[found[1]]}", module)
    return _EXPERTS.sub(".experts.", module)


def import_gguf():  # type: ignore[no-untyped-def]  # a module, which has no type
    """The gguf package. Raises MissingPart without it."""
    try:
        import gguf
    except ImportError:
        raise MissingPart("GGUF files are written with the gguf package, which is not installed: run pip install gguf") from None
    return gguf


def linears(base: BaseModel) -> dict[str, tuple[int, ...]]:
    """Every linear inside the layers of the base -> the shape of its weight, outputs first."""
    shapes = {name.removesuffix(".weight"): base.tensors.shape(name) for name in base.tensors if name.endswith(".weight")}
    return {name: shape for name, shape in shapes.items() if ".layers." in f".{name}" and len(shape) >= 2}


def layer_of(module: str) -> int:
    """The number in a linear's name; 0 where there is none."""
    return next((int(part) for part in module.split(".") if part.isdigit()), 0)


def named(items: Sequence[str], limit: int = 3) -> str:
    """ "a, b, c and 4 more"."""
    return ", ".join(items[:limit]) + (f" and {len(items) - limit} more" if len(items) > limit else "")
