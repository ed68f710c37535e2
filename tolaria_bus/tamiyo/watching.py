"""One run: its state packets read as one of the group ``tamiyo``, and answered.

Several Tamiyos share the packets of a run, so none has seen all: what it has not seen of the run's
past it reads from the stream before it answers. A packet that is old, or isn't the newest any more,
is nobody's to answer: the run has gone on.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from datetime import timedelta
from typing import Any, Final

from redis.asyncio import Redis

from tolaria_bus.leyline import AdaptationCommand, SystemStatePacket
from tolaria_bus.oona.alone import open_consumer
from tolaria_bus.oona.connection import ServerClock
from tolaria_bus.oona.consumer import Received
from tolaria_bus.oona.opening import Opener, Refused
from tolaria_bus.oona.streams import Streams
from tolaria_bus.oona.trust import KeyRing, parse_entry_id
from tolaria_bus.tamiyo.answering import Answerer
from tolaria_bus.tamiyo.history import LENGTH, History
from tolaria_bus.tamiyo.policies import PolicyBook

GROUP: Final = "tamiyo"
_FRESH: Final = timedelta(seconds=1)
"""A packet that young is the newest."""

OnEvent = Callable[[str, Mapping[str, str]], None]
Send = Callable[[str, AdaptationCommand, float], None]
"""Gets the run, its answer, and how long that took, in seconds since the packet was handed over."""


class RunWatch:
    """Answers one run.

    Args:
        run: The run's id.
        client: For looking back in its stream; not closed here.
        clock: The server's.
        streams: Names of the streams.
        ring: Verifies packets.
        policies: Which policy it has.
        answerer: Makes answers.
        send: Sends them.
        max_age: Of a packet that is answered.
        on_event: Told what happens.

    Attributes:
        stale: Packets that weren't answered for their age.
    """

    def __init__(
        self,
        run: str,
        client: Redis,
        clock: ServerClock,
        *,
        streams: Streams,
        ring: KeyRing,
        policies: PolicyBook,
        answerer: Answerer,
        send: Send,
        max_age: timedelta,
        on_event: OnEvent,
    ) -> None:
        self.stale = 0
        self._run = run
        self._client = client
        self._clock = clock
        self._stream = streams.state(run)
        self._ring = ring
        self._opener = Opener(ring, None)
        self._policies = policies
        self._answerer = answerer
        self._send = send
        self._max_age = max_age
        self._on_event = on_event
        self._history = History()
        self._last = ""

    async def run(self, url: str, name: str) -> None:
        """Read and answer until cancelled.

        Args:
            url: The server.
            name: Of this consumer in its group.
        """
        now = self._clock.now_ms() or 0
        since = max(0, now - int(self._max_age.total_seconds() * 1000))
        async with open_consumer(
            url,
            stream=self._stream,
            group=GROUP,
            name=name,
            accept=SystemStatePacket,
            ring=self._ring,
            # What is older wouldn't be answered.
            start=f"{since}-0",
            on_event=self._on_event,
        ) as consumer:
            await consumer.run(self.take)

    async def take(self, received: Received) -> None:
        """Answer a packet.

        Raises:
            RedisError, OSError: Its past can't be read; it is tried again.
        """
        began = time.perf_counter()
        packet = received.opened.message
        assert isinstance(packet, SystemStatePacket)
        if packet.training_run_id != self._run:
            await received.dead_letter(
                "audience", f"training_run_id {packet.training_run_id[:80]!r} is not {self._run!r}"
            )
            return
        if not await self._is_fresh(received.entry_id):
            self.stale += 1
            received.ack_soon()
            return
        await self._look_back(received.entry_id)
        history = self._history.before(packet)
        self._remember(packet, received.entry_id)
        command = await self._answerer.answer(self._policies.of(self._run), packet, history)
        self._send(self._run, command, time.perf_counter() - began)
        # If it is read once more, its answer has the same id, and is taken once.
        received.ack_soon()

    async def _is_fresh(self, entry_id: str) -> bool:
        now = self._clock.now()
        if now is None:
            return True
        age = timedelta(seconds=now - parse_entry_id(entry_id)[0] / 1000)
        if age <= _FRESH:
            return True
        if age > self._max_age:
            return False
        newest: Any = await self._client.xrevrange(self._stream, count=1)
        return bool(newest) and newest[0][0].decode() == entry_id

    async def _look_back(self, entry_id: str) -> None:
        """Read what others have answered, or an earlier Tamiyo has."""
        if self._last:
            found: Any = await self._client.xrange(
                self._stream, f"({self._last}", f"({entry_id}", count=LENGTH
            )
        else:
            found = await self._client.xrevrange(self._stream, f"({entry_id}", count=LENGTH)
            found = found[::-1]
        for key, fields in found:
            try:
                message = self._opener.open(self._stream, key, fields).message
            except Refused:
                continue  # Whoever is handed it makes a dead letter of it.
            if isinstance(message, SystemStatePacket) and message.training_run_id == self._run:
                self._remember(message, key.decode())

    def _remember(self, packet: SystemStatePacket, entry_id: str) -> None:
        if not self._last or parse_entry_id(entry_id) > parse_entry_id(self._last):
            self._history = self._history.then(packet)
            self._last = entry_id
