from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from localsft.config import LINEARS, LoraConfig, OptimConfig, TrainConfig, describe, read_toml, resolve, settings, to_dict
from localsft.errors import UsageError


def test_nothing_given_is_the_defaults() -> None:
    assert resolve() == TrainConfig()


def test_later_layers_win_and_texts_are_converted() -> None:
    file = {"lora": {"rank": 4, "alpha": 8}, "steps": 100}
    flags = {"lora.rank": "16", "optim.learning_rate": "1e-3", "lora.layers": "4", "lora.targets": "q_proj, v_proj", "data.pack": False}
    config = resolve(file, flags)
    assert (config.lora.rank, config.lora.alpha, config.lora.layers) == (16, 8.0, 4)
    assert config.lora.targets == ("q_proj", "v_proj")
    assert (config.optim.learning_rate, config.steps, config.data.pack) == (1e-3, 100, False)
    assert isinstance(config.lora.alpha, float)


def test_epochs_given_later_replace_steps() -> None:
    assert resolve({"steps": 100}, {"epochs": 2}).steps is None
    assert resolve({"epochs": 2}, {"steps": 100}).steps == 100


@pytest.mark.parametrize(
    "layer", [{}, {"steps": 7}, {"epochs": 9, "lora.layers": 3, "data.valid": "v.jsonl"}, {"optim.betas": [0.8, 0.95]}]
)
def test_what_a_run_records_resolves_to_the_same(layer: dict[str, Any]) -> None:
    config = resolve(layer)
    assert resolve(to_dict(config)) == config


@pytest.mark.parametrize(
    ("layer", "message"),
    [
        ({"lora": {"rank": 0}}, "lora.rank (--rank) must be a whole number of at least 1, not 0"),
        ({"lora.rank": "8.5"}, "lora.rank (--rank) must be a whole number of at least 1, not '8.5'"),
        ({"seed": True}, "seed (--seed) must be a whole number of at least 0 and below 4294967296, not True"),
        ({"lora": {"rnak": 4}}, "unknown setting 'lora.rnak'; did you mean 'lora.rank'?"),
        ({"rank": 4}, "unknown setting 'rank'; did you mean 'lora.rank'?"),
        ({"learning-rate": 1}, "unknown setting 'learning-rate'; did you mean 'optim.learning_rate'?"),
        ({"data": {"zzz": 4}}, "unknown setting 'data.zzz'; the settings of [data] are path, valid,"),
        ({"lora": 4}, "'lora' is a group of settings; write [lora]"),
        ({"data.mask": "users"}, "data.mask (--mask) must be one of assistant, last, all, not 'users'"),
        ({"epochs": 1, "steps": 2}, "give either epochs (--epochs) or steps (--steps), not both"),
        ({"optim.learning_rate": float("nan")}, "optim.learning_rate (--learning-rate) must be a number above 0, not nan"),
        ({"optim.learning_rate": "inf"}, "optim.learning_rate (--learning-rate) must be a number above 0, not 'inf'"),
        ({"optim.betas": [0.9, float("nan")]}, "optim.betas must be two numbers"),
        ({"lora.layers": "al"}, "lora.layers (--layers) must be a whole number of at least 1 or 'all', not 'al'"),
        ({"lora.targets": ["qproj"]}, "lora.targets (--targets): unknown linear layer 'qproj'; did you mean 'q_proj'?"),
        ({"lora.targets": ""}, "lora.targets (--targets) must be one or more of q_proj,"),
        ({"lora.dropout": 1.0}, "lora.dropout (--dropout) must be a number of at least 0 and below 1, not 1.0"),
        ({"optim.warmup": 1.5}, "optim.warmup (--warmup) must be a fraction below 1 or a whole number of steps, not 1.5"),
        ({"data.valid": "v", "data.valid_fraction": 0.1}, "give either data.valid (--valid) or data.valid_fraction (--valid-fraction)"),
    ],
)
def test_errors_name_the_setting(layer: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError) as caught:
        resolve(layer)
    assert str(caught.value).startswith(message)
    assert "\n" not in str(caught.value)


def test_toml_file(tmp_path: Path) -> None:
    path = tmp_path / "run.toml"
    path.write_text('epochs = 5\n[lora]\nrank = 4\ntargets = ["q_proj"]\n')
    assert read_toml(path) == {"epochs": 5, "lora.rank": 4, "lora.targets": ["q_proj"]}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"[lora\n", "can't be read as TOML: "),
        (b"\xff\xfe", "can't be read as TOML: "),
        (b"[lora]\nrank = 0\n", "lora.rank (--rank) must be a whole number of at least 1, not 0"),
        (b"[lora]\nrnk = 1\n", "unknown setting 'lora.rnk'; did you mean 'lora.rank'?"),
    ],
)
def test_bad_toml_file_is_named(tmp_path: Path, content: bytes, message: str) -> None:
    path = tmp_path / "run.toml"
    path.write_bytes(content)
    with pytest.raises(UsageError) as caught:
        read_toml(path)
    assert str(caught.value).startswith(f"{path}: {message}")


def test_missing_toml_file(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"no such file; give an existing TOML file to --config"):
        read_toml(tmp_path / "none.toml")


def test_every_setting_has_a_unique_name_a_help_text_and_words_for_its_values() -> None:
    every = list(settings())
    assert len({s.name for s in every}) == len(every)
    for entry in every:
        assert entry.help.endswith(".")
        assert describe(entry)


def test_scale() -> None:
    assert LoraConfig(rank=16, alpha=32.0).scale == 2.0
    assert LoraConfig(rank=16, alpha=32.0, variant="rslora").scale == 8.0
    assert LoraConfig().targets == LINEARS


def test_warmup_is_a_fraction_or_steps() -> None:
    assert OptimConfig(warmup=0.1).warmup_steps(50) == 5
    assert OptimConfig(warmup=7.0).warmup_steps(50) == 7
    assert OptimConfig(warmup=0.0).warmup_steps(50) == 0
