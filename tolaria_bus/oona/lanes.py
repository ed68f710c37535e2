"""The two queues of the outbox.

A stream that the server refuses, or whose node of a cluster is gone, is set aside with what is
queued for it, and one packet of it is tried again after a growing wait; the others of the lane go
on. Its order stays: what is set aside is older than what is queued.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from math import inf

from google.protobuf.message import Message

from tolaria_bus.leyline import MessagePriority, Settlement
from tolaria_bus.oona.backoff import Backoff
from tolaria_bus.oona.bell import Bell


@dataclass(slots=True)
class Packet:
    """One message on its way out.

    Attributes:
        stream: Key of its stream.
        priority: Its ``MessagePriority``.
        message_id: The same at every attempt to send.
        correlation_id: What it answers.
        settlement: The entry that is finished when the message is on its stream.
        durable: It may not be lost.
        message: The message; ``None`` if it is in the spool.
        number: Its number in the spool, if it is there.
        put_at: When it was put, on the outbox's clock; 0 if that isn't measured.
        done: It was delivered, or is left alone: it isn't to be sent again.
    """

    stream: str
    priority: MessagePriority.ValueType
    message_id: str
    correlation_id: str
    settlement: Settlement | None
    durable: bool
    message: Message | None
    number: int | None = None
    put_at: float = 0.0
    done: bool = False


@dataclass(slots=True)
class _Queues:
    """Durable packets go before the others; among themselves each kind keeps its order."""

    durable: deque[Packet] = field(default_factory=deque)
    others: deque[Packet] = field(default_factory=deque)

    def of(self, packet: Packet) -> deque[Packet]:
        return self.durable if packet.durable else self.others

    def __len__(self) -> int:
        return len(self.durable) + len(self.others)

    def add_first(self, older: _Queues) -> None:
        self.durable.extendleft(reversed(older.durable))
        self.others.extendleft(reversed(older.others))


@dataclass(slots=True)
class _Aside:
    """A stream that is set aside.

    Attributes:
        queues: Its packets, older than those in the lane.
        backoff: Its waits.
        due: When it may be tried again.
        probe: The packet that it is tried with now.
        unreached: It wasn't refused: nobody was there to take it.
    """

    queues: _Queues = field(default_factory=_Queues)
    backoff: Backoff = field(default_factory=Backoff)
    due: float = 0.0
    probe: Packet | None = None
    unreached: bool = False


class Lane:
    """Packets of one connection. Use it under the outbox's lock, but for the bell and the length.

    Args:
        monotonic: The clock of the waits, in seconds.
    """

    def __init__(self, monotonic: Callable[[], float] = time.monotonic) -> None:
        self.bell = Bell()
        self._monotonic = monotonic
        self._queues = _Queues()
        self._aside: dict[str, _Aside] = {}
        self._due = inf

    def __len__(self) -> int:
        """Packets queued; those that were set aside don't count."""
        return len(self._queues)

    @property
    def set_aside(self) -> int:
        """Streams that are set aside."""
        return len(self._aside)

    @property
    def unreached(self) -> bool:
        """Are there streams set aside because nobody was there to take their packets?"""
        return any(aside.unreached for aside in self._aside.values())

    def due_in(self) -> float | None:
        """Seconds until a stream that was set aside may be tried; ``None`` if there is none."""
        return None if self._due == inf else max(0.0, self._due - self._monotonic())

    def add(self, packet: Packet) -> None:
        """Queue a packet."""
        self._queues.of(packet).append(packet)

    def take(self, most: int) -> list[Packet]:
        """Remove and return the next packets: of streams set aside one each, if they are due."""
        taken = self._probes(most) if self._due < inf else []
        aside = self._aside
        for queue in (self._queues.durable, self._queues.others):
            while queue and len(taken) < most:
                packet = queue.popleft()
                if aside and packet.stream in aside:
                    aside[packet.stream].queues.of(packet).append(packet)
                else:
                    taken.append(packet)
        return taken

    def give_back(self, packets: Iterable[Packet]) -> None:
        """Put those that aren't done where they came from, before all others of their kind."""
        for packet in reversed(list(packets)):
            aside = self._aside.get(packet.stream)
            if aside is not None and aside.probe is packet:
                aside.probe = None
                self._due = min(self._due, aside.due)
            if not packet.done:
                queues = self._queues if aside is None else aside.queues
                queues.of(packet).appendleft(packet)

    def answered(self, packets: Iterable[Packet], refused: Mapping[str, bool]) -> None:
        """Set streams aside, and take back those whose packet went through.

        Args:
            packets: What was sent.
            refused: Streams of which something wasn't taken; true: nobody was there to take it.
        """
        for stream, unreached in refused.items():
            aside = self._aside.setdefault(stream, _Aside())
            aside.due = self._monotonic() + aside.backoff.next()
            aside.unreached = unreached
            if aside.probe is None:
                self._due = min(self._due, aside.due)
        if not self._aside:
            return
        for packet in packets:
            tried = self._aside.get(packet.stream)
            if tried is not None and tried.probe is packet and packet.stream not in refused:
                del self._aside[packet.stream]
                self._queues.add_first(tried.queues)

    def _probes(self, most: int) -> list[Packet]:
        now = self._monotonic()
        if now < self._due:
            return []
        taken: list[Packet] = []
        self._due = inf
        for stream, aside in list(self._aside.items()):
            if aside.probe is not None:
                continue
            if now < aside.due or len(taken) == most:
                self._due = min(self._due, aside.due)
            elif aside.queues:
                aside.probe = (aside.queues.durable or aside.queues.others).popleft()
                taken.append(aside.probe)
            else:
                del self._aside[stream]
        return taken
