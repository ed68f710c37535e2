"""Which checkpoints are removed. A pure function, apart from the disk."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Kept:
    """A checkpoint as retention sees it.

    Attributes:
        name: Its name.
        sequence: The last journal record that its state contains.
        step: Optimizer steps done.
        timeline: On which timeline.
        bytes: Its size on disk.
        pinned: It is never removed.
        cut_at: Sequence of the rollback that undid it, ``None`` if it is live.
    """

    name: str
    sequence: int
    step: int
    timeline: int
    bytes: int
    pinned: bool
    cut_at: int | None


def dropped(
    kept: Sequence[Kept], *, keep: int, max_bytes: int | None, protect: str
) -> tuple[str, ...]:
    """The names of the checkpoints to remove.

    Live ones beyond the ``keep`` newest go; those that a rollback undid go when ``keep`` live ones
    are newer than the rollback. Where that leaves more than ``max_bytes``, undone ones go first,
    then live ones, oldest first. Pinned ones stay (they count for the size), and so do the newest
    live one and ``protect``.

    Args:
        kept: All of them, oldest first.
        keep: How many live, unpinned ones to keep, at least 1.
        max_bytes: The most that all may take, ``None`` for no limit.
        protect: The one that was verified a moment ago, and so is known to be good.
    """
    live = [item for item in kept if item.cut_at is None]
    undone = [item for item in kept if item.cut_at is not None]
    safe = {protect, *(item.name for item in live[-1:]), *(i.name for i in kept if i.pinned)}
    counted = [item for item in live if not item.pinned]
    going = [item for item in counted[:-keep] if item.name not in safe]
    going += [
        item
        for item in undone
        if item.name not in safe
        and sum(other.sequence >= (item.cut_at or 0) for other in live) >= keep
    ]
    if max_bytes is not None:
        total = sum(item.bytes for item in kept) - sum(item.bytes for item in going)
        for item in (*undone, *counted):
            if total > max_bytes and item.name not in safe and item not in going:
                going.append(item)
                total -= item.bytes
    return tuple(item.name for item in going)
