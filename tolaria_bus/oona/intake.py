"""What becomes of an entry that was read: it goes to the handler, or to the dead letters.

Entries that kill their process are counted here; see ``consumer``.
"""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable, Collection, Sequence
from itertools import islice
from typing import Final

import anyio
from anyio.abc import TaskGroup
from redis.asyncio import Redis
from redis.exceptions import NoPermissionError, RedisError

from tolaria_bus.leyline import BusMessageType
from tolaria_bus.leyline.codec import short_name
from tolaria_bus.oona.burying import Burying
from tolaria_bus.oona.dead_letters import begun_key
from tolaria_bus.oona.events import OnEvent, reason_of
from tolaria_bus.oona.handover import Handler, Handover
from tolaria_bus.oona.in_flight import InFlight
from tolaria_bus.oona.marks import Marks
from tolaria_bus.oona.opening import IdAhead, Opened, Opener, Refused
from tolaria_bus.oona.reading import Delivered, Member
from tolaria_bus.oona.received import Received
from tolaria_bus.oona.suspicion import Suspicion
from tolaria_bus.oona.trust import KeyRing

_SHOWN: Final = 20  # ids in an event
_OPENING_SECONDS: Final = 0.001
"""Entries are opened for so long before the first of them is handed over."""
_OPENING_BYTES: Final = 4096
"""Of entries that are opened between two looks at the clock: some 0.1 ms."""

SyncClock = Callable[[], Awaitable[None]]
_Judged = tuple[Delivered, Opened | Refused]


class Intake:
    """Judges entries and hands them over.

    Events: ``entries_lost`` (stream, count, entries), ``server_clock_unknown`` (error): we may not
    ask for it, and those of :class:`Burying`, :class:`Marks` and :class:`Suspicion`.

    Args:
        client: Not the one that blocks.
        member: Which consumer.
        in_flight: The entries in the handler's hands.
        opener: Says what may be used.
        ring: Signs dead letters.
        accept: Kinds of messages that the handler takes.
        max_deliveries: How often an entry may kill its process.
        on_event: Told what happens.
        sync_clock: Asks the server for its time, for the ``opener``: a clock that was asked once
            is wrong when the server's steps, or when another server takes its place. Raises
            redis-py's errors. ``None``: somebody else sees to it.
        clock: Nanoseconds since the epoch.
        monotonic: Seconds.

    Attributes:
        in_flight: The entries in the handler's hands.
        handed_over: Entries given to the handler.
        lost: Entries that were deleted while they were pending.
        redelivered: Entries that had been delivered before, to us or to another consumer.
        burying: Writes dead letters.
        suspicion: Counts forgeries.
    """

    def __init__(
        self,
        client: Redis,
        member: Member,
        in_flight: InFlight,
        *,
        opener: Opener,
        ring: KeyRing,
        accept: Collection[BusMessageType.ValueType],
        max_deliveries: int,
        on_event: OnEvent,
        sync_clock: SyncClock | None = None,
        clock: Callable[[], int] = time.time_ns,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self.handed_over = 0
        self.lost = 0
        self.redelivered = 0
        self.suspicion = Suspicion(member.stream, on_event)
        self.burying = Burying(client, member, in_flight, ring=ring, on_event=on_event, clock=clock)
        self._member = member
        self.in_flight = in_flight
        self._opener = opener
        self._accept = frozenset(accept)
        self._only = next(iter(self._accept)) if len(self._accept) == 1 else None
        self._on_event = on_event
        self._sync_clock = sync_clock
        self._monotonic = monotonic
        begun = begun_key(member.stream, member.group)
        self._marks = Marks(client, member, begun, max_deliveries, on_event)
        self._handover: Handover | None = None
        self._stopping = False

    def start(self, handler: Handler, tasks: TaskGroup, tries: int) -> None:
        """Begin to hand over; what has to wait waits in ``tasks``."""
        self.burying.start(tasks)
        self._handover = Handover(handler, tasks, self._marks, tries=tries, on_event=self._on_event)

    def stop(self) -> None:
        """Begin nothing more; ``tasks`` end soon."""
        self._stopping = True
        self.burying.stop()
        if self._handover is not None:
            self._handover.stop()

    def end(self) -> None:
        """The tasks have ended: what waited in them isn't in anybody's hands any more."""
        if self._handover is not None:
            for received in self._handover.left():
                self.in_flight.remove(received.entry_id)
        self.burying.end()

    async def take(self, entries: Sequence[Delivered]) -> None:
        """Do what has to be done with entries, in their order, until stopped.

        Raises:
            RedisError, OSError: it couldn't be; those left are still pending, and to be read again.
        """
        if self._marks.left:
            await self._marks.forget()
        if self._sync_clock is not None and entries and not self._opener.knows_time:
            await self._sync(self._sync_clock)
        place = 0
        while place < len(entries) and not self._stopping:
            entry = entries[place]
            if entry.redelivered:
                await self._take_again(entry)
                place += 1
            else:
                place += await self._take_new(entries, place)

    async def _take_new(self, entries: Sequence[Delivered], start: int) -> int:
        """Open new entries for a short time, then hand them over; how many were taken."""
        until = self._monotonic() + _OPENING_SECONDS
        judged: list[_Judged] = []
        ahead = False
        opened_so_far = 0
        for entry in islice(entries, start, None):
            if entry.redelivered:
                break
            # Small ones are quicker opened than a clock is asked.
            if opened_so_far > _OPENING_BYTES:
                opened_so_far = 0
                if self._monotonic() > until:
                    break
            opened_so_far += entry.size
            try:
                judged.append((entry, self._open(entry)))
            except Refused as refused:
                judged.append((entry, _without_frames(refused)))
                ahead = ahead or isinstance(refused, IdAhead)
        if ahead:
            judged = await self._judge_again(judged)
        self._opener.save_nonces()
        take_on, hand = self.in_flight.take_on, self._running.hand
        for entry, opened in judged:
            if self._stopping:
                break
            if type(opened) is Opened and entry.fields:
                if take_on(entry.entry_id):
                    self.handed_over += 1
                    await hand(Received(self._member, entry, opened, self))
            elif not self._is_done_with(entry) and isinstance(opened, Refused):
                await self._refuse(entry, opened)
        # Others get the event loop: an alert doesn't wait for commands to be opened.
        await anyio.lowlevel.checkpoint()
        return len(judged)

    async def _take_again(self, entry: Delivered) -> None:
        """An entry that was delivered before may be one that kills: it is marked as begun."""
        if self._is_done_with(entry):
            return
        self.redelivered += 1
        why = await self._marks.begin(entry.entry_id)
        if why:
            await self.burying.bury(entry, "fatal", why)
            return
        opened = self._judge(entry)
        if isinstance(opened, IdAhead):
            try:
                ((_, opened),) = await self._judge_again([(entry, opened)])
            except (RedisError, OSError):
                await self._marks.undo(entry.entry_id)
                raise
        self._opener.save_nonces()
        if isinstance(opened, Refused):
            await self._refuse(entry, opened)
            return
        if not self.in_flight.add(entry.entry_id):
            await self._marks.undo(entry.entry_id)
            return
        self.handed_over += 1
        if await self._running.hand(Received(self._member, entry, opened, self)):
            self._marks.taken_on(entry.entry_id)
            await self._marks.forget()
        else:
            await self._marks.undo(entry.entry_id)

    def _is_done_with(self, entry: Delivered) -> bool:
        """Was it handed out before, or deleted while it was pending?"""
        if self.in_flight.handed_out_before(entry.entry_id):
            return True
        if not entry.fields:
            self.gone([entry.entry_id])
            self.in_flight.acknowledge_soon(entry.entry_id)
            return True
        return False

    def gone(self, entry_ids: Sequence[str]) -> None:
        """Entries were deleted while they were pending: count and tell."""
        self.lost += len(entry_ids)
        self._on_event(
            "entries_lost",
            {
                "stream": self._member.stream,
                "count": str(len(entry_ids)),
                "entries": " ".join(entry_ids[:_SHOWN]),
            },
        )

    async def acknowledge(self, received: Received) -> None:
        """See :meth:`Received.ack`."""
        await self.in_flight.acknowledge(received.entry_id)

    async def bury(self, received: Received, reason: str, detail: str) -> None:
        """See :meth:`Received.dead_letter`."""
        entry = Delivered(
            received.entry_id, received.fields, received.deliveries, received.redelivered
        )
        await self.burying.bury(entry, reason, detail)

    def forget(self, received: Received) -> None:
        """See :meth:`Received.forget`."""
        self.in_flight.finish(received.entry_id, acknowledged=False)

    def _open(self, entry: Delivered) -> Opened:
        opened = self._opener.open(
            self._member.stream, entry.entry_id, entry.fields, json_type=self._only
        )
        if opened.envelope.message_type not in self._accept:
            wanted = " or ".join(short_name(BusMessageType, kind) for kind in sorted(self._accept))
            got = short_name(BusMessageType, opened.message_type)
            raise Refused("type", f"message_type is {got}; this stream takes {wanted}")
        return opened

    def _judge(self, entry: Delivered) -> Opened | Refused:
        try:
            return self._open(entry)
        except Refused as refused:
            return _without_frames(refused)

    async def _judge_again(self, judged: list[_Judged]) -> list[_Judged]:
        """An entry seems to be ahead of the server: is it ahead of what the server's clock says?"""
        if self._sync_clock is None:
            return judged
        await self._sync(self._sync_clock)
        return [
            (entry, self._judge(entry) if isinstance(opened, IdAhead) else opened)
            for entry, opened in judged
        ]

    async def _sync(self, sync_clock: SyncClock) -> None:
        try:
            await sync_clock()
        except NoPermissionError as error:
            # Then judged by what is known.
            self._sync_clock = None
            self._on_event("server_clock_unknown", {"error": reason_of(error)})

    @property
    def _running(self) -> Handover:
        if self._handover is None:
            raise RuntimeError("the consumer isn't running")
        return self._handover

    async def _refuse(self, entry: Delivered, refused: Refused) -> None:
        self.suspicion.refused(refused, entry.entry_id)
        await self.burying.bury(entry, refused.reason, refused.detail)
        if isinstance(refused, IdAhead):
            await self.burying.mend()


def _without_frames(refused: Refused) -> Refused:
    """Cut it off from where it was raised.

    That holds the frames that hold it, and with it entries of megabytes, until the garbage
    collector comes.
    """
    refused.__traceback__ = refused.__context__ = None
    return refused
