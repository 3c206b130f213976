"""Whether rows of a holdout stand in the training data too: its loss would then measure memory, not skill.

Compared are prompt and answer without the pieces that many training rows have (instructions, a form), or texts that differ
would seem near for the part that they all share.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from localsft.data.conversation import Conversation
from localsft.data.near import NearIndex, common_pieces
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
    exact: dict[tuple[str, str], str] = {}
    texts: list[str] = []
    sources: list[str] = []
    for conversation in train:
        pair = prompt_text(conversation), answer_text(conversation)
        if pair not in exact:
            exact[pair] = conversation.source
            texts.append("\n".join(pair))
            sources.append(conversation.source)
    index = NearIndex(threshold, common_pieces(texts))
    for key, text in enumerate(texts):
        index.add(key, text)
    leaks = []
    for conversation in holdout:
        pair = prompt_text(conversation), answer_text(conversation)
        if pair in exact:
            leaks.append(Leak(conversation.source, exact[pair], 1.0))
        elif found := index.near("\n".join(pair)):
            key, similarity = found[0]
            leaks.append(Leak(conversation.source, sources[key], min(similarity, 0.999)))
    return leaks
