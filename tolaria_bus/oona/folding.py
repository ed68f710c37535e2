"""Floods of the same alert become one packet with a count.

The first of its kind goes out at once. Equal ones that follow within the window are counted, and
the newest of them is sent at the window's end with ``folded`` = how many it stands for; while the
flood lasts, one such packet goes out per window. An alert of another kind is never held back.

Equal means: of the same priority, from the same source, the same events by name and level, about
the same thing. What they are about is said by some of their attributes (``IDENTIFYING``): a stream,
a seed, a reason. Descriptions and the other attributes may differ (a step, a loss), and of those
only the newest is told.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterator
from dataclasses import dataclass
from datetime import timedelta
from typing import Final, Generic, TypeVar

from google.protobuf.message import Message

from tolaria_bus.leyline import MessagePriority, TelemetryEvent, TelemetryPacket

WINDOW: Final = timedelta(seconds=1)
"""How long a repeated alert may be held back."""

IDENTIFYING: Final = (
    "breaker",
    "command_id",
    "connection",
    "deadline",
    "error",
    "group",
    "reason",
    "run",
    "seed_id",
    "stream",
)
"""Attributes of an event that say what it is about: with another value it is another alert."""

_KINDS: Final = 1024
"""Kinds watched at once. Alerts of others go out unfolded: a flood of kinds takes no memory."""

Held = TypeVar("Held")


def alert_kind(message: Message, priority: MessagePriority.ValueType) -> Hashable | None:
    """What makes two alerts equal; ``None`` for a message that is no alert and never folded."""
    if not isinstance(message, TelemetryPacket) or not message.events:
        return None
    events = tuple(_kind(event) for event in message.events)
    return (priority, message.training_run_id, message.source_subsystem, events)


def _kind(event: TelemetryEvent) -> Hashable:
    attributes = event.attributes
    if not attributes:
        return event.event_id, event.level, ()
    about = tuple((name, attributes[name]) for name in IDENTIFYING if name in attributes)
    return event.event_id, event.level, about


@dataclass(slots=True)
class _Window(Generic[Held]):
    end: float
    count: int = 0
    held: Held | None = None


class Folding(Generic[Held]):
    """Which alerts are held back, and what stands for them. Not thread-safe.

    Args:
        window: How long.
    """

    def __init__(self, window: timedelta = WINDOW) -> None:
        self._seconds = window.total_seconds()
        self._windows: dict[Hashable, _Window[Held]] = {}

    def __len__(self) -> int:
        """How many kinds are watched."""
        return len(self._windows)

    def repeats(self, kind: Hashable, now: float) -> int:
        """Count an alert. 0: it is the first, send it. n: it is the nth repeat, hold it back.

        Args:
            kind: As :func:`alert_kind` gives it.
            now: Monotonic seconds.
        """
        window = self._windows.get(kind)
        if window is None or (window.held is None and now >= window.end):
            if window is not None or len(self._windows) < _KINDS:
                self._windows[kind] = _Window(now + self._seconds)
            return 0
        window.count += 1
        return window.count

    def hold(self, kind: Hashable, packet: Held) -> Held | None:
        """Let ``packet`` stand for the repeats so far; returns the one that did."""
        window = self._windows[kind]
        before, window.held = window.held, packet
        return before

    def due(self, now: float, *, everything: bool = False) -> Iterator[Held]:
        """What has to be sent by now; of a kind that still repeats, a new window begins.

        Args:
            now: Monotonic seconds.
            everything: Don't wait for the ends of the windows.
        """
        for kind, window in list(self._windows.items()):
            if now < window.end and not everything:
                continue
            if window.held is None:
                del self._windows[kind]
            else:
                self._windows[kind] = _Window(now + self._seconds)
                yield window.held
