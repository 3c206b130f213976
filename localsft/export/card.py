"""README.md of an exported folder: a model card whose front matter the Hugging Face hub reads, and how to use the files."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from localsft.export.proof import Check
from localsft.export.source import Provenance

LIBRARIES = {"mlx": "mlx", "peft": "peft", "gguf-lora": "gguf", "merged": "transformers", "merged-gguf": "gguf", "ollama": "gguf"}

# What .gitattributes of a hub repository says about files that git should not diff.
GIT_ATTRIBUTES = "*.safetensors filter=lfs diff=lfs merge=lfs -text\n*.gguf filter=lfs diff=lfs merge=lfs -text\n"


def write_card(folder: Path, target: str, title: str, provenance: Provenance, checks: Sequence[Check], usage: str) -> None:
    """Write README.md: front matter (licence, base, library), where it comes from, what was proven, ``usage``."""
    front: dict[str, Any] = {
        "base_model": provenance.base_model or None,
        "base_model_relation": "adapter" if target in ("mlx", "peft", "gguf-lora") else "finetune",
        "library_name": LIBRARIES[target],
        "license": provenance.licence.lower() or None,
        "pipeline_tag": "text-generation",
        "tags": ["localsft", *(["lora"] if target in ("mlx", "peft", "gguf-lora") else [])],
    }
    lines = ["---", *(f"{key}: {json.dumps(value)}" for key, value in front.items() if value), "---", "", f"# {title}", ""]
    lines += [f"Trained with localsft {provenance.localsft} on {_code(provenance.base_name)}.", "", "| | |", "|---|---|"]
    rows = {
        "base model": provenance.base_model,
        "base file, sha256": provenance.base_hash,
        "training data, fingerprint": provenance.data_fingerprint,
        "licence of the base": provenance.licence,
        **{name.replace("_", " "): f"{value:g}" for name, value in provenance.metrics.items()},
    }
    lines += [f"| {name} | {_code(value)} |" for name, value in rows.items() if value]
    lines += ["", "## Use", "", usage.strip(), "", "## Proof", ""]
    lines += [f"- {check.name}: {_plain(check.detail)}" for check in checks if check.ok]
    lines += ["", "`localsft.json` holds the figures and the hash of every file; `localsft verify` checks them again.", ""]
    (folder / "README.md").write_text("\n".join(lines), encoding="utf-8")


def _code(text: str) -> str:
    return f"`{_plain(text)}`"


def _plain(text: str) -> str:
    """One line that can't end a table cell or start markup."""
    return " ".join(text.split()).replace("|", "\\|").replace("`", "'")


_PIPELINE = """python -c "
import transformers
chat = transformers.pipeline('text-generation', '.')
print(chat([{'role': 'user', 'content': 'Hello'}])[0]['generated_text'][-1])"
"""

_PEFT = """```python
from peft import AutoPeftModelForCausalLM
from transformers import AutoTokenizer

model = AutoPeftModelForCausalLM.from_pretrained(".")
tokenizer = AutoTokenizer.from_pretrained("{base}")
messages = [{{"role": "user", "content": "Hello"}}]
ids = tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_tensors="pt", return_dict=True)
print(tokenizer.decode(model.generate(**ids, max_new_tokens=100)[0]))
```"""


def usage_of(target: str, provenance: Provenance) -> str:
    """Commands from the folder to a first answer."""
    base = provenance.base_model or provenance.base_name
    commands = {
        "mlx": f"mlx_lm.generate --model {base} --adapter-path . --prompt 'Hello'",
        "gguf-lora": f"llama-cli -m {Path(provenance.base_name).name} --lora adapter.gguf -p 'Hello'",
        "merged": _PIPELINE.strip(),
        "merged-gguf": "llama-cli -m model.gguf -p 'Hello'",
        "ollama": "ollama create NAME -f Modelfile && ollama run NAME Hello",
    }
    return _PEFT.format(base=base) if target == "peft" else f"```sh\n{commands[target]}\n```"
