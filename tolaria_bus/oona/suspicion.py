"""Forgeries that repeat: one alert with their count, not one for each.

One entry with a bad signature is a sender with an old key. Several within a minute are somebody
who tries, or a sender who goes on with the wrong key: both are for a person to look at. What
counts is what only somebody without a right to the stream sends: a bad signature, a nonce that
came before, and, where entries are signed, an entry that was sealed for another stream.
"""

from __future__ import annotations

import time
from collections import Counter, deque
from collections.abc import Callable
from datetime import timedelta
from typing import Final

from tolaria_bus.oona.events import OnEvent
from tolaria_bus.oona.opening import Refused

TIMES: Final = 5
"""So many within a window are no accident."""
WINDOW: Final = timedelta(seconds=60)

_COUNTED: Final = frozenset({"signature", "replay", "audience"})
_KEYS: Final = 8
"""Key ids in an event: whoever forges can name a new one each time."""


class Suspicion:
    """Counts the forgeries of one stream.

    Events: ``bad_signatures`` (stream, count, reasons, keys, first, last): as soon as there are
    enough within a window, then once a window as long as there are more, each with the count since
    the one before. A window without any ends it.

    Args:
        stream: Key of the stream.
        on_event: Told.
        times: How many are enough.
        window: In how long.
        monotonic: Seconds.
    """

    def __init__(
        self,
        stream: str,
        on_event: OnEvent,
        *,
        times: int = TIMES,
        window: timedelta = WINDOW,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self._stream = stream
        self._on_event = on_event
        self._window = window.total_seconds()
        self._monotonic = monotonic
        self._recent: deque[tuple[float, str, str, str]] = deque(maxlen=times)
        self._told_at: float | None = None
        self._reasons: Counter[str] = Counter()
        self._keys: dict[str, None] = {}
        self._first = ""
        self._last = ""

    def refused(self, refused: Refused, entry_id: str) -> None:
        """An entry was refused: count it if it may be forged."""
        if refused.reason not in _COUNTED or (refused.reason == "audience" and not refused.key_id):
            return
        self.tell_late()
        forgery = (self._monotonic(), refused.reason, refused.key_id[:64], entry_id)
        if self._told_at is not None:
            self._count(*forgery[1:])
            return
        self._recent.append(forgery)
        full = len(self._recent) == self._recent.maxlen
        if full and forgery[0] - self._recent[0][0] <= self._window:
            for _, *what in self._recent:
                self._count(*what)
            self._recent.clear()
            self._tell()

    def tell_late(self) -> None:
        """Tell what has been counted, if a window has passed since it was last told."""
        if self._told_at is None or self._monotonic() - self._told_at < self._window:
            return
        if self._reasons:
            self._tell()
        else:
            self._told_at = None

    def _count(self, reason: str, key_id: str, entry_id: str) -> None:
        self._reasons[reason] += 1
        if len(self._keys) < _KEYS:
            self._keys[key_id] = None
        self._first = self._first or entry_id
        self._last = entry_id

    def _tell(self) -> None:
        detail = {
            "stream": self._stream,
            "count": str(self._reasons.total()),
            "reasons": ", ".join(f"{reason} {n}" for reason, n in sorted(self._reasons.items())),
            "keys": " ".join(repr(key_id) for key_id in self._keys),
            "first": self._first,
            "last": self._last,
        }
        self._reasons.clear()
        self._keys.clear()
        self._first = self._last = ""
        self._told_at = self._monotonic()
        self._on_event("bad_signatures", detail)
