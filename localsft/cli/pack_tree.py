"""The packs of some examples as indented trees: what is computed once for several, and the own part of each below it."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from localsft.data.layout import Pack


def pack_lines(packs: Sequence[Pack], names: Sequence[str], tokens_per_pack: int) -> Iterator[str]:
    """A line for each pack, below it one for each of its segments. ``names``: of the examples, as a person knows them."""
    for pack in packs:
        saved = f" ({pack.alone:,} without sharing)" if pack.alone > pack.tokens else ""
        over = f"; longer than {tokens_per_pack:,} tokens, so alone" if pack.tokens > tokens_per_pack else ""
        count = "1 example" if len(pack.places) == 1 else f"{len(pack.places)} examples"
        yield f"step {pack.step}, pack {pack.number}: {pack.tokens:,} tokens for {count}{saved}{over}"
        yield from _segments(pack, names)


def _segments(pack: Pack, names: Sequence[str]) -> Iterator[str]:
    """A segment, then its children: its tokens, for how many examples they are, and the names of those that end in it."""
    sizes: dict[int, int] = defaultdict(int)
    users: dict[int, set[int]] = defaultdict(set)
    ends: dict[int, list[str]] = defaultdict(list)
    for place in pack.places:
        for segment, size in place.sizes.items():
            sizes[segment] = max(sizes[segment], size)
            users[segment].add(place.example)
    for place in pack.places:  # one that is the beginning of another may end within a segment
        segment, size = list(place.sizes.items())[-1]
        ends[segment].append(names[place.example] + (f" (the first {size:,})" if size < sizes[segment] else ""))
    children: dict[int, list[int]] = defaultdict(list)
    for segment, parent in enumerate(pack.parents):
        children[parent].append(segment)
    waiting = [(segment, 1) for segment in reversed(children[-1])]
    while waiting:
        segment, depth = waiting.pop()
        once = f", computed once for {len(users[segment])} examples" if len(users[segment]) > 1 else ""
        here = f": {', '.join(ends[segment])}" if ends[segment] else ""
        yield f"{'  ' * depth}{sizes[segment]:,} tokens{once}{here}"
        waiting += [(child, depth + 1) for child in reversed(children[segment])]
