"""Sends what the outbox holds: the emergency lane over a connection of its own, the rest in bulk.

Whatever waits when a connection is free goes out in one round trip, so the batches grow with the
load and a lone packet waits for nobody; while one batch is on its way, the next is sealed. Nothing
is given up on an error. After a lost connection, packets go back to the head of their lane, which
is tried again with a growing wait. Where the server refuses (out of memory, read-only after a
failover), or a cluster's node is gone, that holds for the stream alone: the others don't wait for
it. Only the outbox's bounds for LOW and NORMAL shed anything. Each packet keeps its message id over
all attempts, and a durable one is written once for all of them.

Events: those of :class:`Attempts` for the connections ``bulk`` and ``emergency``; ``fenced``
(holder), ``unsendable`` (stream, message_id, error), ``shed`` (low, normal), ``unspooled``
(packets), ``unreadable`` (records), ``spool_failed`` (error).
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from datetime import timedelta
from typing import Final

import anyio
from redis.asyncio import Redis
from redis.exceptions import RedisError

from tolaria_bus.leyline import MessagePriority
from tolaria_bus.oona.attempts import Attempts
from tolaria_bus.oona.batch import Batch, Report
from tolaria_bus.oona.bell import Sleeper
from tolaria_bus.oona.copies import Copies
from tolaria_bus.oona.events import OnEvent, log_event
from tolaria_bus.oona.give_way import GiveWay
from tolaria_bus.oona.lanes import Lane, Packet
from tolaria_bus.oona.outbox import Outbox
from tolaria_bus.oona.sending import Sender
from tolaria_bus.oona.spool_syncing import keep_synced
from tolaria_bus.oona.trust import KeyRing

BATCH: Final = 128
"""Packets of one round trip: more gain nothing in speed, and hold the event loop longer."""

_FOLD_TICK: Final = 0.1  # seconds
_TELL_EVERY: Final = timedelta(seconds=5)


class Publisher:
    """Empties an outbox. One per outbox; create, ``run``, ``drain``, ``stop``.

    Args:
        bulk: Client of everything but emergencies.
        emergency: Client of the emergency stream; another one, so that it never waits for bulk.
        outbox: What to send.
        ring: Signs.
        token: The fencing token of our lease: with one, no outcome is written once a newer
            worker has the run.
        lengths: Length limit by stream key; others get ``sending.STREAM_LENGTH``.
        copies: What durable packets wait for, where there are replicas.
        on_event: Told what happens; by default the log is.
        on_fenced: Told who has the run, when outcomes are refused for that.
        batch: Packets of one round trip.
        tell_every: How often it is told what the outbox could not take, if there was anything.
        clock: Nanoseconds since the epoch.

    Attributes:
        attempts: By lane (``bulk``, ``emergency``): what its connection went through.
        connected: By lane: the last attempt reached the server.
    """

    def __init__(
        self,
        bulk: Redis,
        emergency: Redis,
        outbox: Outbox,
        ring: KeyRing,
        *,
        token: int | None = None,
        lengths: Mapping[str, int] | None = None,
        copies: Copies | None = None,
        on_event: OnEvent = log_event,
        on_fenced: Callable[[str], None] | None = None,
        batch: int = BATCH,
        tell_every: timedelta = _TELL_EVERY,
        clock: Callable[[], int] = time.time_ns,
    ) -> None:
        self.attempts = {name: Attempts(name, on_event) for name in ("bulk", "emergency")}
        self.connected = {"bulk": True, "emergency": True}
        self._outbox = outbox
        self._batch = batch
        self._on_event = on_event
        self._on_fenced = on_fenced
        self._tell_every = tell_every.total_seconds()
        self._told_shed = 0
        self._told_unspooled = 0
        self._scope = anyio.CancelScope()
        self._progress = anyio.Event()
        lengths = lengths or {}
        self._sending_alerts = False
        self._give_way = GiveWay(lambda: self._sending_alerts or bool(outbox.emergency))
        self._senders = {
            name: Sender(
                client,
                outbox,
                ring,
                token=token,
                lengths=lengths,
                copies=copies,
                give_way=way,
                clock=clock,
            )
            for name, client, way in (
                ("bulk", bulk, self._give_way),
                ("emergency", emergency, None),
            )
        }

    async def run(self) -> None:
        """Send until stopped or cancelled; what isn't delivered then stays in the outbox."""
        if self._outbox.unreadable:
            self._on_event("unreadable", {"records": str(self._outbox.unreadable)})
        with self._scope:
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(self._pump, "emergency", self._outbox.emergency)
                tasks.start_soon(self._pump, "bulk", self._outbox.bulk)
                if self._outbox.spool is not None:
                    spooled = self._outbox.spooled
                    tasks.start_soon(keep_synced, self._outbox.spool, spooled, self._on_event)
                tasks.start_soon(self._release_folded)
                tasks.start_soon(self._watch)

    async def drain(self, within: timedelta) -> int:
        """Wait until everything is delivered; ``run`` goes on.

        Args:
            within: At most so long.

        Returns:
            How many packets are left.
        """
        with anyio.move_on_after(within.total_seconds()):
            while True:
                self._outbox.release_folded(everything=True)
                if self._outbox.depth == 0:
                    break
                await self.progress()
        return self._outbox.depth

    async def progress(self) -> None:
        """Wait for the next batch to be answered, whatever the answer."""
        await self._progress.wait()

    def stop(self) -> None:
        """End ``run``."""
        self._scope.cancel()

    async def _pump(self, name: str, lane: Lane) -> None:
        attempts = self.attempts[name]
        sender = self._senders[name]
        with Sleeper(lane.bell) as sleeper:
            if not lane:
                await self._get_ready(name, lane, sender, attempts)
            while True:
                packets = self._outbox.take(lane, self._batch)
                if not packets:
                    await sleeper.sleep_unless(lambda: bool(lane), lane.due_in())
                    continue
                wait = await self._send_all(name, lane, packets, sender, attempts)
                if wait:
                    await anyio.sleep(wait)

    async def _get_ready(self, name: str, lane: Lane, sender: Sender, attempts: Attempts) -> None:
        """Connect before there is something to send: the first alert needn't wait for that."""
        if lane is not self._outbox.emergency:
            return
        while not lane:
            try:
                await sender.reach(self._outbox.streams.emergency)
            except (RedisError, OSError) as error:
                self.connected[name] = False
                await anyio.sleep(attempts.failed(error))
            else:
                self.connected[name] = True
                attempts.reached()
                return

    async def _send_all(
        self, name: str, lane: Lane, packets: list[Packet], sender: Sender, attempts: Attempts
    ) -> float:
        """Send these and what else waits, one batch on its way while the next is sealed.

        Returns:
            Seconds to wait before the next try; 0 when the lane is empty, or has streams that take
            packets.
        """
        out = deque([packets])
        try:
            batch = await sender.seal(packets)
            while True:
                sealed: list[Batch] = []
                # Fewer could not fill a batch yet; they gather until this one is answered.
                later = self._outbox.take(lane, self._batch) if len(lane) >= self._batch else []
                if later:
                    out.append(later)
                    async with anyio.create_task_group() as tasks:
                        tasks.start_soon(_seal, sender, later, sealed)
                        wait = await self._attempt(name, lane, sender, batch, attempts)
                else:
                    wait = await self._attempt(name, lane, sender, batch, attempts)
                self._progress.set()
                self._progress = anyio.Event()
                if wait is not None or not sealed:
                    return wait or 0.0
                out.popleft()
                (batch,) = sealed
        finally:
            # The later ones first, so that they end up behind the earlier ones.
            for some in reversed(out):
                self._outbox.give_back(lane, some)

    async def _attempt(
        self, name: str, lane: Lane, sender: Sender, batch: Batch, attempts: Attempts
    ) -> float | None:
        """Send a batch once.

        Returns:
            Seconds to wait before anything is sent again; ``None`` if nothing has to be.
        """
        alerts = lane is self._outbox.emergency
        try:
            self._sending_alerts |= alerts
            report = await sender.send(batch)
        except (RedisError, OSError) as error:
            self.connected[name] = False
            return attempts.failed(error)
        finally:
            if alerts:
                self._sending_alerts = False
                self._give_way.gone()
        self._tell(report)
        self._outbox.answered(lane, batch.packets, report.streams)
        if batch.jobs:
            self._judge(name, lane, report, attempts)
        # What was refused is set aside, and what is sealed already may be of the same streams.
        return 0.0 if report.streams else None

    def _judge(self, name: str, lane: Lane, report: Report, attempts: Attempts) -> None:
        """Tell of troubles that begin, and of those that end with the last stream set aside."""
        if report.unreached is not None:
            attempts.failed(report.unreached)
        elif not lane.unreached:
            attempts.reached()
        attempts.refused(report.refused)
        if not lane.set_aside:
            attempts.accepted()
        self.connected[name] = attempts.connected

    def _tell(self, report: Report) -> None:
        for packet, error in report.unsendable:
            detail = {"stream": packet.stream, "message_id": packet.message_id, "error": error}
            self._on_event("unsendable", detail)
        if report.holder is not None:
            self._on_event("fenced", {"holder": report.holder})
            if self._on_fenced is not None:
                self._on_fenced(report.holder)

    async def _release_folded(self) -> None:
        with Sleeper(self._outbox.alerted) as sleeper:
            while True:
                await sleeper.sleep_unless(lambda: self._outbox.folding)
                await anyio.sleep(_FOLD_TICK)
                self._outbox.release_folded()

    async def _watch(self) -> None:
        """Tell what the outbox could not take, every few seconds in which there was some."""
        try:
            while True:
                await anyio.sleep(self._tell_every)
                self._tell_not_taken()
        finally:
            self._tell_not_taken()

    def _tell_not_taken(self) -> None:
        outbox = self._outbox
        shed = dict(outbox.shed)
        if sum(shed.values()) > self._told_shed:
            self._told_shed = sum(shed.values())
            low = shed.pop(MessagePriority.MESSAGE_PRIORITY_LOW, 0)
            self._on_event("shed", {"low": str(low), "normal": str(sum(shed.values()))})
        if outbox.unspooled > self._told_unspooled:
            self._on_event("unspooled", {"packets": str(outbox.unspooled)})
            # Counted after it was told: if that is an alert, the spool couldn't take it either, and
            # it would be told for ever.
            self._told_unspooled = outbox.unspooled


async def _seal(sender: Sender, packets: Sequence[Packet], sealed: list[Batch]) -> None:
    sealed.append(await sender.seal(packets))
