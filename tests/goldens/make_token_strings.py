"""Writes token_strings.jsonl: the texts on which tokenizers are compared. Standard library only, seeded.

    python tests/goldens/make_token_strings.py

One JSON object a line: {"text": ...}, and "special": true where the text is also to be read with special tokens parsed.
Written texts come first, then combinations of them, then random runs of code points that a tokenizer meets in the wild.
Only code points of Unicode 12 are drawn, so that no tokenizer's character tables are too old for them; no lone surrogates.
"""

from __future__ import annotations

import json
import random
from pathlib import Path

from token_texts import CODE, CONTRACTIONS, EMOJI, ENGLISH, LANGUAGES, NUMBERS, SPECIALS, SYMBOLS, URLS, WHITESPACE

HERE = Path(__file__).resolve().parent

# First and last code point of runs that hold no unassigned ones, or that are wholly of one kind.
RUNS = {
    "latin-1": (0xA1, 0xFF),
    "latin extended": (0x100, 0x24F),
    "ipa": (0x250, 0x2AF),
    "modifiers": (0x2B0, 0x2FF),
    "combining": (0x300, 0x36F),
    "greek": (0x3A3, 0x3FF),
    "cyrillic": (0x400, 0x52F),
    "armenian": (0x561, 0x587),
    "hebrew": (0x5D0, 0x5EA),
    "arabic": (0x620, 0x6FF),
    "devanagari": (0x900, 0x97F),
    "tamil": (0xBBE, 0xBC2),
    "thai": (0xE01, 0xE3A),
    "georgian": (0x10D0, 0x10FF),
    "hangul jamo": (0x1100, 0x11FF),
    "cherokee": (0x13A0, 0x13F4),
    "runic": (0x16A0, 0x16F8),
    "punctuation": (0x2010, 0x2027),
    "super and subscripts": (0x2074, 0x208E),
    "currency": (0x20A0, 0x20BF),
    "letterlike": (0x2100, 0x214F),
    "number forms": (0x2150, 0x2188),
    "arrows": (0x2190, 0x21FF),
    "mathematical": (0x2200, 0x22FF),
    "enclosed": (0x2460, 0x24FF),
    "box drawing": (0x2500, 0x257F),
    "dingbats": (0x2701, 0x27BF),
    "braille": (0x2800, 0x28FF),
    "cjk punctuation": (0x3001, 0x303F),
    "kana": (0x3041, 0x3096),
    "katakana": (0x30A1, 0x30FE),
    "cjk": (0x4E00, 0x9FEF),
    "cjk extension a": (0x3400, 0x4DB5),
    "hangul": (0xAC00, 0xD7A3),
    "private use": (0xE000, 0xF8FF),
    "presentation forms": (0xFE70, 0xFE74),
    "full width": (0xFF01, 0xFFBE),
    "gothic": (0x10330, 0x1034A),
    "cuneiform": (0x12000, 0x12399),
    "mathematical letters": (0x1D400, 0x1D454),
    "mathematical digits": (0x1D7CE, 0x1D7FF),
    "emoji": (0x1F300, 0x1F64F),
    "cjk extension b": (0x20000, 0x2A6D6),
    "tags": (0xE0020, 0xE007F),
}
CONTROLS = [*range(0x20), 0x7F, *range(0x80, 0xA0)]
INVISIBLES = [0xA0, 0xAD, 0x1680, 0x180E, *range(0x2000, 0x2010), 0x2028, 0x2029, 0x202F, 0x205F, 0x2060, 0x3000, 0xFEFF, 0xFFFC, 0xFFFD]
PUNCTUATION = "!\"#$%&'()*+,-./:;<=>?@[\\]^_`{|}~"


def written() -> list[str]:
    """The texts of token_texts.py as they are, and each with a space or a newline in front."""
    texts = [*LANGUAGES, *ENGLISH, *CONTRACTIONS, *CODE, *NUMBERS, *URLS, *EMOJI, *SYMBOLS, *WHITESPACE]
    return texts + [" " + t for t in texts[::3]] + ["\n" + t for t in texts[1::4]] + [t.upper() for t in texts[::5]]


def joined(rng: random.Random, n: int) -> list[str]:
    """Pieces of the written texts, joined by whatever may stand between them."""
    pieces = [*LANGUAGES, *ENGLISH, *CONTRACTIONS, *CODE, *NUMBERS, *URLS, *EMOJI, *SYMBOLS]
    glue = ["", "", " ", "  ", "\n", "\n\n", "\t", "\r\n", " - ", ", ", "...", "—", "'", '"', "/", "\u00a0", "\u200b"]
    texts = []
    for _ in range(n):
        text = ""
        for _ in range(rng.randint(2, 4)):
            piece = rng.choice(pieces)
            start = rng.randrange(len(piece))
            text += piece[start : start + rng.randint(1, 40)] + rng.choice(glue)
        texts.append(text)
    return texts


def of_runs(rng: random.Random) -> list[str]:
    """Random code points of each run: alone, among ASCII, and in one text with another run."""
    texts = []
    for first, last in RUNS.values():
        for _ in range(8):
            texts.append("".join(chr(rng.randint(first, last)) for _ in range(rng.randint(1, 14))))
        for _ in range(4):
            words = [rng.choice(["a", " the", "x1", "\n", "'s", " 12", " "]) + chr(rng.randint(first, last)) for _ in range(6)]
            texts.append("".join(words))
        for _ in range(3):
            other = rng.choice(list(RUNS.values()))
            texts.append(" ".join("".join(chr(rng.randint(*run)) for _ in range(3)) for run in ((first, last), other, (first, last))))
    return texts


def of_whitespace(rng: random.Random, n: int) -> list[str]:
    """Runs of spaces, tabs, newlines and rarer blanks, between words and at both ends."""
    blanks = [" "] * 6 + ["\n"] * 3 + ["\t"] * 2 + ["\r\n", "\r", "\v", "\f", "\u00a0", "\u2003", "\u3000", "\u2028", "\u0085"]
    words = ["", "a", "word", "Word", "12", ";", "})", "é", "日本", "'ll", "🙂"]
    return ["".join(rng.choice(words) + "".join(rng.choices(blanks, k=rng.randint(0, 7))) for _ in range(4)) for _ in range(n)]


def of_digits(rng: random.Random, n: int) -> list[str]:
    """Numbers with separators, units and letters, in several digit systems."""
    texts = []
    for _ in range(n):
        zero = rng.choice([0x30] * 8 + [0x660, 0x966, 0xE50, 0xFF10, 0x1D7CE])
        groups = ["".join(chr(zero + rng.randrange(10)) for _ in range(rng.randint(1, 6))) for _ in range(rng.randint(1, 5))]
        texts.append(rng.choice(["", " ", "$", "-", "v", "x"]) + rng.choice([",", ".", " ", ":", "-", "e", "/", "_", "x"]).join(groups))
    return texts


def of_punctuation(rng: random.Random, n: int) -> list[str]:
    """Runs of ASCII punctuation, repeated or mixed, with and without words."""
    texts = []
    for _ in range(n):
        run = (
            "".join(rng.choices(PUNCTUATION, k=rng.randint(1, 12))) if rng.random() < 0.6 else rng.choice(PUNCTUATION) * rng.randint(2, 90)
        )
        texts.append(rng.choice(["", " ", "end", "x "]) + run + rng.choice(["", " ", "\n", "start", "'s"]))
    return texts


def of_controls(rng: random.Random, n: int) -> list[str]:
    """Control characters and invisible ones, alone, doubled and inside words."""
    points = CONTROLS + INVISIBLES
    texts = [chr(p) for p in points] + [f"a{chr(p)}b" for p in points] + [f"={chr(p)}= {chr(p)}{chr(p)}x" for p in points]
    return texts + ["".join(chr(rng.choice(points)) + rng.choice(["", "", "ab", " "]) for _ in range(6)) for _ in range(n)]


def of_specials(rng: random.Random, n: int) -> list[str]:
    """Special tokens in running text, whole, broken and next to everything."""
    around = ["", " ", "\n", "user", "assistant\n", "  ", "a", ".", "é", "🙂", "<", ">", "|", "<|", "|>", "12", "\t", "\r\n"]
    texts = list(SPECIALS) + [f" {s} " for s in SPECIALS] + [s[:-1] for s in SPECIALS] + [s[1:] for s in SPECIALS]
    for _ in range(n):
        texts.append("".join(rng.choice(around) + rng.choice(SPECIALS) + rng.choice(around) for _ in range(rng.randint(1, 3))))
    for _ in range(n // 2):
        turns = [f"<|im_start|>{role}\n{rng.choice([*ENGLISH, *LANGUAGES])}<|im_end|>\n" for role in ("system", "user", "assistant")]
        texts.append("".join(turns[rng.randrange(2) :]))
    return texts


def main() -> None:
    rng = random.Random(20251)
    plain = written() + joined(rng, 500) + of_runs(rng) + of_whitespace(rng, 220) + of_digits(rng, 160)
    plain += of_punctuation(rng, 160) + of_controls(rng, 60)
    special = of_specials(rng, 90) + rng.sample(plain, 60)
    rows = dict.fromkeys(plain, False) | dict.fromkeys(special, True)
    rows.pop("", None)
    for text in rows:
        text.encode("utf-8")  # raises on a lone surrogate
    with open(HERE / "token_strings.jsonl", "w", encoding="ascii", newline="\n") as file:
        for text, parsed in rows.items():
            file.write(json.dumps({"text": text, "special": True} if parsed else {"text": text}) + "\n")
    print(len(rows), "texts,", sum(rows.values()), "also with specials parsed")


if __name__ == "__main__":
    main()
