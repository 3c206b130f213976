"""Whether rows of a holdout stand in the training data too: its loss would then measure memory, not skill.

Compared are prompt and answer without the pieces that many training rows have (instructions, a form), or texts that differ
would seem near for the part that they all share.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import xxhash

from localsft.data.conversation import Conversation
from localsft.data.near import PieceFile, Pieces, all_pieces, common_pieces, near_pairs
from localsft.data.texts import answer_text, prompt_text

NEAR = 0.9


@dataclass(frozen=True, slots=True)
class Leak:
    """A holdout row and the training row that it repeats; ``similarity`` 1.0: the same prompt and answer, character by character."""

    holdout: str
    train: str
    similarity: float

    @property
    def exact(self) -> bool:
        return self.similarity == 1.0

    def __str__(self) -> str:
        return f"{self.holdout} is {'the same as' if self.exact else f'{self.similarity:.0%} like'} {self.train}"


def find_leaks(train: Iterable[Conversation], holdout: Iterable[Conversation], threshold: float = NEAR) -> list[Leak]:
    """Every holdout row that a training row repeats, exactly or to ``threshold``, with the most similar training row."""
    exact: dict[bytes, int] = {}  # of the first training row with this prompt and answer
    sources: list[str] = []
    asked: list[tuple[str, bytes]] = []

    def texts() -> Iterator[str]:
        for conversation in train:
            pair = prompt_text(conversation), answer_text(conversation)
            exact.setdefault(_key(pair), len(sources))
            sources.append(conversation.source)
            yield "\n".join(pair)
        for conversation in holdout:
            pair = prompt_text(conversation), answer_text(conversation)
            asked.append((conversation.source, _key(pair)))
            yield "\n".join(pair)

    with PieceFile() as file:
        pieces = all_pieces(texts(), file)
        count = len(sources)
        common = common_pieces(Pieces(pieces.members, pieces.starts[: count + 1]))
        near: dict[int, tuple[int, float]] = {}
        for later, early, similarity in zip(*near_pairs(pieces.ignoring(common), count, threshold), strict=True):
            near.setdefault(int(later) - count, (int(early), min(float(similarity), 0.999)))
    found = (near.get(i) if (same := exact.get(key)) is None else (same, 1.0) for i, (_, key) in enumerate(asked))
    return [Leak(source, sources[one[0]], one[1]) for (source, _), one in zip(asked, found, strict=True) if one]


def _key(pair: tuple[str, str]) -> bytes:
    return xxhash.xxh3_128_digest("\0".join(pair).encode("utf-8", "surrogatepass"))
