"""The mlx engine beside mlx_lm.lora on the same device, model and rows; prints one JSON object.

    python bench/mlx_engine.py --model MLX_FOLDER --data DATA.jsonl        on a Mac: what a user would train
    python bench/mlx_engine.py                                             a tiny random model and rows of mixed lengths

Both sides train LoRA of the same rank on every linear layer, in turn, each in a process of its own; the second epoch is timed, so
that compiling is not. tokens/s counts the tokens of the rows, padding and supervision aside, on both sides; memory is MLX's own
``get_peak_memory``. Before the first step both state their loss on the same rows: mlx-lm also trains the padding token behind each
row, so its own figure is given with and without it. ``cpu_seconds`` is the processor time of the timed epoch: on a busy machine it
tells more than the clock.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

Rows = list[tuple[list[int], int]]  # token ids, and where the supervised part begins


def main() -> None:
    a = arguments()
    if a.side:
        print(json.dumps({"ours": ours, "theirs": theirs}[a.side](a, json.loads(Path(a.rows).read_text()))))
        return
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        if a.model is None:
            a.model = str(random_model(folder / "model", a))
        rows = rows_of(a) if a.data else random_rows(a)
        rows = rows[: len(rows) // a.batch * a.batch]  # mlx-lm drops the tail
        (folder / "rows.json").write_text(json.dumps(rows))
        rounds = [{side: run(a, side, folder) for side in ("ours", "theirs")} for _ in range(a.rounds)]
    sides = {side: medians([r[side] for r in rounds]) for side in ("ours", "theirs")}
    lengths = [len(ids) for ids, _ in rows]

    def ratio(key: str) -> float:
        return statistics.median(r["ours"][key] / r["theirs"][key] for r in rounds)

    print(json.dumps({
        "model": a.model if a.data else f"random, {a.layers} layers of {a.hidden}, {a.vocabulary} tokens",
        "device": rounds[0]["ours"]["device"], "precision": rounds[0]["ours"]["precision"],
        "rows": len(rows), "tokens": sum(lengths), "longest": max(lengths), "supervised": sum(len(ids) - at for ids, at in rows),
        "batch": a.batch, "rank": a.rank, "checkpoint": a.checkpoint, **sides,
        "speedup": ratio("tokens_per_second"), "cpu_time_share": ratio("cpu_seconds"), "memory_share": ratio("peak_memory_mb"),
        "loss_difference": abs(ratio("first_loss") - 1),
    }, indent=1))  # fmt: skip


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model")
    parser.add_argument("--data")
    parser.add_argument("--checkpoint", action="store_true", help="Recompute layers in the backward pass, on both sides.")
    parser.add_argument("--no-share-prefix", action="store_true")
    numbers = {"batch": 4, "rank": 8, "rounds": 3, "tokens_per_pack": 2048, "max_length": 2048, "limit": 0}
    tiny = {"hidden": 64, "layers": 4, "vocabulary": 4096, "count": 24, "median_length": 100}
    for name, default in {**numbers, **tiny}.items():
        parser.add_argument(f"--{name.replace('_', '-')}", type=int, default=default)
    parser.add_argument("--side", help=argparse.SUPPRESS)
    parser.add_argument("--rows", help=argparse.SUPPRESS)
    return parser.parse_args()


def run(a: argparse.Namespace, side: str, folder: Path) -> dict[str, Any]:
    command = [sys.executable, __file__, "--side", side, "--rows", str(folder / "rows.json"), "--model", a.model]
    command += ["--batch", str(a.batch), "--rank", str(a.rank), "--tokens-per-pack", str(a.tokens_per_pack)]
    command += [flag for flag, on in (("--checkpoint", a.checkpoint), ("--no-share-prefix", a.no_share_prefix)) if on]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        sys.exit(f"{' '.join(command)} ended with {done.returncode}:\n{done.stderr[-3000:]}")
    result: dict[str, Any] = json.loads(done.stdout.strip().splitlines()[-1])
    return result


def medians(rounds: list[dict[str, Any]]) -> dict[str, Any]:
    return {k: statistics.median(r[k] for r in rounds) for k, v in rounds[0].items() if isinstance(v, int | float)}


def rows_of(a: argparse.Namespace) -> Rows:
    """DATA through our own template and tokenizer, the last turn supervised (all that mlx-lm can mask)."""
    from localsft.config import resolve
    from localsft.session import load_examples, load_model

    config = resolve({"data.path": a.data, "data.mask": "last", "data.max_length": a.max_length})
    examples = load_examples(config, load_model(a.model, Path(a.model))).train
    rows = [(example.token_ids.tolist(), int(np.flatnonzero(example.target_weights)[0])) for example in examples]
    return rows[: a.limit] if a.limit else rows


def random_rows(a: argparse.Namespace) -> Rows:
    """Lengths as chat data has them: log-normal, the longest several times the median; the last 40 % supervised."""
    random = np.random.default_rng(0)
    lengths = np.clip(random.lognormal(np.log(a.median_length), 0.7, a.count), 16, 8 * a.median_length).astype(int)
    return [(random.integers(1, a.vocabulary, n).tolist(), int(n * 0.6)) for n in lengths]


def random_model(folder: Path, a: argparse.Namespace) -> Path:
    import mlx.core as mx
    from mlx.utils import tree_flatten
    from mlx_lm.models.llama import Model, ModelArgs

    config = {
        "model_type": "llama", "hidden_size": a.hidden, "num_hidden_layers": a.layers, "intermediate_size": a.hidden * 8 // 3 // 32 * 32,
        "num_attention_heads": a.hidden // 32, "num_key_value_heads": max(1, a.hidden // 64), "rms_norm_eps": 1e-5,
        "vocab_size": a.vocabulary, "max_position_embeddings": 4096, "tie_word_embeddings": True,
    }  # fmt: skip
    mx.random.seed(0)
    folder.mkdir()
    mx.save_safetensors(str(folder / "model.safetensors"), dict(tree_flatten(Model(ModelArgs.from_dict(config)).parameters())))
    (folder / "config.json").write_text(json.dumps(config))
    return folder


def only_on_gpu() -> None:
    """Fused kernels on GPUs only: on CPUs MLX runs a C++ compiler for each of them."""
    import mlx.core as mx

    if mx.default_device() != mx.gpu:
        mx.disable_compile()


def ours(a: argparse.Namespace, rows: Rows) -> dict[str, Any]:
    import mlx.core as mx

    from localsft.batch import Example, LossSum
    from localsft.config import LoraConfig, OptimConfig
    from localsft.data.pack import epoch_order, pack_eval, pack_step
    from localsft.engine.mlx.engine import MlxEngine
    from localsft.weights.load import load_base

    only_on_gpu()
    engine = MlxEngine(load_base(a.model), LoraConfig(rank=a.rank, alpha=2.0 * a.rank), OptimConfig(), checkpoint=a.checkpoint)
    examples = [Example(np.array(ids, np.int32), (np.arange(len(ids)) >= max(at, 1)).astype(np.float32)) for ids, at in rows]
    scored = [(-engine.score(batch)[0].astype(np.float64), batch.target_weights) for batch in pack_eval(examples, a.tokens_per_pack)]
    first = sum(float(loss @ w) for loss, w in scored) / sum(float(w.sum()) for _, w in scored)
    mx.clear_cache()
    mx.reset_peak_memory()
    slots = computed = 0
    loss = LossSum()
    for epoch in range(2):
        started, cpu = time.perf_counter(), time.process_time()
        order = epoch_order(len(examples), 0, epoch)
        for at in range(0, len(order), a.batch):
            loss = LossSum()
            for batch in pack_step([examples[i] for i in order[at : at + a.batch]], a.tokens_per_pack, share_prefix=not a.no_share_prefix):
                loss += engine.accumulate(batch)
                computed += batch.n_tokens
                slots += engine.packing.layout(batch, engine.model.args.hidden_size).n_slots
            engine.step(1e-5)
        seconds, cpu = time.perf_counter() - started, time.process_time() - cpu
    return {
        "tokens_per_second": sum(len(ids) for ids, _ in rows) / seconds,
        "cpu_seconds": cpu,
        "peak_memory_mb": mx.get_peak_memory() / 1e6,
        "first_loss": first,
        "last_loss": loss.mean,
        "tokens_computed": computed / 2,
        "slots": slots / 2,
        "traces": engine.traces if engine.compiled else 0,
        "device": str(mx.default_device()),
        "precision": engine.info.details["precision"],
    }


def theirs(a: argparse.Namespace, rows: Rows) -> dict[str, Any]:
    import mlx.core as mx
    import mlx.optimizers as optimizers
    from mlx_lm.tuner.callbacks import TrainingCallback
    from mlx_lm.tuner.datasets import CacheDataset
    from mlx_lm.tuner.trainer import TrainingArgs, default_loss, iterate_batches, train
    from mlx_lm.tuner.utils import linear_to_lora_layers
    from mlx_lm.utils import load_model

    class Given:
        """Tokenized rows in the place of its ChatDataset: ``process`` gives (tokens, offset)."""

        def __getitem__(self, i: int) -> dict[str, Any]:
            return {"row": i}

        def __len__(self) -> int:
            return len(rows)

        def process(self, row: dict[str, Any]) -> Any:
            return rows[row["row"]]

    class Clock(TrainingCallback):
        def __init__(self) -> None:
            self.times: list[tuple[float, float]] = []
            self.losses: list[float] = []

        def on_train_loss_report(self, train_info: dict[str, Any]) -> None:
            self.times.append((time.perf_counter(), time.process_time()))
            self.losses.append(train_info["train_loss"])

    only_on_gpu()
    model, _ = load_model(Path(a.model))
    model.freeze()
    linear_to_lora_layers(model, len(model.layers), {"rank": a.rank, "scale": 2.0, "dropout": 0.0})
    dataset = CacheDataset(Given())
    sums = {"first_loss": [0.0, 0], "first_loss_with_padding": [0.0, 0]}
    for batch, lengths in iterate_batches(dataset, a.batch, 1 << 20):
        for name, last in (("first_loss", 1), ("first_loss_with_padding", 0)):
            loss, count = default_loss(model, batch, lengths - mx.array([[0, last]]))
            sums[name][0] += loss.item() * count.item()
            sums[name][1] += count.item()
    mx.clear_cache()
    mx.reset_peak_memory()
    steps = len(rows) // a.batch
    settings = TrainingArgs(
        batch_size=a.batch, iters=2 * steps, steps_per_report=1, steps_per_eval=1 << 30, steps_per_save=1 << 30,
        max_seq_length=1 << 20, adapter_file=str(Path(a.rows).with_name("adapters.safetensors")), grad_checkpoint=a.checkpoint,
    )  # fmt: skip
    clock = Clock()
    train(model, optimizers.AdamW(learning_rate=1e-5), dataset, args=settings, training_callback=clock)
    seconds, cpu = (end - start for end, start in zip(clock.times[-1], clock.times[steps - 1], strict=True))
    return {
        "tokens_per_second": sum(len(ids) for ids, _ in rows) / seconds,
        "cpu_seconds": cpu,
        "peak_memory_mb": mx.get_peak_memory() / 1e6,
        "last_loss": clock.losses[-1],
        **{name: total / count for name, (total, count) in sums.items()},
    }


if __name__ == "__main__":
    main()
