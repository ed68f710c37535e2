"""Reads a stream as one consumer of a group; every entry ends acknowledged or a dead letter.

**Order of reading.** First what was delivered to this consumer before and isn't finished: after a
restart, and after a lost connection, when a reply may have been lost on its way. Then new entries.
In between, entries that dead consumers of the group have had for too long, or that a consumer
released when it was stopped, are taken over. One read is under way while the entries of the one
before are handed over.

**What is never lost.** An entry stays pending until its handler's side finishes it. If the group or
the stream is gone (``FLUSHALL``, failover) the group is made again at the stream's beginning.
Claims on entries that were read are extended without raising their delivery counts.

**Entries that kill.** The server's delivery count can't tell the entry whose handling killed the
process from the others of the same read. So an entry that is delivered again is marked on the
server before each time that the handler gets it, and unmarked when the handler has taken it on or
has failed on it; the mark of a killer stays, and counts. An entry that is new is not marked, which
spares a round trip for each; the first crash is therefore counted for nobody, and a killer is begun
``max_deliveries`` times at most before it becomes a dead letter (``fatal``). Deaths after the
handler has returned are the business of whoever took the entry on.

Events: those of :class:`Attempts`, :class:`Rounds`, :class:`Intake`, :class:`InFlight`,
:class:`Handover` and :class:`Release`.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Collection
from datetime import timedelta
from typing import Final

import anyio
from anyio.abc import ObjectSendStream
from redis.asyncio import Redis
from redis.exceptions import RedisError

from tolaria_bus.leyline import BusMessageType
from tolaria_bus.oona.attempts import Attempts
from tolaria_bus.oona.counts import Latency
from tolaria_bus.oona.events import OnEvent, log_event
from tolaria_bus.oona.handover import TRIES, Handler
from tolaria_bus.oona.in_flight import InFlight
from tolaria_bus.oona.intake import Intake, SyncClock
from tolaria_bus.oona.opening import Opener
from tolaria_bus.oona.portion import BATCH
from tolaria_bus.oona.reading import Delivered, GroupReader, Member
from tolaria_bus.oona.received import Received
from tolaria_bus.oona.release import Release
from tolaria_bus.oona.rounds import Rounds
from tolaria_bus.oona.trust import KeyRing, parse_entry_id

__all__ = ["BATCH", "BLOCK", "MIN_IDLE", "Consumer", "Handler", "Received"]

BLOCK: Final = timedelta(seconds=2)
MIN_IDLE: Final = timedelta(seconds=60)
"""A consumer that hasn't renewed its claim on an entry for so long counts as dead."""

_Round = tuple[int, list[Delivered] | None]
"""What was read after which beginning; ``None``: nothing could be."""


class Consumer:
    """One consumer of one group of one stream. ``prepare``, ``run``, ``stop``.

    Args:
        client: Blocks in reads; nobody else's, made with ``block``.
        acks: For everything else.
        stream: Key of the stream.
        group: The group; made if it isn't there.
        name: The consumer's. Stable over restarts, so that it finds its own pending entries.
        opener: Says what may be used.
        ring: Signs dead letters.
        accept: Kinds of messages that the handler takes; others are dead letters.
        delete: Finished entries are deleted: only where the stream has this one group.
        start: Where a group that never was begins: ``0`` with what the stream holds, ``$`` after.
        block: How long a read waits in the server.
        max_in_flight: Entries handed over and not finished, at most; reading waits then.
        max_deliveries: How often an entry may kill its process.
        tries: How often a handler that fails gets an entry.
        min_idle: See ``MIN_IDLE``.
        on_event: Told what happens.
        server_now: Seconds since the epoch on the server's clock, for ``latency``; ``None``: not
            known.
        sync_clock: Asks the server for its time, when an entry id seems to be ahead of it, or it
            isn't known yet; see :class:`Intake`.
        monotonic: Seconds; for the sweep and ``last_read``.
        clock: Nanoseconds since the epoch; for dead letters.

    Attributes:
        stream: Key of the stream.
        group: The group.
        in_flight: Entries handed over and not finished.
        last_read: When the read loop last went round, on the monotonic clock: a consumer whose
            loop stands still is dead, whatever its process says. A server that doesn't answer
            doesn't stop it: a read fails in the end, and is tried again.
        latency: From the server's having an entry to its hand-over: of the first entry of each
            read, unless it was delivered before.
    """

    def __init__(
        self,
        client: Redis,
        acks: Redis,
        *,
        stream: str,
        group: str,
        name: str,
        opener: Opener,
        ring: KeyRing,
        accept: Collection[BusMessageType.ValueType],
        delete: bool = False,
        start: str = "0",
        block: timedelta = BLOCK,
        max_in_flight: int = 1024,
        max_deliveries: int = 3,
        tries: int = TRIES,
        min_idle: timedelta = MIN_IDLE,
        on_event: OnEvent = log_event,
        server_now: Callable[[], float | None] = lambda: None,
        sync_clock: SyncClock | None = None,
        monotonic: Callable[[], float] = time.monotonic,
        clock: Callable[[], int] = time.time_ns,
    ) -> None:
        member = Member(stream, group, name, delete)
        self.stream = stream
        self.group = group
        self.last_read = monotonic()
        self.latency = Latency()
        self.in_flight = InFlight(acks, member, on_event)
        self._reader = GroupReader(client, acks, member)
        self._intake = Intake(
            acks,
            member,
            self.in_flight,
            opener=opener,
            ring=ring,
            accept=accept,
            max_deliveries=max_deliveries,
            on_event=on_event,
            sync_clock=sync_clock,
            clock=clock,
        )
        self._tries = tries
        self._min_idle = min_idle
        self._on_event = on_event
        self._server_now = server_now
        self._monotonic = monotonic
        self._attempts = Attempts(stream, on_event)
        self._rounds = Rounds(
            self._reader,
            member,
            self.in_flight,
            self._attempts,
            gone=self._intake.gone,
            start=start,
            block=block,
            max_in_flight=max_in_flight,
            min_idle=min_idle,
            on_event=on_event,
            monotonic=monotonic,
        )
        self._stopped = anyio.Event()
        self._reading = anyio.CancelScope()
        self._finishing = anyio.CancelScope()
        self._release: Release | None = None

    @property
    def handed_over(self) -> int:
        """Entries given to the handler."""
        return self._intake.handed_over

    @property
    def redelivered(self) -> int:
        """Entries that had been delivered before, to us or to another consumer."""
        return self._intake.redelivered

    @property
    def connected(self) -> bool:
        """The last read reached the server."""
        return self._attempts.connected

    @property
    def reconnects(self) -> int:
        """How often a connection, of reads or acknowledgements, was lost and came back."""
        return self._attempts.reconnects + self.in_flight.reconnects

    @property
    def read_age(self) -> float:
        """Seconds since the read loop last went round."""
        return self._monotonic() - self.last_read

    @property
    def lost(self) -> int:
        """Entries that were deleted while they were pending."""
        return self._intake.lost

    @property
    def dead(self) -> Counter[str]:
        """Entries that became dead letters, by reason."""
        return self._intake.burying.dead

    async def prepare(self) -> None:
        """Make the group, if need be: what is sent from now on is read.

        Raises:
            RedisError: redis-py's.
        """
        await self._rounds.prepare()

    async def run(self, handler: Handler) -> None:
        """Read until stopped, then until what was handed over is finished; or until cancelled.

        Args:
            handler: Gets entries one after the other. It returns when it has taken one on.
        """
        release = self._release = Release(
            self.stream, self._reader, self.in_flight, self._intake, self._on_event
        )
        try:
            async with anyio.create_task_group() as background:
                background.start_soon(self.in_flight.run)
                background.start_soon(self._keep_claims)
                with self._finishing:
                    async with anyio.create_task_group() as tasks:
                        self._intake.start(handler, tasks, self._tries)
                        await self._take_until_stopped()
                        self._intake.stop()
                    await release.not_handed_over()
                    while self.in_flight:
                        await self.in_flight.change()
                await release.unfinished()
                await release.last_acknowledgements()
                background.cancel_scope.cancel()
        finally:
            with anyio.CancelScope(shield=True):
                await release.not_handed_over()

    async def stop(self, within: timedelta | None = None) -> None:
        """Stop reading, and let others have what wasn't handed over; ``run`` ends by itself.

        Args:
            within: How long ``run`` waits for what was handed over to be finished; afterwards
                others get that too. ``None``: as long as it takes.
        """
        if within is not None:
            self._finishing.deadline = anyio.current_time() + within.total_seconds()
        self._stopped.set()
        self._intake.stop()
        self._reading.cancel()
        if self._release is not None:
            await self._release.done.wait()

    async def _take_until_stopped(self) -> None:
        """Take what is read, while the next is read."""
        send, receive = anyio.create_memory_object_stream[_Round](0)
        async with anyio.create_task_group() as reading, receive:
            reading.start_soon(self._read_until_stopped, send)
            async for beginning, entries in receive:
                self.last_read = self._monotonic()
                self._intake.suspicion.tell_late()
                if entries is None:
                    continue
                if beginning != self._rounds.beginnings:
                    # It comes again, behind what has to be taken first.
                    self._let_go(entries)
                    continue
                self._time(entries)
                # The next read is asked for before the work on these begins.
                await anyio.lowlevel.checkpoint()
                try:
                    await self._intake.take(entries)
                except (RedisError, OSError) as error:
                    self._let_go(entries)
                    self._rounds.failed(error)
                    self._reading.cancel()
                else:
                    self._attempts.answered()
                # Not while the next is waited for: it may be megabytes.
                entries = None

    def _time(self, entries: list[Delivered]) -> None:
        now = self._server_now()
        if now is not None and entries and not entries[0].redelivered:
            milliseconds, _ = parse_entry_id(entries[0].entry_id)
            self.latency.observe(now - milliseconds / 1000)

    async def _read_until_stopped(self, send: ObjectSendStream[_Round]) -> None:
        async with send:
            while not self._stopped.is_set():
                entries: list[Delivered] | None = None
                beginning = self._rounds.beginnings
                with anyio.CancelScope() as self._reading:
                    entries = await self._rounds.read()
                if entries is not None:
                    self.in_flight.hold(entries)
                if not self._stopped.is_set():
                    await send.send((beginning, entries))

    def _let_go(self, entries: list[Delivered]) -> None:
        self.in_flight.let_go(entry.entry_id for entry in entries)

    async def _keep_claims(self) -> None:
        while True:
            await anyio.sleep(self._min_idle.total_seconds() / 3)
            try:
                await self.in_flight.renew()
            except (RedisError, OSError):
                # The reader meets the same trouble, and tells of it; the next renewal is in time.
                continue
