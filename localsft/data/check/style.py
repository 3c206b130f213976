"""Whether answers are of one kind: their length, their Markdown, how they open, their language. What is rare breaks the habit."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from localsft.data.check.finding import Collector, DataFinding, RowChecks
from localsft.data.check.lengths import OUTLIER_LENGTH, AnswerLengths
from localsft.data.conversation import Conversation
from localsft.data.languages import language_of
from localsft.data.texts import answer_text, prompt_text

_MARKDOWN = re.compile(r"^\s{0,3}(?:[-*•] |\d{1,2}[.)] |#{1,6} |> |```)|\*\*\S|^\|.*\|\s*$", re.M)
ROWS = 30  # from which on a style is spoken of
PROSE = 60  # characters of the median answer, from which on it is prose and has a style
RARE = 0.1  # the share up to which a style is the odd one out
OPENING = 0.3  # the share of answers from which on one opening is a habit
OUTLIER = 8  # times the median length of an answer
MAX_OPENINGS = 100_000  # different ones that are counted: bounds memory where all answers open differently


@dataclass(frozen=True, slots=True)
class Style:
    """How the answers are. ``lengths``: characters at the 5th, 50th and 95th percentile; ``markdown``: share of answers that use it;
    ``openings``: the most frequent first three words -> rows; ``languages``: of answers -> rows, "" where it is not clear."""

    lengths: tuple[int, int, int]
    markdown: float
    openings: dict[str, int]
    languages: dict[str, int]


class StyleChecks(RowChecks):
    """The last answer of each row."""

    def __init__(self) -> None:
        super().__init__()
        self._lengths = AnswerLengths()
        self._markdown = Collector("markdown-mixed", "note", "", "give all answers one style, or the model will mix them by chance")
        self._plain = Collector("markdown-mixed", "note", "", "give all answers one style, or the model will mix them by chance")
        self._openings: Counter[str] = Counter()
        self._languages: Counter[str] = Counter()
        self._pairs: dict[tuple[str, str], Collector] = {}  # language of prompt and answer
        self._prompts: dict[str, Collector] = {}

    def add(self, conversation: Conversation) -> None:
        if conversation.is_text:
            return
        source, answer = conversation.source, answer_text(conversation).strip()
        self._lengths.add(len(answer), conversation.line, source)
        (self._markdown if _MARKDOWN.search(answer) else self._plain).add(source)
        self._count_openings({" ".join(answer[:60].casefold().split()[:3]): 1})
        asked, answered = language_of(prompt_text(conversation)), language_of(answer)
        self._languages[answered] += 1
        if asked:
            self._prompts.setdefault(asked, _language_rows()).add(source, asked)
            if answered:
                self._pairs.setdefault((asked, answered), _pair_rows()).add(source, f"asked in {asked}, answered in {answered}")

    def _count_openings(self, counts: Mapping[str, int]) -> None:
        for opening, count in counts.items():
            if opening in self._openings or len(self._openings) < MAX_OPENINGS:
                self._openings[opening] += count

    def merge(self, later: RowChecks) -> None:
        assert isinstance(later, StyleChecks)
        self._lengths.merge(later._lengths)
        self._markdown.merge(later._markdown)
        self._plain.merge(later._plain)
        self._count_openings(later._openings)
        self._languages.update(later._languages)
        for pair, rows in later._pairs.items():
            self._pairs.setdefault(pair, _pair_rows()).merge(rows)
        for language, rows in later._prompts.items():
            self._prompts.setdefault(language, _language_rows()).merge(rows)

    def style(self) -> Style:
        """The figures."""
        low, median, high = (self._lengths.percentile(percent) for percent in (5, 50, 95))
        return Style(
            (low, median, high),
            self._markdown.count / max(1, self._lengths.rows),
            dict(self._openings.most_common(5)),
            dict(self._languages.most_common()),
        )

    def findings(self) -> Iterable[DataFinding]:
        rows = self._lengths.rows
        if not rows:
            return
        median = self._lengths.percentile(50)
        yield from self._lengths.findings(max(OUTLIER_LENGTH, OUTLIER * median))
        if rows < ROWS:
            return
        if median >= PROSE:
            few, name = (self._markdown, "use") if self._markdown.count < self._plain.count else (self._plain, "do not use")
            if few.count <= RARE * rows:
                yield from few.findings(message=f"{few.count:,} of {rows:,} answers {name} Markdown, unlike the others")
            opening, count = self._openings.most_common(1)[0]
            if opening and count >= OPENING * rows:
                message = f"{count / rows:.0%} of the answers open with {opening!r}, and so will the model's"
                yield DataFinding("one-opening", "note", message, "vary them, if that is not wanted", count)
        yield from self._odd_languages()

    def _odd_languages(self) -> Iterable[DataFinding]:
        same = sum(rows.count for (asked, answered), rows in self._pairs.items() if asked == answered)
        other = Collector("answer-language", "warning", "an answer is in another language than its prompt, unlike the others", "look at it")
        for asked, answered in self._pairs:
            if asked != answered:
                other.merge(self._pairs[asked, answered])
        if same >= (1 - RARE) * (same + other.count):
            yield from other.findings()
        told = sum(rows.count for rows in self._prompts.values())
        common = max(self._prompts, key=lambda language: self._prompts[language].count, default="")
        rare = Collector("mixed-languages", "note", f"prompts in another language than most ({common})", "add rows in them, if they matter")
        for language, rows in self._prompts.items():
            if language != common:
                rare.merge(rows)
        if rare.count <= RARE * told:
            yield from rare.findings()


def _pair_rows() -> Collector:
    return Collector("answer-language", "warning", "", "")


def _language_rows() -> Collector:
    return Collector("mixed-languages", "note", "", "")
