"""Many packets, one round trip: commands in, replies out, each packet's fate told to the outbox.

A packet that answers an entry finishes that entry as well. Where both are in the slot of the run,
one script does the two; it also refuses when a newer worker has the run, and adds nothing for a
message that an earlier attempt has written. For an entry in another slot the message comes first
and the acknowledgement after its reply; a crash between the two repeats both, to the same end.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final

import anyio
from google.protobuf.message import DecodeError
from redis.asyncio import Redis
from redis.asyncio.client import Pipeline
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import TimeoutError as RedisTimeoutError

from tolaria_bus.leyline.codec import CodecError
from tolaria_bus.oona.copies import Copies
from tolaria_bus.oona.events import reason_of
from tolaria_bus.oona.lanes import Packet
from tolaria_bus.oona.lease import fence_key
from tolaria_bus.oona.outbox import Outbox
from tolaria_bus.oona.scripts import Entry, queue_append, queue_settle, settle_reply
from tolaria_bus.oona.sealing import seal_envelope
from tolaria_bus.oona.trust import KeyRing

STREAM_LENGTH: Final = 100_000
"""Entries kept in a stream for which nothing else is said."""

_SEALED_AT_ONCE: Final = 32
"""Between so many, others get the event loop: an alert doesn't wait for bulk to be signed."""

_Sealed = tuple[Packet, dict[bytes, bytes]]


@dataclass
class Report:
    """What became of a batch, where it isn't simply delivered.

    Attributes:
        refused: What the server said to packets that stay to be sent again; by text, how often.
        holder: Who has the run, if packets were fenced off; else ``None``.
        unsendable: Packets that can never be sent, with the reason.
        unreached: Why a node of a cluster couldn't be asked, while others answered.
    """

    refused: dict[str, int] = field(default_factory=dict)
    holder: str | None = None
    unsendable: list[tuple[Packet, str]] = field(default_factory=list)
    unreached: Exception | None = None

    def refuse(self, error: Exception) -> None:
        """Count the refusal of a packet, or the absence of who could have taken it."""
        if isinstance(error, RedisConnectionError | RedisTimeoutError | OSError):
            self.unreached = error
            return
        text = reason_of(error)
        self.refused[text] = self.refused.get(text, 0) + 1


class Sender:
    """Sends packets over one client.

    Args:
        client: The connection.
        outbox: Whose packets they are.
        ring: Signs.
        token: The fencing token of our lease; ``None``: outcomes aren't fenced.
        lengths: Length limit by stream key; others get ``STREAM_LENGTH``.
        copies: What durable packets wait for; ``None``: the server's reply is enough.
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
        clock: Callable[[], int] = time.time_ns,
    ) -> None:
        self._client = client
        self._outbox = outbox
        self._ring = ring
        self._token = token
        self._lengths = lengths
        self._copies = copies
        self._clock = clock
        streams, run = outbox.streams, outbox.run
        self._outcomes = streams.outcomes(run)
        self._settled = streams.settled(run)
        self._fence = fence_key(streams, run)
        self._slot = hash_tag(self._settled)

    async def send(self, packets: Sequence[Packet]) -> Report:
        """Send; packets that the server has are ``done`` afterwards, also after an error.

        Raises:
            RedisError, OSError: the connection failed; what isn't done may or may not have
                arrived, and is sent again under the same message id.
        """
        report = Report()
        jobs = self._jobs(await self._seal(packets, report))
        pipe = self._client.pipeline(transaction=False)
        for job in jobs:
            self._queue(pipe, job)
        copies = self._copies if any(packet.durable for packet in packets) else None
        if copies is not None:
            copies.ask(pipe)
        replies = await pipe.execute(raise_on_error=False)
        missing = copies.missing(replies.pop()) if copies is not None else None
        waiting: list[Packet] = []
        for job, reply in zip(jobs, replies, strict=True):
            for packet, _ in job:
                if isinstance(reply, Exception):
                    report.refuse(reply)
                elif self._is_scripted(packet) and (settled := settle_reply(reply)).fenced:
                    report.holder = settled.holder
                    self._outbox.leave(packet)
                elif missing is not None and packet.durable:
                    report.refuse(missing)
                elif packet.settlement is not None and self._entry(packet) is None:
                    waiting.append(packet)
                else:
                    self._outbox.delivered(packet)
        if waiting:
            await self._acknowledge(waiting, report)
        return report

    async def _seal(self, packets: Sequence[Packet], report: Report) -> list[_Sealed]:
        sealed: list[_Sealed] = []
        for place, packet in enumerate(packets, start=1):
            try:
                envelope = self._outbox.envelope(packet)
                fields = seal_envelope(
                    envelope, stream=packet.stream, ring=self._ring, clock=self._clock
                )
            except (CodecError, DecodeError) as error:
                report.unsendable.append((packet, reason_of(error)))
                self._outbox.leave(packet)
                continue
            sealed.append((packet, fields))
            if place % _SEALED_AT_ONCE == 0:
                await anyio.lowlevel.checkpoint()
        return sealed

    def _jobs(self, sealed: Sequence[_Sealed]) -> list[list[_Sealed]]:
        """What goes out in one command each: an outcome alone, of others all for one stream."""
        jobs: list[list[_Sealed]] = []
        by_stream: dict[str, list[_Sealed]] = {}
        for packet, fields in sealed:
            if self._is_scripted(packet):
                jobs.append([(packet, fields)])
            elif packet.stream in by_stream:
                by_stream[packet.stream].append((packet, fields))
            else:
                by_stream[packet.stream] = [(packet, fields)]
                jobs.append(by_stream[packet.stream])
        return jobs

    def _queue(self, pipe: Pipeline, job: Sequence[_Sealed]) -> None:
        packet, fields = job[0]
        keep = self._lengths.get(packet.stream, STREAM_LENGTH)
        if self._is_scripted(packet):
            queue_settle(
                pipe,
                fields,
                stream=packet.stream,
                settled=self._settled,
                fence=self._fence,
                message_id=packet.message_id,
                token=self._token,
                entry=self._entry(packet),
                keep=keep,
            )
        else:
            queue_append(pipe, packet.stream, [fields for _, fields in job], keep=keep)

    def _is_scripted(self, packet: Packet) -> bool:
        """Does it go through settle.lua? Every outcome does, with or without an entry."""
        answers = packet.settlement is not None or packet.stream == self._outcomes
        return answers and hash_tag(packet.stream) == self._slot

    def _entry(self, packet: Packet) -> Entry | None:
        """The entry that the script finishes; ``None`` if there is none, or in another slot."""
        settlement = packet.settlement
        if settlement is None or not self._is_scripted(packet):
            return None
        if hash_tag(settlement.stream) != self._slot:
            return None
        return Entry(settlement.stream, settlement.group, settlement.entry_id, settlement.delete)

    async def _acknowledge(self, packets: Sequence[Packet], report: Report) -> None:
        """Finish the entries of packets that are on their streams, in other slots than these."""
        pipe = self._client.pipeline(transaction=False)
        for packet in packets:
            if packet.settlement is not None:
                entry = packet.settlement
                pipe.execute_command("XACK", entry.stream, entry.group, entry.entry_id)
        replies = await pipe.execute(raise_on_error=False)
        for packet, reply in zip(packets, replies, strict=True):
            if isinstance(reply, Exception):
                report.refuse(reply)
            else:
                self._outbox.delivered(packet)


def hash_tag(key: str) -> str:
    """What decides a key's slot: the part in its first braces, or all of it."""
    start = key.find("{")
    end = key.find("}", start + 1)
    return key[start + 1 : end] if start >= 0 and end > start + 1 else key
