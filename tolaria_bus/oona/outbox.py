"""What waits to be published: filled by any thread in microseconds, emptied by the publisher.

Two lanes: the emergency stream's, which has a connection of its own, and everybody else's. In a
lane, durable packets go before the others; among themselves each kind keeps its order.

Packets of priority HIGH and above, and those put as durable, are in the spool before ``put``
returns, and never refused. In memory there is then only where to find them, so an outage costs
disk. The others are kept as they are and serialised when they are sent: a message belongs to the
outbox from ``put`` on and must not be changed any more. LOW is taken until the outbox is half
full, NORMAL until three quarters; what is refused is counted by priority.
"""

from __future__ import annotations

import threading
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping
from datetime import timedelta
from typing import Final

from google.protobuf.message import DecodeError, Message

from tolaria_bus.leyline import (
    BusEnvelope,
    BusMessageType,
    MessagePriority,
    Settlement,
    SpooledPacket,
    TelemetryPacket,
)
from tolaria_bus.oona.bell import Bell
from tolaria_bus.oona.counts import StreamCounts
from tolaria_bus.oona.envelope import new_message_id, wrap
from tolaria_bus.oona.folding import WINDOW, Folding, alert_kind
from tolaria_bus.oona.lanes import Lane, Packet
from tolaria_bus.oona.sealing import check_fits
from tolaria_bus.oona.spool import Spool, SpoolFull
from tolaria_bus.oona.streams import Streams

_LOW: Final = MessagePriority.MESSAGE_PRIORITY_LOW
_HIGH: Final = MessagePriority.MESSAGE_PRIORITY_HIGH
_TIMED: Final = 64
"""One packet of so many is timed, besides those of priority HIGH and above."""


class Outbox:
    """Packets waiting to be sent. ``put`` is for any thread; the rest is the publisher's.

    What the spool still holds from an earlier process is the first to be sent.

    Args:
        capacity: Packets at which it counts as full.
        spool: Where durable packets are kept; ``None``: in memory only.
        streams: Names of the streams.
        run: The id of the run whose worker this is; outcomes are fenced by its lease.
        source: Who sends; by default ``run/ID``.
        fold: How long repeated alerts are held back.
        monotonic: The clock for that and for waits, in seconds.

    Attributes:
        emergency: The lane of the emergency stream.
        bulk: The lane of all others.
        spooled: Rings when something was added to the spool.
        alerted: Rings at an alert whose repeats are folded.
        depth: Packets put and not yet delivered, those being sent among them.
        shed: How many were refused, by priority.
        by_stream: What was done for each stream.
        on_alert: Told the message id of what the server has got on the emergency stream.
        unspooled: Durable packets that are in memory only, because the spool was full.
        unreadable: Spool records that are no packets; they stay where they are.
    """

    def __init__(
        self,
        capacity: int,
        spool: Spool | None,
        streams: Streams,
        run: str | None = None,
        *,
        source: str = "",
        fold: timedelta = WINDOW,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self.streams = streams
        self.run = run
        self.spool = spool
        self.capacity = capacity
        self.emergency = Lane(monotonic)
        self.bulk = Lane(monotonic)
        self.spooled = Bell()
        self.alerted = Bell()
        self.depth = 0
        self.shed: dict[MessagePriority.ValueType, int] = {}
        self.by_stream: dict[str, StreamCounts] = defaultdict(StreamCounts)
        self.on_alert: Callable[[str], None] = lambda message_id: None
        self.unspooled = 0
        self.unreadable = 0
        self._emergency_stream = streams.emergency
        self._lock = threading.Lock()
        self._folding: Folding[Packet] = Folding(fold)
        self._monotonic = monotonic
        self._source = source or f"run/{run}"
        self._puts = 0
        if spool is not None:
            self._take_up(spool)

    def put(
        self,
        message: Message,
        *,
        stream: str,
        priority: MessagePriority.ValueType,
        message_id: str | None = None,
        correlation_id: str = "",
        settlement: Settlement | None = None,
        durable: bool | None = None,
    ) -> bool:
        """Queue a message; microseconds, never blocks on the bus.

        Args:
            message: Any message of Leyline; the outbox's own from now on.
            stream: Key of the stream.
            priority: LOW and NORMAL may be refused when the outbox fills up.
            message_id: What receivers know repetitions by; made up if not given.
            correlation_id: Id of what this answers.
            settlement: Entry that is finished with this.
            durable: Kept through outage and crash; by default from priority HIGH on.

        Returns:
            False if it was refused; that is counted.

        Raises:
            CodecError: a durable message is over 1 MiB with its envelope, or none of the bus.
        """
        must = priority >= _HIGH or bool(durable)
        kept = must if durable is None else durable
        if kept:
            # Now: in the spool it would be for ever.
            check_fits(message, stream, self._source, message_id or "", correlation_id)
        with self._lock:
            if not must and self._full_for(priority):
                self.shed[priority] = self.shed.get(priority, 0) + 1
                self.by_stream[stream].shed[priority] += 1
                return False
            packet = Packet(
                stream=stream,
                priority=priority,
                # Made up when it is first needed: not on the training thread, as a rule.
                message_id=message_id or "",
                correlation_id=correlation_id,
                settlement=settlement,
                durable=kept,
                message=message,
            )
            self._puts += 1
            if priority >= _HIGH or self._puts % _TIMED == 0:
                packet.put_at = self._monotonic()
            if stream == self._emergency_stream and self._fold(packet, message):
                return True
            self._store(packet)
            self.depth += 1
            lane = self._lane(stream)
            lane.add(packet)
        lane.bell.ring()
        return True

    @property
    def folding(self) -> bool:
        """Is there an alert whose repeats are being folded?"""
        return bool(self._folding)

    def release_folded(self, *, everything: bool = False) -> None:
        """Queue what stands for repeated alerts whose windows have ended, or for all of them."""
        with self._lock:
            for packet in self._folding.due(self._monotonic(), everything=everything):
                self.depth += 1
                self._lane(packet.stream).add(packet)
        if self.emergency:
            self.emergency.bell.ring()

    def take(self, lane: Lane, most: int) -> list[Packet]:
        """Take packets to send, the most urgent first. They count in ``depth`` until settled."""
        with self._lock:
            return lane.take(most)

    def envelope(self, packet: Packet) -> BusEnvelope:
        """The packet's envelope, not yet sealed.

        Raises:
            CodecError: the message is over 1 MiB, or no message of the bus.
            KeyError: it was delivered already.
        """
        if packet.message is not None:
            return self._wrap(packet, packet.message)
        if self.spool is None or packet.number is None:
            raise KeyError(packet.message_id)
        return SpooledPacket.FromString(self.spool.read(packet.number)).envelope

    def give_back(self, lane: Lane, packets: Iterable[Packet]) -> None:
        """Put those that aren't done where they came from, before all others."""
        with self._lock:
            lane.give_back(packets)

    def answered(self, lane: Lane, packets: Iterable[Packet], refused: Mapping[str, bool]) -> None:
        """The server said what it takes; see :meth:`Lane.answered`."""
        with self._lock:
            lane.answered(packets, refused)

    def delivered(self, packet: Packet) -> None:
        """The server has it: forget it."""
        self.leave(packet)
        counts = self.by_stream[packet.stream]
        counts.published += 1
        if packet.put_at:
            counts.latency.observe(self._monotonic() - packet.put_at)
        if self.spool is not None and packet.number is not None:
            self.spool.drop(packet.number)
        if packet.stream == self._emergency_stream:
            self.on_alert(packet.message_id)

    def leave(self, packet: Packet) -> None:
        """Don't try again in this process; what is in the spool stays for the next one."""
        packet.done = True
        with self._lock:
            self.depth -= 1

    def _full_for(self, priority: MessagePriority.ValueType) -> bool:
        if priority == _LOW:
            return self.depth * 2 >= self.capacity
        return self.depth * 4 >= self.capacity * 3

    def _lane(self, stream: str) -> Lane:
        return self.emergency if stream == self._emergency_stream else self.bulk

    def _fold(self, packet: Packet, message: Message) -> bool:
        """Hold a repeated alert back? The newest stands for all, in the spool as well."""
        kind = alert_kind(message, packet.priority)
        if kind is None or not isinstance(message, TelemetryPacket):
            return False
        repeats = self._folding.repeats(kind, self._monotonic())
        self.alerted.ring()
        if repeats == 0:
            return False
        self.by_stream[packet.stream].folded += 1
        # Its wait is meant.
        packet.put_at = 0.0
        if repeats > 1:
            message.folded = repeats
        replaced = self._folding.hold(kind, packet)
        if replaced is not None:
            # One id for all that have stood for this flood: if the process dies between the next
            # two lines, the later record wins.
            packet.message_id = replaced.message_id
        self._store(packet)
        if replaced is not None and replaced.number is not None and self.spool is not None:
            self.spool.drop(replaced.number)
        return True

    def _store(self, packet: Packet) -> None:
        """Put a durable packet into the spool and keep only its number."""
        if self.spool is None or not packet.durable or packet.message is None:
            return
        envelope = self._wrap(packet, packet.message)
        envelope.audience = packet.stream
        record = SpooledPacket(envelope=envelope, settlement=packet.settlement)
        try:
            packet.number = self.spool.append(record.SerializeToString())
        except SpoolFull:
            # In memory it still outlives an outage, if not this process.
            self.unspooled += 1
            return
        packet.message = None
        self.by_stream[packet.stream].spooled += 1
        self.spooled.ring()

    def _wrap(self, packet: Packet, message: Message) -> BusEnvelope:
        packet.message_id = packet.message_id or new_message_id()
        envelope = wrap(
            message,
            source=self._source,
            priority=packet.priority,
            message_id=packet.message_id,
            correlation_id=packet.correlation_id,
        )
        if packet.durable:
            # The spool goes by it, and so do those who look for repetitions.
            envelope.message_id = packet.message_id
        return envelope

    def _take_up(self, spool: Spool) -> None:
        """Queue what an earlier process could not deliver."""
        floods: dict[str, int] = {}
        kept: dict[int, Packet] = {}
        for number, record in spool.pending():
            try:
                spooled = SpooledPacket.FromString(record)
            except DecodeError:
                self.unreadable += 1
                continue
            envelope = spooled.envelope
            if envelope.message_type == BusMessageType.BUS_MESSAGE_TYPE_TELEMETRY:
                before = floods.pop(envelope.message_id, None)
                if before is not None and spool.drop(before):
                    del kept[before]
                floods[envelope.message_id] = number
            kept[number] = Packet(
                stream=envelope.audience,
                priority=envelope.priority or MessagePriority.MESSAGE_PRIORITY_NORMAL,
                message_id=envelope.message_id,
                correlation_id=envelope.correlation_id,
                settlement=spooled.settlement if spooled.HasField("settlement") else None,
                durable=True,
                message=None,
                number=number,
            )
        for packet in kept.values():
            self.depth += 1
            self._lane(packet.stream).add(packet)
