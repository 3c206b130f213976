"""A llama GGUF as transformers and tokenizers see it: its own weights as float32, a BPE tokenizer, a Hugging Face folder.

Needs the goldens' own environment (see make_goldens.py). To write the folder that the peer benchmark trains (bf16, about 270 MB):

    python tests/goldens/gguf_to_hf.py SmolLM2-135M-Instruct.Q4_1.gguf OUT_FOLDER
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import numpy as np
import torch
from gguf import GGUFReader, dequantize
from numpy.typing import NDArray
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

NAMES = {
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
    "attn_norm": "input_layernorm",
    "ffn_norm": "post_attention_layernorm",
}
CONTROL = 3  # gguf.TokenType.CONTROL


def value(reader: GGUFReader, key: str):
    """A metadata value as Python data."""
    return reader.fields[key].contents()


def hf_config(reader: GGUFReader) -> LlamaConfig:
    """The model's configuration in transformers' terms."""
    assert value(reader, "general.architecture") == "llama"
    d, heads = value(reader, "llama.embedding_length"), value(reader, "llama.attention.head_count")
    return LlamaConfig(
        hidden_size=d,
        intermediate_size=value(reader, "llama.feed_forward_length"),
        num_hidden_layers=value(reader, "llama.block_count"),
        num_attention_heads=heads,
        num_key_value_heads=value(reader, "llama.attention.head_count_kv"),
        head_dim=d // heads,
        vocab_size=value(reader, "llama.vocab_size"),
        max_position_embeddings=value(reader, "llama.context_length"),
        rope_parameters={"rope_type": "default", "rope_theta": value(reader, "llama.rope.freq_base")},
        rms_norm_eps=value(reader, "llama.attention.layer_norm_rms_epsilon"),
        tie_word_embeddings=not any(t.name == "output.weight" for t in reader.tensors),
        bos_token_id=value(reader, "tokenizer.ggml.bos_token_id"),
        eos_token_id=value(reader, "tokenizer.ggml.eos_token_id"),
        pad_token_id=value(reader, "tokenizer.ggml.padding_token_id"),
    )


def hf_name(name: str) -> str:
    """``blk.3.attn_q.weight`` -> ``model.layers.3.self_attn.q_proj.weight``."""
    whole = {"token_embd.weight": "model.embed_tokens.weight", "output_norm.weight": "model.norm.weight", "output.weight": "lm_head.weight"}
    if name in whole:
        return whole[name]
    _, layer, part, _ = name.split(".")
    return f"model.layers.{layer}.{NAMES[part]}.weight"


def unpermuted(rows: NDArray[np.float32], heads: int) -> NDArray[np.float32]:
    """Rows of q or k from GGUF's order, rotary pairs side by side, to Hugging Face's, first half and second half of a head."""
    n, k = rows.shape
    return rows.reshape(heads, n // heads // 2, 2, k).swapaxes(1, 2).reshape(n, k)


def hf_model(reader: GGUFReader) -> LlamaForCausalLM:
    """The GGUF's own weights (scale·q + bias in float32) in a float32 model."""
    config = hf_config(reader)
    heads = {"attn_q": config.num_attention_heads, "attn_k": config.num_key_value_heads}
    state = {}
    for tensor in reader.tensors:
        data = dequantize(tensor.data, tensor.tensor_type).astype(np.float32)
        part = tensor.name.split(".")[2] if tensor.name.startswith("blk.") else ""
        if part in heads:
            data = unpermuted(data, heads[part])
        state[hf_name(tensor.name)] = torch.from_numpy(np.ascontiguousarray(data))
    model = LlamaForCausalLM(config).float()
    missing, unexpected = model.load_state_dict(state, strict=False)
    assert not unexpected and set(missing) <= ({"lm_head.weight"} if config.tie_word_embeddings else set()), (missing, unexpected)
    model.tie_weights()
    return model.eval()


def bpe_tokenizer(reader: GGUFReader) -> Tokenizer:
    """The GGUF vocabulary as a ``tokenizers`` tokenizer with SmolLM's pre-tokenizer: single digits, then GPT-2's words as bytes."""
    assert (value(reader, "tokenizer.ggml.model"), value(reader, "tokenizer.ggml.pre")) == ("gpt2", "smollm")
    tokens, types = value(reader, "tokenizer.ggml.tokens"), value(reader, "tokenizer.ggml.token_type")
    merges = [tuple(merge.split(" ")) for merge in value(reader, "tokenizer.ggml.merges")]
    tokenizer = Tokenizer(models.BPE({token: i for i, token in enumerate(tokens)}, merges))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    control = [token for token, kind in zip(tokens, types, strict=True) if kind == CONTROL]
    tokenizer.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in control])
    return tokenizer


def write_folder(reader: GGUFReader, folder: Path) -> None:
    """config.json, model.safetensors in bf16, tokenizer files and chat template, as ``from_pretrained`` wants them."""
    model = hf_model(reader).to(torch.bfloat16)
    model.save_pretrained(folder)
    # transformers 5 writes theta inside rope_parameters only; readers of the older form would silently take their default.
    config = json.loads((folder / "config.json").read_text())
    config["rope_theta"] = value(reader, "llama.rope.freq_base")
    (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n")
    tokens = value(reader, "tokenizer.ggml.tokens")
    token = {kind: tokens[value(reader, f"tokenizer.ggml.{kind}_token_id")] for kind in ("bos", "eos", "padding")}
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=bpe_tokenizer(reader),
        bos_token=token["bos"],
        eos_token=token["eos"],
        pad_token=token["padding"],
        model_max_length=value(reader, "llama.context_length"),
        clean_up_tokenization_spaces=False,
    )
    tokenizer.chat_template = value(reader, "tokenizer.chat_template")
    tokenizer.save_pretrained(folder)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("gguf", type=Path)
    parser.add_argument("folder", type=Path)
    args = parser.parse_args()
    write_folder(GGUFReader(args.gguf), args.folder)


if __name__ == "__main__":
    main()
