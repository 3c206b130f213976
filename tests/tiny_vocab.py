"""A small byte-level vocabulary of our own, so that tests of data need no model."""

from __future__ import annotations

from typing import Any

from localsft.tokenizer import Tokenizer, load_tokenizer

CHATML = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' + (message['content'] or '') }}"
    "{{ '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
CONTROL = ("<|endoftext|>", "<|im_start|>", "<|im_end|>", "<s>", "</s>", "[INST]", "[/INST]", "<|user|>", "<|assistant|>")


def byte_tokens() -> list[str]:
    """GPT-2's stand-ins for the 256 bytes."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    rest = iter(range(256, 512))
    return [chr(byte) if byte in printable else chr(next(rest)) for byte in range(256)]


def tiny_metadata(**changes: Any) -> dict[str, Any]:
    """GGUF metadata of a byte-level BPE: control tokens, one user-defined token, 256 bytes and a few merges."""
    merges = ["h e", "l l", "he ll", "hell o", "Ġ Ġ", "Ċ Ċ", "Ġ w", "o r", "Ġw or", "Ġwor l", "Ġworl d"]
    tokens = [*CONTROL, "<think>", *byte_tokens(), *(merge.replace(" ", "") for merge in merges)]
    types = [3] * len(CONTROL) + [4] + [1] * (len(tokens) - len(CONTROL) - 1)
    return {
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": "gpt-2",
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.token_type": types,
        "tokenizer.ggml.merges": merges,
        "tokenizer.ggml.bos_token_id": 1,
        "tokenizer.ggml.eos_token_id": 2,
        "tokenizer.ggml.add_bos_token": False,
        "tokenizer.chat_template": CHATML,
    } | changes


def tiny_tokenizer(**changes: Any) -> Tokenizer:
    """The tokenizer of ``tiny_metadata``."""
    return load_tokenizer(tiny_metadata(**changes), "tiny.gguf")
