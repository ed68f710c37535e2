"""Waiting for what is said on the bus: the demo has no other clock."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Generic, Self, TypeVar

from google.protobuf.message import Message
from redis import Redis

from tolaria_bus.leyline import SystemStatePacket, TelemetryEvent, TelemetryPacket
from tolaria_bus.oona.envelope import Opener, Refused
from tolaria_bus.oona.streams import Streams
from tolaria_bus.oona.trust import KeyRing

M = TypeVar("M", bound=Message)
BLOCK_MS = 500


class NotSeen(TimeoutError):
    """What was waited for didn't come; one line."""


@dataclass(frozen=True)
class Seen(Generic[M]):
    """A message, and when the server took it, in nanoseconds since the Unix epoch."""

    message: M
    taken_ns: int


class Watch:
    """Reads a run's streams, each from its beginning, and keeps its place in them.

    Args:
        url: The server.
        run: The run.
        alive: Called while waiting; raises if there is nothing to wait for any more.
    """

    def __init__(self, url: str, run: str, alive: Callable[[], None]) -> None:
        self.streams = Streams()
        self._run = run
        self._alive = alive
        self._client = Redis.from_url(url, socket_timeout=10)
        self._opener = Opener(KeyRing(), None)
        self._last: dict[str, str] = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._client.close()

    def state(
        self, what: str, good: Callable[[SystemStatePacket], bool], seconds: float = 60
    ) -> SystemStatePacket:
        """The first state packet from now on, one an epoch, that is as wanted."""
        stream = self.streams.state(self._run)
        newest: Any = self._client.xrevrange(stream, count=1)
        if newest:
            self._last[stream] = newest[0][0].decode()
        return self._next(stream, SystemStatePacket, what, good, seconds).message

    def alert(self, names: tuple[str, ...], seconds: float = 30) -> Seen[TelemetryPacket]:
        """The next alert of the run that has one of these names."""

        def good(packet: TelemetryPacket) -> bool:
            return packet.training_run_id == self._run and event_of(packet, names) is not None

        return self._next(
            self.streams.emergency, TelemetryPacket, f"alert {' or '.join(names)}", good, seconds
        )

    def event(self, name: str, seconds: float = 30) -> TelemetryPacket:
        """The next packet of the run's telemetry with an event of this name."""
        return self._next(
            self.streams.telemetry(self._run),
            TelemetryPacket,
            f"event {name}",
            lambda packet: event_of(packet, (name,)) is not None,
            seconds,
        ).message

    def _next(
        self, stream: str, kind: type[M], what: str, good: Callable[[M], bool], seconds: float
    ) -> Seen[M]:
        """The next message that is as wanted.

        Raises:
            NotSeen: There is none within the time.
        """
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            place: dict[Any, Any] = {stream: self._last.get(stream, "0")}
            reply: Any = self._client.xread(place, count=1, block=BLOCK_MS)
            if not reply:
                self._alive()
                continue
            entry_id, fields = reply[0][1][0]
            self._last[stream] = entry_id.decode()
            message = self._open(stream, self._last[stream], fields)
            if isinstance(message, kind) and good(message):
                milliseconds = int(self._last[stream].partition("-")[0])
                return Seen(message, milliseconds * 1_000_000)
        raise NotSeen(f"{what}: not seen on {stream} within {seconds:g} s")

    def _open(self, stream: str, entry_id: str, fields: dict[bytes, bytes]) -> Message | None:
        try:
            return self._opener.open(stream, entry_id, fields).message
        except Refused:
            # Whoever reads it will say so in the dead letters.
            return None


def event_of(packet: TelemetryPacket, names: tuple[str, ...]) -> TelemetryEvent | None:
    """The packet's event that has one of these names."""
    return next((event for event in packet.events if event.event_id in names), None)
