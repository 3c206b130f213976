"""The files beside the weights of a Hugging Face folder: copied from a folder base, made from the metadata of a GGUF base."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import orjson

from localsft.errors import UsageError
from localsft.session import LoadedModel
from localsft.tokenizer.pretokenizers import find_pretokenizer
from localsft.weights.config import ModelConfig
from localsft.weights.load import BaseModel
from localsft.weights.side_files import copy_side_files

_ARCHITECTURES = {"llama": "LlamaForCausalLM", "qwen2": "Qwen2ForCausalLM", "qwen3": "Qwen3ForCausalLM"}
_USER_DEFINED = 4  # of tokenizer.ggml.token_type


def write_side_files(folder: Path, model: LoadedModel, tokenizer_from: Path | None = None) -> None:
    """Tokenizer, template and generation settings: byte for byte those of a folder base or of ``tokenizer_from``, else made from the
    GGUF's vocabulary. Raises UsageError for a kind of vocabulary that tokenizer.json can't be made from."""
    source = tokenizer_from or (None if model.base.metadata else model.base.path)
    if source is not None:
        copy_side_files(source, folder)
        return
    write_gguf_tokenizer(folder, model)


def folder_config(model: LoadedModel, dtype: str) -> dict[str, Any]:
    """config.json: the base folder's own with its dtype set and its quantization taken out, or made from a GGUF's config."""
    base = model.base
    if not base.metadata:
        config: dict[str, Any] = orjson.loads((base.path / "config.json").read_bytes())
        config.pop("quantization", None)
        config.pop("quantization_config", None)
    else:
        config = config_of_gguf(base)
        tokenizer = model.tokenizer
        config |= {"bos_token_id": tokenizer.bos_id, "eos_token_id": tokenizer.eos_id, "pad_token_id": tokenizer.pad_id}
    config.pop("dtype", None)
    return config | {"torch_dtype": dtype}


def config_of_gguf(base: BaseModel) -> dict[str, Any]:
    """What transformers and mlx-lm build this model from. Raises UsageError for positions that config.json can't express."""
    config: ModelConfig = base.config
    scaling: Mapping[str, Any] | None = config.rope_scaling
    if scaling and scaling["rope_type"] == "factors":
        raise UsageError(
            f"--to merged: {base.path.name} scales each rotary pair by a factor of its own, which config.json can't say; "
            "give the model's Hugging Face folder as the base, or export --to merged-gguf"
        )
    return {
        "architectures": [_ARCHITECTURES[config.model_type]],
        "model_type": config.model_type,
        "hidden_size": config.hidden_size,
        "num_hidden_layers": config.n_layers,
        "intermediate_size": config.ffn_size,
        "num_attention_heads": config.n_heads,
        "num_key_value_heads": config.n_kv_heads,
        "head_dim": config.head_size,
        "vocab_size": config.vocab_size,
        "max_position_embeddings": config.max_positions,
        "rms_norm_eps": config.rms_eps,
        "rope_theta": config.rope_theta,
        "rope_scaling": None if scaling is None else dict(scaling),
        "tie_word_embeddings": config.tied_head,
        "attention_bias": config.qkv_bias,
        "mlp_bias": config.mlp_bias,
        "hidden_act": config.activation,
        "sliding_window": config.sliding_window,
        "use_cache": True,
    }


def write_gguf_tokenizer(folder: Path, model: LoadedModel) -> None:
    """tokenizer.json, tokenizer_config.json and generation_config.json from a GGUF with a byte-level BPE."""
    from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, processors

    metadata: Mapping[str, Any] = model.base.metadata
    if metadata.get("tokenizer.ggml.model") != "gpt2":
        raise UsageError(
            f"tokenizer.json can't be made from the '{metadata.get('tokenizer.ggml.model')}' vocabulary of {model.base.path.name}; "
            "give the folder of the original model with --tokenizer DIR"
        )
    tokens = metadata["tokenizer.ggml.tokens"]
    types = [int(kind) for kind in metadata.get("tokenizer.ggml.token_type", [1] * len(tokens))]
    control = set(model.tokenizer.control_tokens)
    pretokenizer = find_pretokenizer(str(metadata.get("tokenizer.ggml.pre", "default")))
    merges = [_pair(line) for line in metadata["tokenizer.ggml.merges"]]
    encoder = Tokenizer(models.BPE({token: i for i, token in enumerate(tokens)}, merges, ignore_merges=pretokenizer.ignore_merges))
    encoder.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Split(Regex(pattern), "isolated") for pattern in pretokenizer.patterns]
        + [pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]
    )
    encoder.decoder = decoders.ByteLevel()
    fixed = [(token, token in control) for i, token in enumerate(tokens) if token in control or types[i] == _USER_DEFINED]
    encoder.add_special_tokens([AddedToken(token, special=True, normalized=False) for token, special in fixed if special])
    encoder.add_tokens([AddedToken(token, normalized=False) for token, special in fixed if not special])
    tokenizer = model.tokenizer
    if tokenizer.add_bos and tokenizer.bos_id is not None:
        bos = tokens[tokenizer.bos_id]
        encoder.post_processor = processors.TemplateProcessing(single=[bos, "$A"], special_tokens=[(bos, tokenizer.bos_id)])
    encoder.save(str(folder / "tokenizer.json"))
    names = {"bos_token": tokenizer.bos_id, "eos_token": tokenizer.eos_id, "pad_token": tokenizer.pad_id}
    settings = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        **{key: tokens[i] for key, i in names.items() if i is not None},
        "add_bos_token": tokenizer.add_bos,
        "chat_template": model.template.source,
        "clean_up_tokenization_spaces": False,
        "model_max_length": model.base.config.max_positions,
    }
    write_json(folder / "tokenizer_config.json", settings)
    generation = {"bos_token_id": tokenizer.bos_id, "eos_token_id": sorted(tokenizer.stop_ids), "pad_token_id": tokenizer.pad_id}
    write_json(folder / "generation_config.json", {key: value for key, value in generation.items() if value is not None})


def _pair(line: str) -> tuple[str, str]:
    left, _, right = line[1:].partition(" ")
    return line[:1] + left, right


def write_json(path: Path, document: Mapping[str, Any]) -> None:
    path.write_bytes(orjson.dumps(dict(document), option=orjson.OPT_INDENT_2 | orjson.OPT_APPEND_NEWLINE))
