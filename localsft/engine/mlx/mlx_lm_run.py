"""Runs token ids through mlx-lm itself, for the proof of an export: ``python -m localsft.engine.mlx.mlx_lm_run REQUEST.json``.

Nothing of our engine takes part: the model comes from mlx-lm's loader, the adapter from its ``load_adapters``, decoding from its
``generate_step``. The request: {model, adapter, prompts, max_tokens, conversations, logits, base_logits}. Writes the logits after each
prompt as float32 (prompts, V) to the files ``logits`` and ``base_logits``, and one JSON document to the file ``result``.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
from mlx_lm import __version__
from mlx_lm.generate import generate_step
from mlx_lm.models.cache import make_prompt_cache
from mlx_lm.tuner.utils import load_adapters
from mlx_lm.utils import load_model, load_tokenizer


def last_logits(model: Any, prompts: list[list[int]]) -> np.ndarray[Any, Any]:
    """float32 (prompts, V)."""
    rows = []
    for prompt in prompts:
        out = model(mx.array([prompt]), cache=make_prompt_cache(model))[0, -1].astype(mx.float32)
        rows.append(np.array(out))
    return np.stack(rows)


def greedy(model: Any, prompt: list[int], most: int, stop_ids: set[int]) -> list[int]:
    """Token ids up to and with a stop token."""
    found: list[int] = []
    for token, _ in generate_step(mx.array(prompt), model, max_tokens=most):
        found.append(int(token))
        if found[-1] in stop_ids:
            break
    return found


def main() -> None:
    request = json.loads(Path(sys.argv[1]).read_text())
    folder, prompts = Path(request["model"]), request["prompts"]
    model, config = load_model(folder)
    model.eval()
    if request.get("base_logits"):
        last_logits(model, prompts).tofile(request["base_logits"])
    if request.get("adapter"):
        model = load_adapters(model, request["adapter"])
        model.eval()
    last_logits(model, prompts).tofile(request["logits"])
    eos = config.get("eos_token_id")
    stops = {int(i) for i in (eos if isinstance(eos, list) else [eos]) if i is not None}
    rendered = None
    if (folder / "tokenizer_config.json").is_file():
        tokenizer = load_tokenizer(folder, eos_token_ids=eos)  # as mlx_lm.load does
        stops = {int(i) for i in tokenizer.eos_token_ids}
        rendered = [
            list(tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_dict=False))
            for messages in request["conversations"]
        ]
    generated = [greedy(model, prompt, request["max_tokens"], stops) for prompt in prompts]
    document = {"version": __version__, "generated": generated, "stop_ids": sorted(stops), "rendered": rendered}
    Path(request["result"]).write_text(json.dumps(document))


if __name__ == "__main__":
    main()
