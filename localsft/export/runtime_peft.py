"""Runs token ids through transformers, with a PEFT adapter or without, for the proof of an export: ``python runtime_peft.py REQUEST.json``.

Stands by itself, so that it also runs in an environment without localsft. The request: {model, adapter, prompts, max_tokens,
conversations, logits, base_logits}. Writes the logits after each prompt as float32 (prompts, V) to the files ``logits`` and
``base_logits``, and one JSON document to the file ``result``.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any


def main() -> None:
    import torch
    import transformers

    request = json.loads(Path(sys.argv[1]).read_text())
    folder, prompts = request["model"], request["prompts"]
    model: Any = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    version = f"transformers {transformers.__version__}"
    if request.get("adapter"):
        import peft

        model = peft.PeftModel.from_pretrained(model, request["adapter"])
        version += f", peft {peft.__version__}"
    model.eval()

    @torch.no_grad()  # type: ignore[untyped-decorator, unused-ignore]
    def last_logits() -> Any:
        return torch.stack([model(torch.tensor([prompt])).logits[0, -1].float() for prompt in prompts]).numpy()

    if request.get("base_logits"):
        with model.disable_adapter():
            last_logits().tofile(request["base_logits"])
    last_logits().tofile(request["logits"])
    eos = model.generation_config.eos_token_id  # where generate ends by itself
    stops = sorted({int(i) for i in (eos if isinstance(eos, list) else [eos]) if i is not None})
    generated = []
    for prompt in prompts:
        ids = torch.tensor([prompt])
        out = model.generate(
            input_ids=ids, attention_mask=torch.ones_like(ids), do_sample=False, max_new_tokens=request["max_tokens"],
            pad_token_id=stops[0] if stops else None, temperature=None, top_p=None, top_k=None, repetition_penalty=1.0,
        )  # fmt: skip
        generated.append(out[0, len(prompt) :].tolist())
    rendered = None
    if (Path(folder) / "tokenizer_config.json").is_file():
        tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
        rendered = [tokenizer.apply_chat_template(c, add_generation_prompt=True, return_dict=False) for c in request["conversations"]]
    document = {"version": version, "generated": generated, "stop_ids": stops, "rendered": rendered}
    Path(request["result"]).write_text(json.dumps(document))


if __name__ == "__main__":
    main()
