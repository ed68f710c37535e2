"""Many packets, one round trip: commands in, replies out, each packet's fate told to the outbox.

A durable packet is written once, however often it has to be sent: its message id is remembered in
the slot of its stream. One that answers an entry finishes that entry as well. Where both are in the
slot of the run, one script does the two; it also refuses when a newer worker has the run. For an
entry in another slot the message comes first and the acknowledgement after its reply; a crash
between the two repeats both, to the same end.

Sealing is apart from sending, so that a batch is sealed while the one before is on its way.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, Self

import anyio
from google.protobuf.message import DecodeError
from redis.asyncio import Redis
from redis.exceptions import RedisError, ResponseError

from tolaria_bus.leyline.codec import CodecError
from tolaria_bus.oona.batch import Batch, Fields, Report
from tolaria_bus.oona.cluster import ClusterClient
from tolaria_bus.oona.copies import Copies
from tolaria_bus.oona.events import reason_of
from tolaria_bus.oona.give_way import GiveWay
from tolaria_bus.oona.lanes import Packet
from tolaria_bus.oona.lease import fence_key
from tolaria_bus.oona.outbox import Outbox
from tolaria_bus.oona.scripts import (
    Argument,
    Entry,
    append_command,
    append_once_command,
    settle_command,
    settle_reply,
)
from tolaria_bus.oona.sealing import seal_envelope
from tolaria_bus.oona.streams import Streams, hash_tag, settled_of
from tolaria_bus.oona.trust import FRESH_AHEAD_MS, FRESH_BACK_MS, KeyRing

STREAM_LENGTH: Final = 100_000
"""Entries kept in a stream for which nothing else is said."""

_SEALED_AT_ONCE: Final = 32
"""Between so many, others get the event loop."""

_TAKEN_MS: Final = FRESH_BACK_MS - FRESH_AHEAD_MS
"""So long after its sealing a server adds what is added once: readers take it, also where the ids
of its stream are as far ahead of the server as they may be."""


@dataclass(frozen=True, slots=True)
class _RunKeys:
    """Keys of the run whose outcomes are sent, all in its slot."""

    outcomes: str
    settled: str
    fence: str
    slot: str

    @classmethod
    def of(cls, streams: Streams, run: str) -> Self:
        settled = streams.settled(run)
        return cls(streams.outcomes(run), settled, fence_key(streams, run), hash_tag(settled))


class Sender:
    """Sends packets over one client.

    Args:
        client: The connection.
        outbox: Whose packets they are.
        ring: Signs.
        token: The fencing token of our lease; ``None``: outcomes aren't fenced.
        lengths: Length limit by stream key; others get ``STREAM_LENGTH``.
        copies: What durable packets wait for; ``None``: the server's reply is enough.
        give_way: What goes before these packets; ``None``: nothing does.
        clock: Nanoseconds since the epoch.
    """

    def __init__(
        self,
        client: Redis,
        outbox: Outbox,
        ring: KeyRing,
        *,
        token: int | None,
        lengths: Mapping[str, int],
        copies: Copies | None = None,
        give_way: GiveWay | None = None,
        clock: Callable[[], int] = time.time_ns,
    ) -> None:
        self._client = client
        self._outbox = outbox
        self._ring = ring
        self._token = token
        self._lengths = lengths
        self._copies = copies
        self._give_way = give_way
        self._clock = clock
        self._run = None if outbox.run is None else _RunKeys.of(outbox.streams, outbox.run)

    async def reach(self, stream: str) -> None:
        """Connect to the server that has a stream. Raises redis-py's errors, and OSError."""
        await self._client.xlen(stream)

    async def seal(self, packets: Sequence[Packet]) -> Batch:
        """Seal packets for one attempt to send them, which should follow at once."""
        batch = Batch(packets, self._clock() // 1_000_000)
        groups: dict[tuple[str, bool], list[tuple[Packet, Fields]]] = {}
        for place, packet in enumerate(packets, start=1):
            try:
                envelope = self._outbox.envelope(packet)
                fields = seal_envelope(
                    envelope, stream=packet.stream, ring=self._ring, clock=self._clock
                )
            except (CodecError, DecodeError) as error:
                batch.unsendable.append((packet, reason_of(error)))
                continue
            if self._settles(packet):
                batch.jobs.append([(packet, fields)])
            else:
                key = packet.stream, packet.durable
                group = groups.get(key)
                if group is None:
                    group = groups[key] = []
                    batch.jobs.append(group)
                group.append((packet, fields))
            if self._give_way is not None and self._give_way.due():
                await self._give_way.wait()
            elif place % _SEALED_AT_ONCE == 0:
                await anyio.lowlevel.checkpoint()
        return batch

    async def send(self, batch: Batch) -> Report:
        """Send; packets that the server has are ``done`` afterwards, also after an error.

        Raises:
            RedisError, OSError: the connection failed, that of a cluster aside; what isn't done
                may or may not have arrived, and is sent again under the same message id.
        """
        report = Report(unsendable=batch.unsendable)
        for packet, _ in batch.unsendable:
            self._outbox.leave(packet)
        if not batch.jobs:
            return report
        commands = [self._command(job, batch.sealed_ms + _TAKEN_MS) for job in batch.jobs]
        copies = self._copies if any(job[0][0].durable for job in batch.jobs) else None
        if copies is not None:
            commands.append(copies.command())
        replies = await self._ask(commands)
        missing = copies.missing(replies.pop()) if copies is not None else None
        waiting: list[Packet] = []
        for job, reply in zip(batch.jobs, replies, strict=True):
            if isinstance(reply, Exception):
                for packet, _ in job:
                    report.refuse(packet.stream, reply)
                continue
            packet, _ = job[0]
            if self._settles(packet) and (settled := settle_reply(reply)).fenced:
                report.holder = settled.holder
                self._outbox.leave(packet)
                continue
            if missing is not None and packet.durable:
                for packet, _ in job:
                    report.refuse(packet.stream, missing)
                continue
            for packet, _ in job:
                if packet.settlement is not None and self._entry(packet) is None:
                    waiting.append(packet)
                else:
                    self._outbox.delivered(packet)
        if waiting:
            await self._acknowledge(waiting, report)
        return report

    async def _ask(self, commands: Sequence[list[Argument]]) -> list[Any]:
        """Send commands in one round trip; replies, the server's refusals among them.

        Of a cluster also what its nodes were lost with: others take their packets meanwhile.
        """
        try:
            return await self._ask_at_once(commands)
        except (RedisError, OSError) as error:
            if not isinstance(self._client, ClusterClient):
                raise
            return [error for _ in commands]

    async def _ask_at_once(self, commands: Sequence[list[Argument]]) -> list[Any]:
        if len(commands) == 1:
            # Without a pipeline a lone packet gets there sooner.
            try:
                return [await self._client.execute_command(*commands[0])]  # type: ignore[no-untyped-call]
            except ResponseError as error:
                return [error]
        pipe = self._client.pipeline(transaction=False)
        for command in commands:
            pipe.execute_command(*command)
        return await pipe.execute(raise_on_error=False)

    def _command(self, job: Sequence[tuple[Packet, Fields]], until_ms: int) -> list[Argument]:
        packet, fields = job[0]
        stream = packet.stream
        keep = self._lengths.get(stream, STREAM_LENGTH)
        if self._run is not None and self._settles(packet):
            return settle_command(
                fields,
                stream=stream,
                settled=self._run.settled,
                fence=self._run.fence,
                message_id=packet.message_id,
                token=self._token,
                entry=self._entry(packet),
                keep=keep,
                until_ms=until_ms,
            )
        if packet.durable:
            entries = [(packet.message_id, fields) for packet, fields in job]
            return append_once_command(
                stream, settled_of(stream), entries, keep=keep, until_ms=until_ms
            )
        return append_command(stream, [fields for _, fields in job], keep=keep)

    def _settles(self, packet: Packet) -> bool:
        """Does it go through settle.lua? Every outcome does, with or without an entry."""
        if self._run is None:
            return False
        answers = packet.settlement is not None or packet.stream == self._run.outcomes
        return answers and hash_tag(packet.stream) == self._run.slot

    def _entry(self, packet: Packet) -> Entry | None:
        """The entry that the script finishes; ``None`` if there is none, or in another slot."""
        settlement = packet.settlement
        if settlement is None or self._run is None or not self._settles(packet):
            return None
        if hash_tag(settlement.stream) != self._run.slot:
            return None
        return Entry(settlement.stream, settlement.group, settlement.entry_id, settlement.delete)

    async def _acknowledge(self, packets: Sequence[Packet], report: Report) -> None:
        """Finish the entries of packets that are on their streams, in other slots than these."""
        entries = [packet.settlement for packet in packets if packet.settlement is not None]
        replies = await self._ask(
            [["XACK", entry.stream, entry.group, entry.entry_id] for entry in entries]
        )
        for packet, reply in zip(packets, replies, strict=True):
            if isinstance(reply, Exception):
                report.refuse(packet.stream, reply)
            else:
                self._outbox.delivered(packet)
