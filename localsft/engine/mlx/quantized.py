"""A dense folder quantized by mlx-lm itself, for families whose tensors are not stored as its modules are (fused, or one an expert)."""

from __future__ import annotations

import contextlib
import io
from pathlib import Path

import mlx.core as mx
from mlx_lm.utils import load_model, quantize_model, save_config, save_model

from localsft.errors import InputError
from localsft.weights.load import BaseModel

GROUP = 64


def write_quantized(base: BaseModel, bits: int, folder: Path) -> None:
    """Weights in groups of 64 and config.json, as ``mlx_lm.convert -q`` would write them; on the CPU, so that every machine gets the
    same bits. Raises InputError for a family that mlx-lm lacks."""
    with mx.stream(mx.cpu):
        try:
            model, config = load_model(base.path, lazy=True)
        except (ValueError, TypeError, KeyError) as error:
            raise InputError(f"{base.path}: mlx-lm can't load this {base.config.model_type} model ({error}); take another base") from error
        with contextlib.redirect_stdout(io.StringIO()):  # it prints the bits per weight
            model, config = quantize_model(model, config, GROUP, bits)
        save_model(folder, model, donate_model=True)
    save_config(config, folder / "config.json")
