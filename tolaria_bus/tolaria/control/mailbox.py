"""Where the two threads meet, and the only place.

The bus side posts deliveries and stop requests; the training thread takes them at a fence and
hands out messages through :class:`Outbound`. A fence with nothing waiting costs one attribute
read (``mailbox.waiting``): the flag is set after a delivery is in the inbox and cleared before
the inbox is emptied, so a delivery is seen at this fence or at the next one, never lost.
"""

from __future__ import annotations

import hashlib
import threading
from collections import defaultdict, deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Protocol

from tolaria_bus.leyline import (
    AdaptationCommand,
    CommandOutcome,
    CommandSource,
    CommandType,
    EmergencySignal,
    FieldReport,
    MessagePriority,
    SystemStatePacket,
    TelemetryPacket,
)

URGENT = frozenset(
    {CommandType.COMMAND_EMERGENCY, CommandType.COMMAND_STOP, CommandType.COMMAND_PAUSE}
)
"""Commands that may overtake others of their own source."""


@dataclass(frozen=True, slots=True)
class Delivery:
    """One command as the bus side hands it over.

    Attributes:
        command: The message.
        payload: The bytes of the message.
        stream: Key of the stream it came from.
        entry_id: Id of its entry there.
        source: Who sent it, as verified by the bus side.
        priority: Its envelope's ``MessagePriority``.
        group: The consumer group that owns the entry.
        digest: SHA-256 (32 bytes) of what the sender wrote; a command id is bound to it. Of the
            payload if not given.
        resent: A replay of dead letters made its entry: an id that was REJECTED or EXPIRED is free
            for it.
        entry_gone: Its entry was finished when it was put off; nobody will deliver that again.
    """

    command: AdaptationCommand
    payload: bytes
    stream: str = ""
    entry_id: str = ""
    source: str = ""
    priority: int = MessagePriority.MESSAGE_PRIORITY_NORMAL
    group: str = ""
    digest: bytes = b""
    resent: bool = False
    entry_gone: bool = False

    def __post_init__(self) -> None:
        if not self.digest:
            object.__setattr__(self, "digest", hashlib.sha256(self.payload).digest())

    @property
    def origin(self) -> CommandSource:
        """Where it came from, as the journal keeps it."""
        return CommandSource(stream=self.stream, entry_id=self.entry_id, source=self.source)


class Outbound(Protocol):
    """What the trainer tells the world. Called on the training thread; must not block or raise."""

    def telemetry(self, packet: TelemetryPacket, priority: MessagePriority.ValueType) -> None:
        """Metrics and events; HIGH and CRITICAL are alerts."""

    def emergency(self, signal: EmergencySignal) -> None:
        """A signal for the emergency stream."""

    def state(self, packet: SystemStatePacket) -> None:
        """The state of the run at an epoch fence."""

    def outcome(self, outcome: CommandOutcome, delivery: Delivery | None) -> None:
        """What became of a command; with a delivery, its entry is finished by this."""

    def report(self, report: FieldReport) -> None:
        """What a command did to the run over its observation window."""


@dataclass
class RecordingOutbound:
    """An :class:`Outbound` that keeps what it is given: for runs without a bus, and for tests."""

    packets: list[tuple[TelemetryPacket, int]] = field(default_factory=list)
    signals: list[EmergencySignal] = field(default_factory=list)
    states: list[SystemStatePacket] = field(default_factory=list)
    outcomes: list[CommandOutcome] = field(default_factory=list)
    reports: list[FieldReport] = field(default_factory=list)

    def telemetry(self, packet: TelemetryPacket, priority: MessagePriority.ValueType) -> None:
        """Keep a packet with its priority."""
        self.packets.append((packet, priority))

    def emergency(self, signal: EmergencySignal) -> None:
        """Keep a signal."""
        self.signals.append(signal)

    def state(self, packet: SystemStatePacket) -> None:
        """Keep a state packet."""
        self.states.append(packet)

    def outcome(self, outcome: CommandOutcome, delivery: Delivery | None) -> None:
        """Keep an outcome."""
        del delivery
        self.outcomes.append(outcome)

    def report(self, report: FieldReport) -> None:
        """Keep a report."""
        self.reports.append(report)

    def alerts(self) -> list[TelemetryPacket]:
        """Packets of priority HIGH and CRITICAL."""
        high = MessagePriority.MESSAGE_PRIORITY_HIGH
        return [packet for packet, priority in self.packets if priority >= high]


class Mailbox:
    """The inbox of one trainer. ``post`` and ``request_stop`` from any thread, else its own only.

    Attributes:
        waiting: Something is in the inbox, or a stop is asked for.
        stop_reason: Why the run shall stop (``signal``, ``lease``), or empty.
        server_ms: The clock that makes the entries' ids, in milliseconds, and never ahead of it;
            ``None`` where there is no server. Set by the bus side before the trainer is made.
    """

    def __init__(self) -> None:
        self.waiting = False
        self.stop_reason = ""
        self.server_ms: Callable[[], int | None] = lambda: None
        self._inbox: list[Delivery] = []
        self._changed = threading.Condition()

    def post(self, delivery: Delivery) -> None:
        """Put a delivery in and wake a trainer that is paused."""
        with self._changed:
            self._inbox.append(delivery)
            self.waiting = True
            self._changed.notify_all()

    def request_stop(self, reason: str) -> None:
        """Ask for a drain at the next fence. The first reason stays."""
        with self._changed:
            self.stop_reason = self.stop_reason or reason
            self.waiting = True
            self._changed.notify_all()

    def take(self) -> list[Delivery]:
        """Everything that waits, in the order in which to apply it; see :func:`in_order`."""
        with self._changed:
            # A stop request stays visible: every fence until the end has to see it.
            self.waiting = bool(self.stop_reason)
            taken = list(self._inbox)
            self._inbox.clear()
        return in_order(taken)

    def wait_for(self, wanted: Callable[[Delivery], bool], timeout: float) -> bool:
        """Block until a wanted delivery is in the inbox, or a stop is asked for; it stays there.

        Args:
            wanted: Asked about each delivery once.
            timeout: Seconds, at most.

        Returns:
            False if the time was over first.
        """
        looked_at = 0

        def there() -> bool:
            nonlocal looked_at
            while looked_at < len(self._inbox):
                looked_at += 1
                if wanted(self._inbox[looked_at - 1]):
                    return True
            return bool(self.stop_reason)

        with self._changed:
            return self._changed.wait_for(there, timeout)

    def wait(self, timeout: float) -> bool:
        """Block until something waits, at most ``timeout`` seconds. True if something does."""
        with self._changed:
            return self._changed.wait_for(lambda: self.waiting, timeout)


def in_order(deliveries: Iterable[Delivery]) -> list[Delivery]:
    """Emergency first, then stop and pause, then by priority, then by arrival.

    Commands of one source keep their order among themselves, whatever their priorities:
    a source's next command has the turn that its own first waiting one gets.
    """
    urgent: list[Delivery] = []
    queues: dict[str, deque[tuple[int, Delivery]]] = defaultdict(deque)
    for arrival, delivery in enumerate(deliveries):
        if delivery.command.command_type in URGENT:
            urgent.append(delivery)
        else:
            queues[delivery.source].append((arrival, delivery))
    emergency = CommandType.COMMAND_EMERGENCY
    ordered = sorted(urgent, key=lambda item: item.command.command_type != emergency)
    while queues:
        source = min(queues, key=lambda name: (-queues[name][0][1].priority, queues[name][0][0]))
        ordered.append(queues[source].popleft()[1])
        if not queues[source]:
            del queues[source]
    return ordered
