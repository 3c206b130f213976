"""A vocabulary out of a Hugging Face folder: tokenizer.json, or a sentencepiece .model, with tokenizer_config.json."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from localsft.errors import InputError
from localsft.tokenizer.core import ControlToken, Vocabulary
from localsft.tokenizer.gguf_vocab import byte_alphabet, byte_level_bytes, piece_bytes
from localsft.tokenizer.plain import BpeEncoder, SentencePieceEncoder, unreachable
from localsft.tokenizer.pretokenizers import KNOWN_PATTERNS, takes_spaces

_MAX_FILE = 256 << 20  # bytes; the largest tokenizer.json in use is about 35 MB


def read_folder_vocabulary(folder: Path, file: Path) -> Vocabulary:
    """The vocabulary in ``file`` (tokenizer.json or *.model), with the settings that lie beside it in ``folder``.

    Raises:
        InputError: a file is missing, damaged or of a kind that chat models don't use.
    """
    import xxhash

    config = _read_json(folder / "tokenizer_config.json")
    generation = _read_json(folder / "generation_config.json") or _read_json(folder / "config.json")
    if file.suffix == ".json":
        vocabulary = _read_tokenizer_json(file)
    else:
        vocabulary = _read_sentencepiece(file, config)
    ids = {token.text: token.id for token in vocabulary.control}
    eos = generation.get("eos_token_id")
    stops = frozenset(int(i) for i in (eos if isinstance(eos, list) else [eos]) if isinstance(i, int))

    def named(key: str, default: int | None) -> int | None:
        value = config.get(key)
        text = value.get("content") if isinstance(value, Mapping) else value
        return ids.get(text, default) if isinstance(text, str) else default

    return replace(
        vocabulary,
        bos_id=named("bos_token", vocabulary.bos_id),
        eos_id=named("eos_token", vocabulary.eos_id if vocabulary.eos_id is not None else min(stops, default=None)),
        pad_id=named("pad_token", None),
        extra_stop_ids=frozenset(i for i in stops if i < len(vocabulary.token_bytes)),
        add_bos=bool(config.get("add_bos_token", vocabulary.add_bos)),
        chat_template=_chat_template(folder, config),
        fingerprint=xxhash.xxh3_128_hexdigest(_read_bytes(file) + repr((sorted(config.items(), key=str), sorted(stops))).encode()),
    )


def _chat_template(folder: Path, config: Mapping[str, Any]) -> str | None:
    file = folder / "chat_template.jinja"
    if file.is_file():
        return _read_bytes(file).decode("utf-8", "replace")
    template = config.get("chat_template") or _read_json(folder / "chat_template.json").get("chat_template")
    if isinstance(template, list):  # several named ones: [{"name": ..., "template": ...}]
        named = {row.get("name"): row.get("template") for row in template if isinstance(row, Mapping)}
        template = named.get("default")
    return template if isinstance(template, str) else None


def _read_tokenizer_json(file: Path) -> Vocabulary:
    data = _read_json(file)
    model = data.get("model")
    if not isinstance(model, dict) or model.get("type", "BPE") not in ("BPE", "Unigram"):
        kind = model.get("type") if isinstance(model, dict) else None
        raise InputError(f"{file}: a tokenizer model of type {kind!r} is not supported (BPE and Unigram are); use another base model")
    added = [row for row in data.get("added_tokens") or [] if isinstance(row, dict)]
    try:
        control = [
            ControlToken(int(row["id"]), str(row["content"]), bool(row.get("lstrip")), bool(row.get("rstrip")))
            for row in added
            if row["content"] and (row.get("special") or looks_like_control(str(row["content"])))
        ]
        user_defined = {int(row["id"]): str(row["content"]) for row in added}
    except (KeyError, TypeError, ValueError) as error:
        raise InputError(f"{file}: an entry of added_tokens lacks its id or content; fetch the file again") from error
    control_ids = {token.id for token in control}
    pieces = _hide_control(model, control, file)
    byte_level = _mentions(data.get("pre_tokenizer"), "ByteLevel") or _mentions(data.get("decoder"), "ByteLevel")
    if not byte_level and not _mentions(data.get("decoder"), "ByteFallback") and not _mentions(data.get("decoder"), "Metaspace"):
        raise InputError(f"{file}: neither a byte-level nor a sentencepiece-style vocabulary; use another base model")
    size = max([*pieces, *user_defined], default=-1) + 1
    if size == 0 or size > 4_000_000:
        raise InputError(f"{file}: the vocabulary has no tokens or impossible ids; fetch the file again")
    byte_of = byte_alphabet()
    fallback = bool(model.get("byte_fallback"))
    token_bytes = [b""] * size
    for i, piece in pieces.items():
        is_byte = fallback and len(piece) == 6 and piece.startswith("<0x") and piece.endswith(">")
        token_bytes[i] = byte_level_bytes(piece, byte_of) if byte_level else piece_bytes(piece, is_byte)
    for i, text in user_defined.items():
        token_bytes[i] = text.encode()

    adds_bos = _processor_starts_with_control(data)
    data |= {"post_processor": None, "truncation": None, "padding": None}
    data["added_tokens"] = [row for row in added if int(row["id"]) not in control_ids]
    prefixed = _load_tokenizer(data, file)
    bare_data, scheme = _without_prefix(data)
    bare = prefixed if scheme is None else _load_tokenizer(bare_data, file)
    return Vocabulary(
        encoder=BpeEncoder(
            bare,
            None if scheme is None else prefixed,
            prefix_after_control=scheme == "always",
            by_spaces=_cuts_at_spaces(data),
            fixed=[str(row["content"]) for row in data["added_tokens"]],
        ),
        token_bytes=token_bytes,
        control=control,
        bos_id=None,
        eos_id=None,
        add_bos=adds_bos,
        strip_first_space=scheme is not None,
        source=str(file),
    )


def looks_like_control(text: str) -> bool:
    """Whether an added token that is not flagged special is a control token all the same: some tokenizer.json files
    (DeepSeek's, for one) flag only a part of them. llama.cpp's converter uses the same test."""
    return (
        (text.startswith("<|") and text.endswith("|>")) or (text.startswith("<｜") and text.endswith("｜>")) or text in ("<pad>", "<mask>")
    )


def _hide_control(model: dict[str, Any], control: Sequence[ControlToken], file: Path) -> dict[int, str]:
    """Rename the control tokens in ``model``'s vocabulary, in place, so that plain text can't reach them.
    Returns id -> piece of the whole vocabulary as it was."""
    vocab = model.get("vocab")
    names = {token.id: token.text for token in control}
    if isinstance(vocab, dict):
        pieces = {int(i): str(piece) for piece, i in vocab.items()}
        model["vocab"] = {unreachable(i) if names.get(i) == piece else piece: i for i, piece in pieces.items()}
        if model.get("unk_token") in names.values():
            unk = next(i for i, text in names.items() if text == model["unk_token"])
            model["unk_token"] = unreachable(unk) if unk in pieces else None
        return pieces
    if isinstance(vocab, list):
        pieces = {i: str(row[0]) for i, row in enumerate(vocab)}
        model["vocab"] = [[unreachable(i) if names.get(i) == row[0] else row[0], row[1]] for i, row in enumerate(vocab)]
        return pieces
    raise InputError(f"{file}: the model has no vocab; fetch the file again")


def _without_prefix(data: dict[str, Any]) -> tuple[dict[str, Any], str | None]:
    """A copy of tokenizer.json that puts no leading space before text, and where it was put: None (nowhere),
    "first" (start of the text) or "always" (also after control tokens)."""
    scheme: str | None = None

    def strip(node: Any) -> Any:
        nonlocal scheme
        if isinstance(node, list):
            return [strip(item) for item in node if not (isinstance(item, dict) and is_prepend(item))]
        if not isinstance(node, dict):
            return node
        node = {key: strip(value) for key, value in node.items()}
        if node.get("type") == "Metaspace":
            place = node.get("prepend_scheme") or ("always" if node.get("add_prefix_space", True) else "never")
            scheme = scheme if place == "never" else place
            node |= {"prepend_scheme": "never"}
            node.pop("add_prefix_space", None)
        if node.get("type") == "ByteLevel" and node.get("add_prefix_space"):
            scheme = "always"
            node["add_prefix_space"] = False
        return node

    def is_prepend(node: dict[str, Any]) -> bool:
        nonlocal scheme
        if node.get("type") != "Prepend":
            return False
        scheme = "always"
        return True

    copy = dict(data)
    copy["pre_tokenizer"] = strip(data.get("pre_tokenizer"))
    normalizer = data.get("normalizer")
    copy["normalizer"] = None if isinstance(normalizer, dict) and is_prepend(normalizer) else strip(normalizer)
    return copy, scheme


def _cuts_at_spaces(data: Mapping[str, Any]) -> bool:
    """Whether no word of this tokenizer runs over a space: its pre-tokenizer is one that is known, its normalizer NFC at most."""
    normalizer, steps = data.get("normalizer"), data.get("pre_tokenizer")
    if normalizer is not None and normalizer.get("type") != "NFC":
        return False
    if not isinstance(steps, dict):
        return False
    for step in steps.get("pretokenizers", []) if steps.get("type") == "Sequence" else [steps]:
        pattern = step.get("pattern")
        known = (
            step.get("type") == "Digits"
            or (step.get("type") == "ByteLevel" and not step.get("add_prefix_space"))
            or (step.get("type") == "Split" and step.get("behavior") == "Isolated" and (pattern or {}).get("Regex") in KNOWN_PATTERNS)
        )
        if not known:
            return False
    return any(
        takes_spaces(step["pattern"]["Regex"]) if step["type"] == "Split" else step.get("use_regex", True)
        for step in _walk(steps)
        if step.get("type") in ("Split", "ByteLevel")
    )


def _processor_starts_with_control(data: Mapping[str, Any]) -> bool:
    """Whether tokenizer.json's post-processor (TemplateProcessing) puts a special token before every text."""
    for node in _walk(data.get("post_processor")):
        single = node.get("single")
        if node.get("type") == "TemplateProcessing" and isinstance(single, list) and single and "SpecialToken" in single[0]:
            return True
    return False


def _read_sentencepiece(file: Path, config: Mapping[str, Any]) -> Vocabulary:
    import sentencepiece

    content = _read_bytes(file)
    try:
        model = sentencepiece.SentencePieceProcessor(model_proto=content)
    except (RuntimeError, OSError, ValueError) as error:
        raise InputError(f"{file}: not a sentencepiece model ({error}); fetch the file again") from error
    size = int(model.get_piece_size())
    control = [ControlToken(i, model.id_to_piece(i)) for i in range(size) if model.is_control(i) or model.is_unknown(i)]
    token_bytes = [piece_bytes(model.id_to_piece(i), bool(model.is_byte(i))) for i in range(size)]
    prefix = (
        model.encode("a", out_type=int) != SentencePieceEncoder(content, prefix=False, where=str(file)).encode_runs(["a"], prefix=False)[0]
    )
    added = config.get("added_tokens_decoder")
    for key, row in sorted((int(key), row) for key, row in (added if isinstance(added, dict) else {}).items()):
        if key >= size and isinstance(row, dict) and row.get("content"):
            token_bytes += [b""] * (key + 1 - len(token_bytes))
            token_bytes[key] = str(row["content"]).encode()
            control.append(ControlToken(key, str(row["content"]), bool(row.get("lstrip")), bool(row.get("rstrip"))))
    return Vocabulary(
        encoder=SentencePieceEncoder(content, prefix=prefix, where=str(file)),
        token_bytes=token_bytes,
        control=control,
        bos_id=model.bos_id() if model.bos_id() >= 0 else None,
        eos_id=model.eos_id() if model.eos_id() >= 0 else None,
        add_bos=True,
        strip_first_space=prefix,
        source=str(file),
    )


def _walk(node: Any) -> Iterator[dict[str, Any]]:
    """Every JSON object in ``node``."""
    if isinstance(node, dict):
        yield node
    for child in node.values() if isinstance(node, dict) else node if isinstance(node, list) else ():
        yield from _walk(child)


def _mentions(node: Any, kind: str) -> bool:
    return any(part.get("type") == kind for part in _walk(node))


def _load_tokenizer(data: Mapping[str, Any], file: Path) -> Any:
    from tokenizers import Tokenizer

    try:
        return Tokenizer.from_str(json.dumps(data, ensure_ascii=False))
    except BaseException as error:  # a malformed file can end in the package's PanicException, a BaseException
        if isinstance(error, KeyboardInterrupt):
            raise
        raise InputError(f"{file}: the tokenizers package can't load it ({error}); fetch the file again") from error


def _read_bytes(file: Path) -> bytes:
    try:
        if file.stat().st_size > _MAX_FILE:
            raise InputError(f"{file}: larger than {_MAX_FILE >> 20} MiB, which no tokenizer file is; fetch it again")
        return file.read_bytes()
    except OSError as error:
        raise InputError(f"{file}: {error.strerror}; check the path") from error


def _read_json(file: Path) -> dict[str, Any]:
    if not file.is_file():
        return {}
    import orjson

    try:
        data = orjson.loads(_read_bytes(file))
    except orjson.JSONDecodeError as error:
        raise InputError(f"{file}: line {error.lineno}: not JSON ({error.msg}); fetch the file again") from error
    if not isinstance(data, dict):
        raise InputError(f"{file}: not a JSON object; fetch the file again")
    return data
