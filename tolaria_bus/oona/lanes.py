"""The two queues of the outbox."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass

from google.protobuf.message import Message

from tolaria_bus.leyline import MessagePriority, Settlement
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


class Lane:
    """Packets of one connection. Use it under the outbox's lock, but for the bell."""

    def __init__(self) -> None:
        self.bell = Bell()
        self._durable: deque[Packet] = deque()
        self._others: deque[Packet] = deque()

    def __len__(self) -> int:
        return len(self._durable) + len(self._others)

    def add(self, packet: Packet) -> None:
        """Queue a packet."""
        (self._durable if packet.durable else self._others).append(packet)

    def add_first(self, packet: Packet) -> None:
        """Queue a packet before all of its kind."""
        (self._durable if packet.durable else self._others).appendleft(packet)

    def take(self, most: int) -> list[Packet]:
        """Remove and return the next packets."""
        taken: list[Packet] = []
        for queue in (self._durable, self._others):
            while queue and len(taken) < most:
                taken.append(queue.popleft())
        return taken
