"""At which tokens each target ends an answer, read from its own files by its own rule, without our tokenizer."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import orjson

from localsft.session import LoadedModel


@dataclass(frozen=True, slots=True)
class StopRule:
    """The ``ids`` at which a program ends an answer, the ``program``, and the ``file`` that says so."""

    ids: frozenset[int]
    program: str
    file: str


def rules_of(target: str, model: LoadedModel, folder: Path) -> list[StopRule]:
    """By what the target ends answers: one rule for each program that serves it. ``folder``: the export, whose own files are read where
    it is a whole model; adapters are served on the base's files."""
    base = model.base
    if target in ("gguf-lora", "merged-gguf", "ollama"):
        if base.metadata:
            return [StopRule(llama_cpp_stop_ids(base.metadata), "llama.cpp", "the GGUF")]
        return [StopRule(llama_cpp_stop_ids(_converted(base.path)), "llama.cpp", "the base converted to GGUF")]
    if target != "merged" and base.metadata:
        return [StopRule(model.tokenizer.stop_ids, "localsft", "the GGUF, as the Hugging Face folder is not here")]
    files = folder if target == "merged" else base.path
    found = []
    if target in ("mlx", "merged"):
        found.append(StopRule(mlx_lm_stop_ids(files), "mlx-lm", "generation_config.json, config.json and tokenizer_config.json"))
    if target == "peft" or (target == "merged" and "quantization" not in _json(files / "config.json")):
        found.append(StopRule(transformers_stop_ids(files), "transformers", "generation_config.json or config.json"))
    return found


def _converted(folder: Path) -> dict[str, Any]:
    """tokenizer.ggml.tokens and the id of eos as llama.cpp's converter writes them (gguf-py, SpecialVocab): by the tokenizer's eos_token,
    else by config.json."""
    ids, config = _token_ids(folder), _json(folder / "config.json")
    vocab_size = config.get("vocab_size")
    tokens = [""] * max(max(ids.values(), default=-1) + 1, vocab_size if isinstance(vocab_size, int) else 0)
    for text, number in ids.items():
        tokens[number] = text
    eos = ids.get(_eos_text(folder))
    if eos is None:
        eos = min(_ids(config.get("eos_token_id")), default=None)
    return {"tokenizer.ggml.tokens": tokens} | ({} if eos is None else {"tokenizer.ggml.eos_token_id": eos})


# llama.cpp's src/llama-vocab.cpp, llama_vocab::impl::load: special_eog_ids, and the names by which it finds an id that the file lacks.
_EOG = frozenset(
    (
        "<|eot_id|>", "<|im_end|>", "<|end|>", "<|return|>", "<|call|>", "<|flush|>", "<|calls|>", "<end_of_turn>", "<|endoftext|>", "</s>",
        "<|eom_id|>", "<EOT>", "_<EOT>", "[EOT]", "[EOS]", "<|end_of_text|>", "<end_of_utterance>", "<eos>", "<turn|>", "<|tool_response>",
        "<｜end▁of▁sentence｜>", "[e~[",
    )
)  # fmt: skip
_FIM = {
    "fim_pad": ("<|fim_pad|>", "<fim-pad>", "<fim_pad>", "<PAD>", "[PAD]"),
    "fim_rep": ("<|fim_repo|>", "<|repo_name|>", "<fim-repo>", "<REPO>", "<reponame>"),
    "fim_sep": ("<|file_sep|>",),
}
_DEFAULT_EOS = {"llama": 2, "gpt2": 11}  # where the file names no eos, or one outside of the vocabulary


def llama_cpp_stop_ids(metadata: Mapping[str, Any]) -> frozenset[int]:
    """llama.cpp's end-of-generation set for the vocabulary of a GGUF: eos, eot, eom and the fill-in-the-middle ends that the metadata
    name or that are found by their texts, and every token with one of the texts that it lists.

    ``metadata``: the keys ``tokenizer.ggml.*``; tokens are str. Older versions list fewer texts; their sets are smaller.
    """
    tokens = list(metadata.get("tokenizer.ggml.tokens", ()))
    ids = {text: number for number, text in enumerate(tokens)}

    def special(name: str) -> set[int]:
        value = metadata.get(f"tokenizer.ggml.{name}_token_id")
        return {value} if isinstance(value, int) and 0 <= value < len(tokens) else set()

    default_eos = {_DEFAULT_EOS.get(str(metadata.get("tokenizer.ggml.model")), len(tokens))} & set(range(len(tokens)))
    found = (special("eos") or default_eos) | special("eot") | special("eom")
    for name, texts in _FIM.items():
        # llama.cpp takes the first that its hash map yields: of files that have several, any may be it.
        found |= special(name) or {ids[text] for text in texts if text in ids}
    found |= {ids[text] for text in _EOG if text in ids}
    present = {tokens[number] for number in found}
    if "<|end|>" in present and ({"<|return|>", "<|call|>"} <= present or _calls_and_flush(present)):
        found.discard(ids["<|end|>"])  # harmony, solar-open: the end of a message, not of the turn
    if "</s>" in present and ("<|tool_response>" in present or "<|plamo:eos|>" in present):
        found.discard(ids["</s>"])  # an ordinary token there
    return frozenset(found)


def _calls_and_flush(present: set[str]) -> bool:
    return "<|flush|>" in present and bool({"<|call|>", "<|calls|>"} & present)


def transformers_stop_ids(folder: Path) -> frozenset[int]:
    """Where ``model.generate`` of transformers ends: eos_token_id of generation_config.json, and of config.json where that file is
    missing (GenerationConfig.from_model_config). The tokenizer has no say. Empty: it runs to max_new_tokens."""
    generation = folder / "generation_config.json"
    return _ids(_json(generation if generation.is_file() else folder / "config.json").get("eos_token_id"))


def mlx_lm_stop_ids(folder: Path) -> frozenset[int]:
    """Where mlx_lm.generate ends: eos_token_id of generation_config.json, or of config.json where that says nothing
    (mlx_lm.utils.load_config), and the eos_token of the tokenizer (TokenizerWrapper)."""
    named = _json(folder / "generation_config.json").get("eos_token_id") or _json(folder / "config.json").get("eos_token_id")
    eos = _token_ids(folder).get(_eos_text(folder))
    return _ids(named) | (frozenset() if eos is None else frozenset((eos,)))


def _eos_text(folder: Path) -> str:
    eos = _json(folder / "tokenizer_config.json").get("eos_token")
    return str(eos.get("content") if isinstance(eos, dict) else eos)


def _token_ids(folder: Path) -> dict[str, int]:
    """Text -> id of every token that tokenizer.json or tokenizer_config.json names."""
    document = _json(folder / "tokenizer.json")
    vocabulary = (document.get("model") or {}).get("vocab")
    found: dict[str, int] = dict(vocabulary) if isinstance(vocabulary, dict) else {}
    if isinstance(vocabulary, list):  # Unigram: [piece, score]
        found = {row[0]: number for number, row in enumerate(vocabulary)}
    found |= {row["content"]: int(row["id"]) for row in document.get("added_tokens") or []}
    decoder = _json(folder / "tokenizer_config.json").get("added_tokens_decoder") or {}
    return found | {row["content"]: int(number) for number, row in decoder.items()}


def _ids(value: Any) -> frozenset[int]:
    return frozenset(int(one) for one in (value if isinstance(value, list) else [value]) if isinstance(one, int))


def _json(path: Path) -> dict[str, Any]:
    try:
        document = orjson.loads(path.read_bytes())
    except (OSError, ValueError):
        return {}
    return document if isinstance(document, dict) else {}
