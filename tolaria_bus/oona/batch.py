"""A batch of packets on its way, and what became of it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import TimeoutError as RedisTimeoutError

from tolaria_bus.oona.events import reason_of
from tolaria_bus.oona.lanes import Packet

Fields = dict[bytes, bytes]
"""Of one entry, sealed."""


@dataclass
class Report:
    """What became of a batch, where it isn't simply delivered.

    Attributes:
        refused: What the server said to packets that stay to be sent again; by text, how often.
        streams: Their streams; true: nobody was there to take them.
        holder: Who has the run, if packets were fenced off; else ``None``.
        unsendable: Packets that can never be sent, with the reason.
        unreached: Why a node of a cluster couldn't be asked, while others answered.
    """

    refused: dict[str, int] = field(default_factory=dict)
    streams: dict[str, bool] = field(default_factory=dict)
    holder: str | None = None
    unsendable: list[tuple[Packet, str]] = field(default_factory=list)
    unreached: Exception | None = None

    def refuse(self, stream: str, error: Exception) -> None:
        """Count the refusal of a packet, or tell that nobody was there to take it."""
        if isinstance(error, RedisConnectionError | RedisTimeoutError | OSError):
            self.unreached = error
            self.streams[stream] = True
            return
        self.streams.setdefault(stream, False)
        text = reason_of(error)
        self.refused[text] = self.refused.get(text, 0) + 1


@dataclass
class Batch:
    """Packets that are sealed and not sent yet.

    Attributes:
        packets: All of them, in the order in which they were taken, the unsendable ones too.
        sealed_ms: When the first of them was sealed, by our clock; milliseconds since the epoch.
        jobs: What goes out in one command each.
        unsendable: Packets that can never be sent, with the reason.
    """

    packets: Sequence[Packet]
    sealed_ms: int
    jobs: list[list[tuple[Packet, Fields]]] = field(default_factory=list)
    unsendable: list[tuple[Packet, str]] = field(default_factory=list)
