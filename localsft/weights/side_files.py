"""The files beside the weights of a model folder."""

from __future__ import annotations

import shutil
from pathlib import Path

# Everything that tokenizes, renders or ends a conversation.
SIDE_FILES = (
    "tokenizer.json", "tokenizer_config.json", "tokenizer.model", "spiece.model", "special_tokens_map.json", "added_tokens.json",
    "vocab.json", "merges.txt", "generation_config.json", "chat_template.jinja", "chat_template.json", "LICENSE", "LICENSE.txt",
)  # fmt: skip


def copy_side_files(source: Path, folder: Path) -> None:
    """Those of SIDE_FILES that ``source`` has, byte for byte."""
    for name in SIDE_FILES:
        if (source / name).is_file():
            shutil.copyfile(source / name, folder / name)
