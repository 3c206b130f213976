"""The peer: LoRA fine-tuning of the same base on the same rows with TRL + PEFT on the CPU, as a user without localsft would run it.

Needs an environment of its own, apart from the project's, and a Hugging Face folder of the base:

    python3.11 -m venv venv-torch
    venv-torch/bin/pip install torch==2.13.0 transformers==5.23.0 peft==0.21.2 trl==1.16.0 datasets==5.2.0 accelerate==1.15.0 gguf==0.19.0
    venv-torch/bin/python tests/goldens/gguf_to_hf.py SmolLM2-135M-Instruct.Q4_1.gguf MODEL_FOLDER
    venv-torch/bin/python bench/peers/peer_trl.py MODEL_FOLDER DATA.jsonl --limit 64

DATA.jsonl holds {"messages": [...]} rows that end with an assistant turn, which alone is supervised; or rows that another program
rendered and tokenized, {"input_ids": [...], "labels": [...]} with -100 where a token is no target. The last line of stdout is one
JSON object: wall seconds of training alone, tokens of the rows without padding, tokens/s, examples/s, peak resident memory, losses,
settings.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import statistics
import tempfile
import time
from pathlib import Path

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import peft
import torch
import transformers
import trl
from datasets import Dataset
from peft import LoraConfig
from transformers import AutoModelForCausalLM, AutoTokenizer
from trl import SFTConfig, SFTTrainer

DTYPES = {"bf16": torch.bfloat16, "f32": torch.float32}


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", help="Hugging Face folder")
    parser.add_argument("data", type=Path)
    parser.add_argument("--epochs", type=int, default=1)
    parser.add_argument("--batch", type=int, default=8, help="examples per optimizer step")
    parser.add_argument("--rank", type=int, default=8, help="alpha is twice the rank")
    parser.add_argument("--lr", type=float, default=2e-4, help="constant")
    parser.add_argument("--max-len", type=int, default=2048)
    parser.add_argument("--dtype", choices=list(DTYPES), default="bf16")
    parser.add_argument("--threads", type=int, default=0, help="0: PyTorch's choice")
    parser.add_argument("--limit", type=int, default=0, help="first rows only")
    parser.add_argument("--in-order", action="store_true", help="batches of the rows as they come, not of rows of like length")
    return parser.parse_args()


def read_rows(path: Path, limit: int) -> Dataset:
    """Tokenized rows as they are; others split before their last turn: TRL supervises the completion alone."""
    rows = [json.loads(line) for line in path.read_text(encoding="utf-8").split("\n") if line.strip()]
    rows = rows[:limit] if limit else rows
    if "input_ids" in rows[0]:
        return Dataset.from_list(rows)
    return Dataset.from_list([{"prompt": row["messages"][:-1], "completion": row["messages"][-1:]} for row in rows])


def make_trainer(args: argparse.Namespace, data: Dataset) -> SFTTrainer:
    """The fastest plain settings found for the CPU: SDPA, no checkpointing, batches of rows of like length unless in order."""
    config = SFTConfig(
        output_dir=tempfile.mkdtemp(),
        use_cpu=True,
        per_device_train_batch_size=args.batch,
        num_train_epochs=args.epochs,
        learning_rate=args.lr,
        lr_scheduler_type="constant",
        max_length=args.max_len,
        completion_only_loss=None if "input_ids" in data.column_names else True,
        gradient_checkpointing=False,
        bf16=args.dtype == "bf16",  # TRL's default computes in bfloat16 whatever the weights are: slow where the CPU has none
        train_sampling_strategy="sequential" if args.in_order else "group_by_length",
        dataloader_num_workers=0,
        logging_steps=1,
        save_strategy="no",
        report_to=[],
        disable_tqdm=True,
        seed=0,
    )
    lora = LoraConfig(r=args.rank, lora_alpha=2 * args.rank, target_modules="all-linear", task_type="CAUSAL_LM")
    model = AutoModelForCausalLM.from_pretrained(args.model, dtype=DTYPES[args.dtype], attn_implementation="sdpa")
    tokenizer = AutoTokenizer.from_pretrained(args.model)
    return SFTTrainer(model=model, args=config, train_dataset=data, processing_class=tokenizer, peft_config=lora)


def main() -> None:
    args = parse_arguments()
    if args.threads:
        torch.set_num_threads(args.threads)
    data = read_rows(args.data, args.limit)
    trainer = make_trainer(args, data)
    tokens = sum(len(row["input_ids"]) for row in trainer.train_dataset) * args.epochs
    start = time.perf_counter()
    trainer.train()
    seconds = time.perf_counter() - start
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    result = {
        "peer": "trl+peft",
        "data": args.data.name,
        "examples": len(data),
        "epochs": args.epochs,
        "batch": args.batch,
        "rank": args.rank,
        "dtype": args.dtype,
        "threads": torch.get_num_threads(),
        "wall_s": round(seconds, 2),
        "real_tokens": tokens,
        "tok_s": round(tokens / seconds, 1),
        "examples_s": round(len(data) * args.epochs / seconds, 3),
        "peak_rss_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024,
        "first_loss": losses[0],
        "last_loss": losses[-1],
        "last_epoch_loss": statistics.mean(losses[-(len(losses) // args.epochs) :]),
        "steps": len(losses),
        "losses": losses,
        "versions": {m.__name__: m.__version__ for m in (torch, transformers, peft, trl)},
    }
    print(json.dumps(result))


if __name__ == "__main__":
    main()
