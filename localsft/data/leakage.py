"""Whether rows of a holdout stand in the training data too: its loss would then measure memory, not skill.

Compared are prompt and answer without what every training prompt begins with (instructions, a form), or texts that differ
would seem near for the part that they all share.
"""

from __future__ import annotations

import os.path
from collections.abc import Iterable
from dataclasses import dataclass

from localsft.data.conversation import Conversation
from localsft.data.near import NearIndex
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
    index = NearIndex(threshold)
    exact: dict[tuple[str, str], str] = {}
    rows: list[tuple[str, str, str]] = []
    for conversation in train:
        pair = prompt_text(conversation), answer_text(conversation)
        if pair not in exact:
            exact[pair] = conversation.source
            rows.append((*pair, conversation.source))
    shared = _shared([prompt for prompt, _, _ in rows])
    for key, (prompt, answer, _) in enumerate(rows):
        index.add(key, f"{prompt.removeprefix(shared)}\n{answer}")
    leaks = []
    for conversation in holdout:
        pair = prompt_text(conversation), answer_text(conversation)
        if pair in exact:
            leaks.append(Leak(conversation.source, exact[pair], 1.0))
        elif found := index.near(f"{pair[0].removeprefix(shared)}\n{pair[1]}"):
            key, similarity = found[0]
            leaks.append(Leak(conversation.source, rows[key][2], min(similarity, 0.999)))
    return leaks


def _shared(prompts: list[str]) -> str:
    """What all prompts begin with, where there are several that go on differently."""
    return os.path.commonprefix(prompts) if len(set(prompts)) > 1 else ""  # noqa: RUF071 - of characters, as wanted
