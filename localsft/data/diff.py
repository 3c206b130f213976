"""What changed from one version of a dataset to the next, whatever the order of the rows."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable
from dataclasses import dataclass

from localsft.data.conversation import Conversation
from localsft.data.near import near_pairs, pieces_of
from localsft.data.texts import answer_text, dataset_fingerprint, identity, prompt_text, whole_text

EDITED = 0.6  # similarity from which on a removed and an added row are one row, edited


@dataclass(frozen=True, slots=True)
class Edit:
    """A row before and after."""

    before: Conversation
    after: Conversation


@dataclass(frozen=True, slots=True)
class DataDiff:
    """Rows by what became of them. Every row of either version is in one of the four, ``unchanged`` counting pairs."""

    unchanged: int
    added: tuple[Conversation, ...]
    removed: tuple[Conversation, ...]
    edited: tuple[Edit, ...]
    fingerprints: tuple[str, str]


def compare(before: Iterable[Conversation], after: Iterable[Conversation]) -> DataDiff:
    """Rows that are equal (but for tags) are unchanged, as often as both have them. Of the others, those with the same prompt are
    edited, then those that are 60 % alike, the most similar first; what is left was added or removed."""
    old, new = list(before), list(after)
    old_names, new_names = [identity(row) for row in old], [identity(row) for row in new]
    kept = Counter(old_names) & Counter(new_names)
    removed, added = _beyond(old, old_names, kept), _beyond(new, new_names, kept)
    by_prompt: defaultdict[str, list[int]] = defaultdict(list)
    for i, row in enumerate(removed):
        by_prompt[prompt_text(row)].append(i)
    pairs: dict[int, int] = {}  # of added rows -> removed rows
    gone: set[int] = set()
    for j, row in enumerate(added):
        prompt = prompt_text(row)
        if prompt and by_prompt[prompt]:
            pairs[j] = by_prompt[prompt].pop(0)
            gone.add(pairs[j])
    left = [i for i in range(len(removed)) if i not in gone]
    open_ones = [j for j in range(len(added)) if j not in pairs]
    pieces = pieces_of([whole_text(rows[k]) for rows, chosen in ((removed, left), (added, open_ones)) for k in chosen])
    near = zip(*near_pairs(pieces, len(left), EDITED), strict=True)
    likely = [(-float(value), open_ones[int(j) - len(left)], left[int(i)]) for j, i, value in near]
    for _, j, i in sorted(likely):
        if j not in pairs and i not in gone:
            pairs[j] = i
            gone.add(i)
    return DataDiff(
        unchanged=sum(kept.values()),
        added=tuple(row for j, row in enumerate(added) if j not in pairs),
        removed=tuple(row for i, row in enumerate(removed) if i not in gone),
        edited=tuple(Edit(removed[i], added[j]) for j, i in sorted(pairs.items())),
        fingerprints=(dataset_fingerprint(old_names), dataset_fingerprint(new_names)),
    )


def what_changed(edit: Edit) -> str:
    """ "answer", "prompt", both, or what else differs."""
    parts = [name for name, text in (("prompt", prompt_text), ("answer", answer_text)) if text(edit.before) != text(edit.after)]
    return " and ".join(parts) or "system prompt, weights or tools"


def _beyond(rows: list[Conversation], names: list[str], kept: Counter[str]) -> list[Conversation]:
    """The rows whose name stands there more often than in ``kept``."""
    left = Counter(kept)
    found = []
    for row, name in zip(rows, names, strict=True):
        if left[name]:
            left[name] -= 1
        else:
            found.append(row)
    return found
