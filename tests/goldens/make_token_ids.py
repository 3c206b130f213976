"""Compares two readings of one vocabulary, llama.cpp's and the `tokenizers` library's, and writes token_ids.json.

Needs the goldens' own environment (see make_goldens.py) and the output of make_token_vectors.mjs:

    python tests/goldens/make_token_ids.py SmolLM2-135M-Instruct.Q4_1.gguf llama_ids.json

They may differ only in texts with bytes that the vocabulary has no token for; any other difference is an error.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import tokenizers
from gguf import GGUFReader
from gguf_to_hf import bpe_tokenizer
from tokenizers import Tokenizer, pre_tokenizers

HERE = Path(__file__).resolve().parent
NOTE = (
    "plain[i]: ids of line i (from 0) of token_strings.jsonl, special tokens in it read as plain text. special[i]: the same text with "
    "special tokens parsed, for the lines that ask for it. Both are the reading of the tokenizers library and, but for "
    "llama_cpp_differs, of llama.cpp too. llama_cpp_differs[i]: llama.cpp's reading where plain[i] differs. The cause: this vocabulary "
    "has no token for the bytes 04 06 13 14 16 1D (nor for F1, F2 and those that UTF-8 never uses). Both readings drop such a byte, but "
    "tokenizers drops it before it merges, so that its neighbours may merge; llama.cpp after. The library's reading is the reference "
    "because the model's authors publish the tokenizer for that library."
)


def without_specials(tokenizer: Tokenizer) -> Tokenizer:
    """The same tokenizer with special tokens read as plain text."""
    state = json.loads(tokenizer.to_str())
    state["added_tokens"] = []
    return Tokenizer.from_str(json.dumps(state))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("gguf", type=Path)
    parser.add_argument("llama_ids", type=Path)
    args = parser.parse_args()
    texts = [json.loads(line)["text"] for line in (HERE / "token_strings.jsonl").read_text("ascii").splitlines()]
    llama = json.loads(args.llama_ids.read_text())
    with_specials = bpe_tokenizer(GGUFReader(args.gguf))
    no_specials = without_specials(with_specials)
    plain = [no_specials.encode(text).ids for text in texts]
    special = {i: with_specials.encode(texts[int(i)]).ids for i in llama["special"]}
    assert len(llama["plain"]) == len(texts)
    assert special == llama["special"]

    vocabulary = with_specials.get_vocab()
    absent = {c for c in pre_tokenizers.ByteLevel.alphabet() if c not in vocabulary}
    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    differs = {str(i): theirs for i, (ours, theirs) in enumerate(zip(plain, llama["plain"], strict=True)) if ours != theirs}
    for i in differs:
        assert absent & set(byte_level.pre_tokenize_str(texts[int(i)])[0][0]), texts[int(i)]
    document = {
        "note": NOTE,
        "vocabulary": args.gguf.name,
        "sources": [f"tokenizers {tokenizers.__version__}", llama["source"]],
        "plain": plain,
        "special": special,
        "llama_cpp_differs": differs,
    }
    (HERE / "token_ids.json").write_text(json.dumps(document, separators=(",", ":")) + "\n")
    print(len(plain), "texts,", len(special), "with specials parsed,", len(differs), "that llama.cpp reads differently")


if __name__ == "__main__":
    main()
