"""The words of a text, cut as a byte-level pre-tokenizer cuts it, so that each distinct word is encoded only once.

The ``tokenizers`` package cuts and merges a text of 100 tokens in about 200 µs; cutting it here and looking its words up
takes about 30 µs. Only texts over a small alphabet are cut here (ASCII, Latin, Cyrillic, common punctuation), of characters that
belong to the same classes in every version of Unicode, and so in every library. Other texts are left to ``tokenizers``.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable, Sequence

_CHANGED = "ª§¶ºİıſ"  # have changed their class, or are i and s to a match that ignores case
_CODES = (*range(0x80), *range(0xA0, 0x17F), *range(0x400, 0x460), *map(ord, "–—‘’“”•…€"))
_ALPHABET = [chr(code) for code in _CODES if chr(code) not in _CHANGED]
_SPACES = "\t\n\v\f\r \xa0"  # of the alphabet; \s of Oniguruma (Unicode White_Space), unlike Python's \s, lacks \x1c-\x1f
# What a pattern may consist of to be understood here; anything else leaves the text to the tokenizers package.
_PIECE = re.compile(
    r"\\p\{(?P<property>[A-Z][a-z]?)\}|\\(?P<space>[sS])|(?P<escape>\\[rn\\\]\[\-\$\+\^\|./])"
    r"|(?P<group>\(\?(?:i:|:|=|!)|\))|(?P<repeat>[*+?](?![+?])|\{[0-9,]+\}(?![+?]))|(?P<or>\|)|(?P<literal>[^\\()*+?{}\[\]|.^$])"
)


class WordSplitter:
    """Cuts texts over the alphabet into words; ``split`` gives None for any other text."""

    def __init__(self, patterns: Sequence[re.Pattern[str]], nfc: bool) -> None:
        self._patterns = patterns
        self._nfc = nfc
        self._other = re.compile(f"[^{''.join(map(re.escape, _ALPHABET))}]")

    def split(self, text: str) -> list[str] | None:
        """The words of ``text``, which together are the text; None if it has characters that are not looked at here."""
        if not text.isascii() and (self._other.search(text) or (self._nfc and not unicodedata.is_normalized("NFC", text))):
            return None
        pieces = [text]
        for pattern in self._patterns:
            pieces = [word for piece in pieces for word in _isolate(pattern, piece)]
        return pieces


def word_splitter(patterns: Sequence[str], nfc: bool = False) -> WordSplitter | None:
    """A splitter for Oniguruma patterns that are applied in turn, matches isolated; None if one can't be translated.

    ``nfc``: the text is brought to normal form C first, so that a text in another form is not split here.
    """
    try:
        return WordSplitter([re.compile(translate(pattern)) for pattern in patterns], nfc)
    except ValueError:
        return None


def translate(pattern: str) -> str:
    """An Oniguruma pattern for Python's re, equal on texts over the alphabet.

    Raises:
        ValueError: the pattern uses something that is not translated.
    """
    out: list[str] = []
    position = 0
    while position < len(pattern):
        if pattern[position] == "[":
            text, position = _translate_class(pattern, position)
            out.append(text)
            continue
        match = _PIECE.match(pattern, position)
        if match is None:
            raise ValueError(pattern)
        position = match.end()
        if match["property"] or match["space"]:
            out.append(f"[{_members(match)}]" if match["space"] != "S" else f"[^{_escape(_SPACES)}]")
        else:
            out.append(match[0])
    return "".join(out)


def _translate_class(pattern: str, start: int) -> tuple[str, int]:
    position = start + 1
    negated = pattern.startswith("^", position)
    position += negated
    members = ""
    while position < len(pattern) and pattern[position] != "]":
        if pattern.startswith("[", position):
            raise ValueError(pattern)  # nested classes
        match = _PIECE.match(pattern, position)
        if match and (match["property"] or match["space"]):
            if match["space"] == "S":
                raise ValueError(pattern)
            members += _members(match)
            position = match.end()
        elif pattern[position] == "\\":
            members += pattern[position : position + 2]
            position += 2
        else:
            members += re.escape(pattern[position]) if pattern[position] in "^&~|" else pattern[position]
            position += 1
    if position >= len(pattern):
        raise ValueError(pattern)
    if not members:  # classes that are empty over the alphabet
        return ("[^\\x00-\\U0010ffff]" if not negated else "[\\x00-\\U0010ffff]"), position + 1
    return f"[{'^' if negated else ''}{members}]", position + 1


def _members(match: re.Match[str]) -> str:
    if match["space"]:
        return _escape(_SPACES)
    name = match["property"]
    return _escape(char for char in _ALPHABET if unicodedata.category(char).startswith(name))


def _escape(characters: Iterable[str]) -> str:
    return "".join(f"\\u{ord(char):04x}" for char in characters)


def _isolate(pattern: re.Pattern[str], text: str) -> list[str]:
    """The matches in ``text`` and what lies between them, in order."""
    words: list[str] = pattern.findall(text)
    if sum(map(len, words)) == len(text):
        return words
    if not words:
        return [text]
    words, position = [], 0
    for match in pattern.finditer(text):
        words += [text[position : match.start()], match[0]]
        position = match.end()
    return [word for word in (*words, text[position:]) if word]
