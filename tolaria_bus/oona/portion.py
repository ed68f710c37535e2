"""How many entries one read asks for, so that what it brings stays small however large they are.

The server counts entries and not bytes, and an entry may have a megabyte. So a read is sized by
what the last ones brought: where entries get larger the next read asks for fewer at once, where
they get smaller it grows by half each time, from a few on. What is let in at once is therefore
about ``READ_BYTES``; only the read in which entries *become* large may bring more.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from tolaria_bus.oona.reading import Delivered

BATCH: Final = 256
"""Entries of one read, at most."""
READ_BYTES: Final = 8 << 20
"""Of one read, about."""

_FIRST: Final = 16
"""Entries of the first read: nothing is known of them."""


class Portion:
    """Sizes reads.

    Attributes:
        entries: What the next read should ask for.
    """

    def __init__(self) -> None:
        self.entries = _FIRST

    def came(self, read: Sequence[Delivered]) -> None:
        """A read brought this; nothing is learnt from one that brought nothing."""
        if not read:
            return
        total = sum([entry.size for entry in read])
        fitting = READ_BYTES * len(read) // max(1, total)
        self.entries = max(1, min(fitting, BATCH, self.entries + self.entries // 2 + 1))
