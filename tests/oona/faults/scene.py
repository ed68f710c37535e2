"""A worker's bus side at work on a server, and what must be true of it after every fault.

On the stage: a thread that plays training, with an outbox whose spool is on disk; the publisher
that empties it; another program that sends commands; the consumer that gets them. Of the commands
every other one is acknowledged by the handler, the rest are answered by training, whose outcomes
finish them. A test waits until things flow, does something to the server, and calls ``closes``.
"""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta
from typing import Final

import anyio
from redis.asyncio import Redis

from tests.oona.bus import (
    CONTROL,
    EMERGENCY,
    GROUP,
    OUTCOMES,
    TELEMETRY,
    Events,
    envelopes,
    letters,
    pending,
)
from tests.oona.faults.sender import Sender, number_of
from tests.oona.faults.training import Training
from tolaria_bus.leyline import SpooledPacket
from tolaria_bus.oona.consumer import Consumer
from tolaria_bus.oona.outbox import Outbox
from tolaria_bus.oona.publisher import Publisher
from tolaria_bus.oona.spool import Spool

_HELD: Final = 100
"""Steps of training that a fault lasts, at the least: it ends only when these were done, so that a
fault that holds training never does. A slow machine makes it last longer, and changes nothing."""

_PATIENCE: Final = 120.0  # seconds: a machine may be very busy
_MANY: Final = 10  # commands, and alerts, that must have got through
_CONNECTIONS: Final = 12  # of everybody on the stage
_FLOWING: Final = 50  # packets in the outbox, at most, of a publisher that keeps up

READING: Final = CONTROL
PUBLISHING: Final = ("bulk", "emergency")
_ENDS: Final = {"disconnected": "reconnected", "refused": "accepted"}


@dataclass
class Mark:
    """From where on nothing may be missing, where a fault took what the server had.

    Attributes:
        command: Number of the first command.
        urgent: Place of the first alert or signal.
        outcome: Place of the first outcome.
        metric: Number of the first metric.
    """

    command: int = 0
    urgent: int = 0
    outcome: int = 0
    metric: int = 0


async def until(condition: Callable[[], bool], what: Callable[[], object]) -> None:
    """Wait for something that tells nobody when it happens."""
    end = time.monotonic() + _PATIENCE
    while not condition():
        assert time.monotonic() < end, what()
        await anyio.sleep(0.005)


@dataclass
class Scene:
    """See the module."""

    outbox: Outbox
    spool: Spool
    publisher: Publisher
    training: Training
    sender: Sender
    operator: Redis
    consumer: Consumer
    events: Events
    handled: list[str]
    redelivered: list[str]

    async def flows(self) -> None:
        """Wait until what is sent and put from now on has got through, both ways."""
        command, urgent = self.sender.count + _MANY, len(self.training.urgent) + _MANY
        read = self.consumer.last_read
        await until(lambda: any(number_of(name) >= command for name in self.handled), self._state)
        await until(lambda: len(self.training.urgent) >= urgent, self._state)
        await until(lambda: self.outbox.depth <= _FLOWING, self._state)
        assert self.consumer.last_read > read

    async def told(self, name: str, *connections: str) -> None:
        """Wait until an event was told of each of these connections."""
        await until(
            lambda: {detail["connection"] for detail in self.events.of(name)} >= set(connections),
            self._state,
        )

    async def held(self, steps: int = _HELD) -> None:
        """Wait, while a fault lasts, until training has gone on for so many steps."""
        end = self.training.steps + steps
        await until(lambda: self.training.steps >= end, self._state)

    def mark(self) -> Mark:
        """From now on."""
        training = self.training
        counts = len(training.urgent), len(training.answered), training.steps
        return Mark(self.sender.count, *counts)

    def unconfirmed(self) -> Mark:
        """From now on, and what is in the spool: the server is down, and has confirmed no more."""
        mark, training = self.mark(), self.training
        records = [SpooledPacket.FromString(record) for _, record in self.spool.pending()]
        spooled = {record.envelope.message_id for record in records}
        known = enumerate(training.urgent), enumerate(training.answered)
        urgent, outcome = ([place for place, name in each if name in spooled] for each in known)
        mark.urgent = min([mark.urgent, *urgent])
        mark.outcome = min([mark.outcome, *outcome])
        return mark

    async def closes(self, since: Mark | None = None, *, in_order: bool = True) -> None:
        """Things flow again; then everybody stops, and nothing is missing.

        Args:
            since: Only of what came later is it asked for; by default of everything.
            in_order: The commands were handled in the order in which they were sent.
        """
        since = since or Mark()
        await self.flows()
        self.sender.stop()
        await until(lambda: set(self.handled) >= self._sent(since), self._state)
        await self._all_finished()
        await anyio.to_thread.run_sync(self.training.stop)
        assert await self.publisher.drain(timedelta(seconds=_PATIENCE)) == 0
        await self._all_finished()
        assert len(self.spool) == 0
        assert self.outbox.unspooled == 0
        assert self.outbox.shed == {}
        self._commands_were_handled(in_order=in_order)
        await self._packets_arrived(since)
        assert await letters(self.operator) == []
        assert len(await self.operator.client_list()) <= _CONNECTIONS
        # Whoever waits between two tries has nothing to lose any more, and isn't through yet.
        await until(lambda: not any(self._troubles().values()), self._state)

    def _sent(self, since: Mark) -> set[str]:
        return {sent for sent in self.sender.sent if number_of(sent) >= since.command}

    def _commands_were_handled(self, *, in_order: bool) -> None:
        once = sorted(set(self.handled), key=number_of)
        assert (self.handled if in_order else sorted(self.handled, key=number_of)) == once
        assert set(self.handled) - set(self.sender.sent) <= self.sender.unsure

    async def _all_finished(self) -> None:
        """Every entry was finished, and is deleted."""
        with anyio.fail_after(_PATIENCE):
            while await self.operator.xlen(CONTROL) or await pending(self.operator, CONTROL, GROUP):  # noqa: ASYNC110
                await anyio.sleep(0.01)
        await until(lambda: not self.consumer.in_flight, self._state)

    async def _packets_arrived(self, since: Mark) -> None:
        """Metrics at least once, alerts and outcomes exactly once, all of it in order."""
        training = self.training
        urgent = training.urgent[since.urgent :]
        metrics = [f"m{step}" for step in range(since.metric + 1, training.steps + 1)]
        outcomes = training.answered[since.outcome :]
        # What a reader that knows repetitions by their message id sees.
        assert (await self._arrived(EMERGENCY))[-len(urgent) :] == urgent
        assert list(dict.fromkeys(await self._arrived(TELEMETRY)))[-len(metrics) :] == metrics
        assert (await self._arrived(OUTCOMES))[-len(outcomes) :] == outcomes
        assert urgent
        assert metrics
        assert outcomes

    async def _arrived(self, stream: str) -> list[str]:
        return [envelope.message_id for envelope in await envelopes(self.operator, stream)]

    def _troubles(self) -> dict[str, set[str]]:
        """Those that haven't ended; none is told a second time before its end was."""
        troubles: dict[str, set[str]] = defaultdict(set)
        for name, detail in self.events.seen:
            connection, error = detail.get("connection", ""), detail.get("error", "")
            if name in _ENDS:
                # A connection is lost once; a server may refuse one thing after the other.
                told = error if name == "refused" else ""
                assert told not in troubles[connection + _ENDS[name]], self.events.seen
                troubles[connection + _ENDS[name]].add(told)
            elif name in _ENDS.values():
                assert troubles[connection + name], self.events.seen
                troubles[connection + name].clear()
        return troubles

    def _state(self) -> object:
        return {
            "steps": self.training.steps,
            "events": self.events.seen,
            "sent": self.sender.sent[-3:],
            "handled": self.handled[-3:],
            "depth": self.outbox.depth,
            "in flight": self.consumer.in_flight.ids(),
        }
