"""Token ids of one model's vocabulary: from GGUF metadata, tokenizer.json or a sentencepiece .model."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from localsft.errors import InputError
from localsft.tokenizer.core import ControlToken, DecodeStream, Tokenizer, Vocabulary

__all__ = ["ControlToken", "DecodeStream", "Tokenizer", "Vocabulary", "load_tokenizer"]


def load_tokenizer(source: Mapping[str, Any] | str | Path, where: str = "the GGUF file") -> Tokenizer:
    """The tokenizer of a model.

    Args:
        source: GGUF metadata (``open_gguf(path).metadata``), or the path of a model folder, a tokenizer.json or a
            sentencepiece .model; settings and the chat template are read from the files beside it.
        where: names the GGUF file in errors.

    Raises:
        InputError: nothing there, damaged, or a vocabulary that chat models don't use.
    """
    from localsft.tokenizer.gguf_vocab import read_gguf_vocabulary
    from localsft.tokenizer.hf import read_folder_vocabulary

    if isinstance(source, Mapping):
        return Tokenizer(read_gguf_vocabulary(source, where))
    path = Path(source)
    if path.is_file():
        return Tokenizer(read_folder_vocabulary(path.parent, path))
    for name in ("tokenizer.json", "tokenizer.model", "spiece.model"):
        if (path / name).is_file():
            return Tokenizer(read_folder_vocabulary(path, path / name))
    raise InputError(f"{path}: no tokenizer.json or tokenizer.model there; pass the model's folder or its GGUF file")
