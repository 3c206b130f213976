"""Rows to parts, the same whatever their order: groups of near duplicates stay together, tags and labels keep their shares."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from typing import Literal

import xxhash

from localsft.data.conversation import Conversation
from localsft.data.near import THRESHOLD, PieceFile, all_pieces, common_pieces, near_groups
from localsft.data.texts import answer_text, identity, prompt_text, whole_text

By = Literal["auto", "tag", "label", "none"]
MAX_LABELS = 20
LABEL_LENGTH = 40  # characters


def split(conversations: Sequence[Conversation], fractions: Mapping[str, float], *, seed: int = 0, by: By = "auto") -> list[str]:
    """The part of each conversation: a key of ``fractions``, or "train" for the rest.

    Rows with the same prompt, and rows that are near duplicates, go to one part. Each stratum (first tag, or label) gets every
    part's fraction as nearly as whole groups allow; strata too small for that are made up for by the next. No part of a positive
    fraction is left empty where there are groups enough.
    """
    names = [identity(conversation) for conversation in conversations]
    order = sorted(range(len(names)), key=lambda i: (names[i], i))  # from here on the order of the rows no longer counts
    texts = [prompt_text(conversations[i]) or whole_text(conversations[i]) for i in order]
    with PieceFile() as file:
        pieces = all_pieces(texts, file)
        number = near_groups(pieces.ignoring(common_pieces(pieces)), THRESHOLD)
    strata = strata_of(conversations, by)
    groups: dict[int, list[int]] = defaultdict(list)
    for i, group in zip(order, number, strict=True):
        groups[group].append(i)
    waiting: dict[str, list[tuple[str, list[int]]]] = defaultdict(list)
    for members in groups.values():
        stratum = min(strata[i] for i in members)
        waiting[stratum].append((xxhash.xxh3_128_hexdigest(f"{seed} {names[members[0]]}".encode()), members))
    parts = ["train"] * len(names)
    owed = dict.fromkeys(fractions, 0.0)  # rows that a part should have by now and has not
    filled: Counter[str] = Counter()
    for stratum in sorted(waiting):
        chosen = sorted(waiting[stratum])
        rows = sum(len(members) for _, members in chosen)
        for part, fraction in fractions.items():
            owed[part] += fraction * rows
        for _, members in chosen:
            part = max(fractions, key=lambda part: owed[part], default="train")
            if part == "train" or owed[part] < len(members) / 2:
                continue
            owed[part] -= len(members)
            filled[part] += len(members)
            for i in members:
                parts[i] = part
    _fill_empty(parts, fractions, filled, waiting)
    return parts


def strata_of(conversations: Sequence[Conversation], by: By) -> list[str]:
    """What each conversation is stratified by: its first tag, or its answer where answers are few and short. "auto": tags if any
    row has one, else labels if that is what the answers are, else nothing."""
    if by in ("auto", "tag") and any(conversation.tags for conversation in conversations):
        return [conversation.tags[0] if conversation.tags else "" for conversation in conversations]
    if by in ("auto", "label"):
        answers = [answer_text(conversation).strip() for conversation in conversations]
        kinds = set(answers)
        if len(kinds) <= MAX_LABELS and all(len(kind) <= LABEL_LENGTH for kind in kinds):
            return answers
    return [""] * len(conversations)


def _fill_empty(
    parts: list[str], fractions: Mapping[str, float], filled: Counter[str], waiting: Mapping[str, list[tuple[str, list[int]]]]
) -> None:
    """Give a part that got nothing the smallest group of train, as long as train keeps one."""
    for part, fraction in fractions.items():
        if fraction <= 0 or filled[part]:
            continue
        left = sorted((len(m), key, m) for groups in waiting.values() for key, m in groups if parts[m[0]] == "train")
        if len(left) > 1:
            for i in left[0][2]:
                parts[i] = part
