"""A vocabulary out of GGUF metadata (keys ``tokenizer.ggml.*``, as llama.cpp reads them)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from localsft.errors import InputError
from localsft.tokenizer.core import ControlToken, Vocabulary
from localsft.tokenizer.plain import BpeEncoder, PlainEncoder, SentencePieceEncoder, sentencepiece_model, unreachable
from localsft.tokenizer.pretokenizers import find_pretokenizer

_NORMAL, _UNKNOWN, _CONTROL, _USER_DEFINED, _UNUSED, _BYTE = 1, 2, 3, 4, 5, 6
# llama.cpp treats these as control tokens whatever the file says.
_ALWAYS_CONTROL = frozenset(
    (
        "<|eot_id|>",
        "<|im_end|>",
        "<|end|>",
        "<|return|>",
        "<|call|>",
        "<end_of_turn>",
        "<|endoftext|>",
        "<|eom_id|>",
        "<|end_of_text|>",
        "<EOT>",
        "<｜end▁of▁sentence｜>",
    )
)


def read_gguf_vocabulary(metadata: Mapping[str, Any], where: str) -> Vocabulary:
    """The vocabulary of a GGUF file from its ``metadata``; ``where`` names the file in errors.

    Raises:
        InputError: a key is missing or malformed, or the kind of vocabulary is not one that chat models use.
    """
    kind = metadata.get("tokenizer.ggml.model")
    tokens = _strings(metadata, "tokenizer.ggml.tokens", where)
    types = [int(kind) for kind in metadata.get("tokenizer.ggml.token_type", ())] or [_NORMAL] * len(tokens)
    if len(types) != len(tokens):
        raise InputError(f"{where}: tokenizer.ggml.token_type has {len(types)} entries for {len(tokens)} tokens; fetch the file again")
    types = [_CONTROL if token in _ALWAYS_CONTROL else kind for token, kind in zip(tokens, types, strict=True)]
    if kind == "gpt2":
        encoder, token_bytes, add_bos = _byte_level(metadata, tokens, types, where)
        prefix = False
    elif kind == "llama":
        prefix = bool(metadata.get("tokenizer.ggml.add_space_prefix", True))
        encoder, token_bytes, add_bos = _sentencepiece(metadata, tokens, types, prefix, where)
    else:
        raise InputError(
            f"{where}: the vocabulary kind {kind!r} is not supported (gpt2 and llama are); "
            "put the model's tokenizer.json beside it and pass that folder as the tokenizer"
        )
    return Vocabulary(
        encoder=encoder,
        token_bytes=token_bytes,
        control=[ControlToken(i, token) for i, token in enumerate(tokens) if types[i] in (_CONTROL, _UNKNOWN) and token],
        bos_id=_special_id(metadata, "bos", len(tokens), 1 if kind == "llama" else None, where),
        eos_id=_special_id(metadata, "eos", len(tokens), 2 if kind == "llama" else None, where),
        pad_id=_special_id(metadata, "padding", len(tokens), None, where),
        extra_stop_ids=frozenset(
            token for name in ("eot", "eom") if (token := _special_id(metadata, name, len(tokens), None, where)) is not None
        ),
        add_bos=bool(metadata.get("tokenizer.ggml.add_bos_token", add_bos)),
        strip_first_space=prefix,
        chat_template=metadata.get("tokenizer.chat_template"),
        source=where,
        fingerprint=_fingerprint(metadata),
    )


def _fingerprint(metadata: Mapping[str, Any]) -> str:
    import xxhash

    digest = xxhash.xxh3_128()
    for key in sorted(key for key in metadata if key.startswith("tokenizer.ggml.")):
        value = metadata[key]
        digest.update(f"\0{key}\0".encode())
        digest.update("\0".join(map(str, [value] if isinstance(value, str | int | float) else value)).encode())
    return digest.hexdigest()


def _byte_level(
    metadata: Mapping[str, Any], tokens: Sequence[str], types: Sequence[int], where: str
) -> tuple[PlainEncoder, list[bytes], bool]:
    from tokenizers import AddedToken, Regex, Tokenizer, models, pre_tokenizers

    pretokenizer = find_pretokenizer(str(metadata.get("tokenizer.ggml.pre", "default")))
    vocab = {token if types[i] in (_NORMAL, _USER_DEFINED) else unreachable(i): i for i, token in enumerate(tokens)}
    merges = []
    for number, line in enumerate(_strings(metadata, "tokenizer.ggml.merges", where)):
        left, space, right = line[:1] + line[1:].partition(" ")[0], *line[1:].partition(" ")[1:]
        if not space:
            raise InputError(f"{where}: merge {number} of tokenizer.ggml.merges is not a pair of tokens; fetch the file again")
        merges.append((left, right))
    try:
        encoder = Tokenizer(models.BPE(vocab=vocab, merges=merges, ignore_merges=pretokenizer.ignore_merges))
    except Exception as error:  # the package raises bare Exception
        raise InputError(f"{where}: the BPE vocabulary can't be built ({error}); fetch the file again") from error
    encoder.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Split(Regex(pattern), "isolated") for pattern in pretokenizer.patterns]
        + [pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]
    )
    fixed = [token for i, token in enumerate(tokens) if types[i] == _USER_DEFINED]
    encoder.add_tokens([AddedToken(token, normalized=False) for token in fixed])
    byte_of = byte_alphabet()
    token_bytes = [byte_level_bytes(token, byte_of) if types[i] == _NORMAL else token.encode() for i, token in enumerate(tokens)]
    return BpeEncoder(encoder, by_spaces=pretokenizer.by_spaces, fixed=fixed), token_bytes, pretokenizer.add_bos


def _sentencepiece(
    metadata: Mapping[str, Any], tokens: Sequence[str], types: Sequence[int], prefix: bool, where: str
) -> tuple[PlainEncoder, list[bytes], bool]:
    scores = metadata.get("tokenizer.ggml.scores")
    if scores is None or len(scores) != len(tokens):
        raise InputError(f"{where}: tokenizer.ggml.scores is missing or does not match the tokens; fetch the file again")
    reachable = (_NORMAL, _USER_DEFINED, _BYTE)
    pieces = [(token if types[i] in reachable else unreachable(i), float(scores[i]), types[i]) for i, token in enumerate(tokens)]
    unknown = [i for i, kind in enumerate(types) if kind == _UNKNOWN]
    keep = unknown[0] if unknown else int(metadata.get("tokenizer.ggml.unknown_token_id", 0))
    pieces = [
        (piece, score, _UNKNOWN if i == keep else _CONTROL if kind == _UNKNOWN else kind) for i, (piece, score, kind) in enumerate(pieces)
    ]
    model = sentencepiece_model(pieces, byte_fallback=_BYTE in types)
    as_pieces = (_NORMAL, _BYTE)
    token_bytes = [piece_bytes(token, types[i] == _BYTE) if types[i] in as_pieces else token.encode() for i, token in enumerate(tokens)]
    return SentencePieceEncoder(model, prefix=prefix, where=where), token_bytes, True


def byte_alphabet() -> dict[str, int]:
    """GPT-2's printable stand-in for each byte, reversed (bytes_to_unicode in OpenAI's encoder.py)."""
    printable = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    others = [byte for byte in range(256) if byte not in printable]
    return {chr(byte): byte for byte in printable} | {chr(256 + i): byte for i, byte in enumerate(others)}


def byte_level_bytes(token: str, byte_of: Mapping[str, int]) -> bytes:
    """The bytes of a byte-level token; a token with characters outside the alphabet stands for its own text."""
    try:
        return bytes([byte_of[char] for char in token])
    except KeyError:
        return token.encode()


def piece_bytes(piece: str, is_byte: bool) -> bytes:
    """The bytes of a sentencepiece piece: ▁ is a space, ``<0x0A>`` one byte."""
    return bytes([int(piece[3:5], 16)]) if is_byte else piece.replace("▁", " ").encode()


def _strings(metadata: Mapping[str, Any], key: str, where: str) -> Sequence[str]:
    value = metadata.get(key)
    if value is None or isinstance(value, str) or not all(isinstance(item, str) for item in value):
        raise InputError(
            f"{where}: {key} is missing or is not a list of strings; fetch the file again or pass a folder with tokenizer.json"
        )
    return list(value)


def _special_id(metadata: Mapping[str, Any], name: str, size: int, default: int | None, where: str) -> int | None:
    value = metadata.get(f"tokenizer.ggml.{name}_token_id", default)
    if value is not None and not 0 <= int(value) < size:
        raise InputError(f"{where}: tokenizer.ggml.{name}_token_id is {value}, outside the vocabulary of {size}; fetch the file again")
    return None if value is None else int(value)
