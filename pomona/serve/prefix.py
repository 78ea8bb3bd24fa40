"""What slots still hold of earlier texts, so that a text with the same beginning is not computed again.

Kept is kept per adapter, whose keys and values differ, and per user: who measures how soon an answer begins learns
nothing of what others have asked.
"""

import dataclasses
from collections.abc import Collection, Sequence

WORTH_COPYING = 16
"""Tokens more than the target slot has itself, from which on a copy pays."""


@dataclasses.dataclass
class Held:
    """The tokens whose keys and values are in a slot."""

    tokens: list[int] = dataclasses.field(default_factory=list)
    adapter: str | None = None
    sharing: str = ""
    used: int = 0
    """When it was used last, in steps."""


@dataclasses.dataclass(frozen=True)
class Placement:
    """Where a text goes, and what is there of it already."""

    slot: int
    kept: int
    copied_from: int | None = None


def place(
    held: Sequence[Held],
    free: Collection[int],
    tokens: Sequence[int],
    adapter: str | None,
    sharing: str,
    copies: bool,
) -> Placement:
    """The free slot that keeps most of a text; without any, the one that was not used for longest.

    At least the last token is computed: what follows it is asked for.
    """
    shared = {
        slot: _shared(one.tokens, tokens) if (one.adapter, one.sharing) == (adapter, sharing) else 0
        for slot, one in enumerate(held)
    }
    best = max(free, key=lambda slot: (shared[slot], -len(held[slot].tokens), -held[slot].used))
    oldest = min(free, key=lambda slot: (bool(held[slot].tokens), held[slot].used))
    source = max(shared, key=lambda slot: shared[slot])
    if copies and source not in free and shared[source] >= shared[best] + WORTH_COPYING:
        return Placement(oldest, shared[source], source)
    return Placement(best, shared[best]) if shared[best] else Placement(oldest, 0)


def _shared(held: Sequence[int], tokens: Sequence[int]) -> int:
    most = min(len(held), len(tokens) - 1)
    return next((i for i in range(most) if held[i] != tokens[i]), most)
