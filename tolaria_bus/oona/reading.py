"""What a consumer group's server side does: one call each, replies made plain.

Reading one's own pending entries again raises their delivery counts, like every delivery; the
count is told with each entry that isn't new.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, Final

from redis.asyncio import Redis
from redis.exceptions import OutOfMemoryError, ResponseError

_RELEASED_MS: Final = 7 * 86_400_000
"""Idle time that a released entry is given: over anybody's limit for taking it."""
_PAGE: Final = 500


@dataclass(frozen=True, slots=True)
class Member:
    """One consumer of a group of a stream.

    Attributes:
        stream: Key of the stream.
        group: The group.
        name: The consumer.
        delete: Finishing an entry deletes it: the stream has this one group.
    """

    stream: str
    group: str
    name: str
    delete: bool = False


@dataclass(slots=True)
class Delivered:
    """An entry as the server gave it to us.

    Attributes:
        entry_id: Its id.
        fields: What it holds; empty if it was deleted while it was pending.
        deliveries: How often it was delivered, this time included.
        redelivered: Not for the first time, or not for the first time to us.
        size: Bytes of its fields, names and values.
    """

    entry_id: str
    fields: Mapping[bytes, bytes]
    deliveries: int
    redelivered: bool
    size: int = 0


@dataclass(frozen=True, slots=True)
class Sweep:
    """What dead consumers left.

    Attributes:
        entries: Ours now.
        deleted: Ids of entries that were deleted while they were pending: nobody will get them.
        more: There may be more.
    """

    entries: list[Delivered]
    deleted: list[str]
    more: bool


class GroupReader:
    """A consumer of a group. Every call raises redis-py's errors.

    Args:
        client: For reads that block; nobody else's.
        other: For all other calls.
        member: Which consumer.
    """

    def __init__(self, client: Redis, other: Redis, member: Member) -> None:
        self._client = client
        self._other = other
        self._stream = member.stream
        self._group = member.group
        self._name = member.name
        self._cursor = "0-0"
        # redis-py's own form of the reply takes longer to make than all else that a read costs.
        client.set_response_callback("XREADGROUP", _as_it_came)

    async def create(self, start: str) -> None:
        """Create the group, and the stream, unless they are there.

        Args:
            start: ``0``: all that the stream holds is new to the group; ``$``: nothing is.
        """
        try:
            await self._other.xgroup_create(self._stream, self._group, start, mkstream=True)
        except OutOfMemoryError:
            # The server says so before it looks whether the group is there.
            if not await self._is_there():
                raise
        except ResponseError as error:
            if not str(error).startswith("BUSYGROUP"):
                raise

    async def new(self, most: int, block: timedelta) -> list[Delivered]:
        """Entries that nobody of the group has had; waits for one."""
        milliseconds = max(1, int(block.total_seconds() * 1000))
        found = await self._read(self._client, ">", most, "BLOCK", milliseconds)
        return [
            Delivered(entry_id.decode(), _mapping(flat), 1, False, sum(map(len, flat)))
            for _, entries in found
            for entry_id, flat in entries
        ]

    async def own(self, after: str, most: int) -> list[Delivered]:
        """Entries that were delivered to this consumer before and aren't finished.

        Args:
            after: Only later ones than this id; ``0`` for all.
            most: So many at once.
        """
        reply = await self._read(self._other, after, most)
        found = [
            (entry_id.decode(), fields) for _, entries in reply for entry_id, fields in entries
        ]
        return await self._counted(found, len(found))

    async def abandoned(self, min_idle: timedelta, most: int, known: int) -> Sweep:
        """Take over entries that their consumers have had for too long.

        Args:
            min_idle: How long.
            most: So many at once.
            known: How many entries of this consumer may lie between them.
        """
        idle = int(min_idle.total_seconds() * 1000)
        place = (self._stream, self._group, self._name, idle, self._cursor)
        cursor, entries, deleted = await self._call(
            self._other, "XAUTOCLAIM", *place, "COUNT", most
        )
        self._cursor = cursor.decode()
        found = [(entry_id.decode(), fields) for entry_id, fields in entries]
        return Sweep(
            entries=await self._counted(found, len(found) + known),
            deleted=[entry_id.decode() for entry_id in deleted],
            more=self._cursor != "0-0",
        )

    async def release(self, keep: Collection[str]) -> int:
        """Let others have what is pending with this consumer, but for ``keep``; how many."""
        released = 0
        start = "-"
        while page := await self._pending(start, "+", _PAGE):
            ids = [entry_id for entry_id in page if entry_id not in keep]
            if ids:
                place = (self._stream, self._group, self._name, 0)
                await self._other.xclaim(*place, list(ids), idle=_RELEASED_MS, justid=True)
            released += len(ids)
            start = f"({list(page)[-1]}"
        return released

    async def _is_there(self) -> bool:
        """The group, in its stream."""
        try:
            groups: Any = await self._other.xinfo_groups(self._stream)
        except ResponseError:
            return False
        return any(group["name"] == self._group.encode() for group in groups)

    async def _read(self, client: Redis, start: str, most: int, *block: str | int) -> Any:
        """Stream and entries, for each stream that has some: this one, if any."""
        group = ("GROUP", self._group, self._name, "COUNT", most)
        reply = await self._call(
            client, "XREADGROUP", *group, *block, "STREAMS", self._stream, start
        )
        return reply or ()

    async def _counted(
        self, found: Sequence[tuple[str, Mapping[bytes, bytes]]], most: int
    ) -> list[Delivered]:
        if not found:
            return []
        counts = await self._pending(found[0][0], found[-1][0], most)
        return [
            Delivered(entry_id, fields, counts.get(entry_id, 1), True, _size(fields))
            for entry_id, fields in found
        ]

    async def _pending(self, start: str, end: str, most: int) -> dict[str, int]:
        """Entries pending with this consumer, with their delivery counts."""
        reply: Any = await self._other.xpending_range(
            self._stream, self._group, start, end, most, self._name
        )
        return {item["message_id"].decode(): item["times_delivered"] for item in reply}

    @staticmethod
    async def _call(client: Redis, *command: str | int) -> Any:
        return await client.execute_command(*command)  # type: ignore[no-untyped-call]


def _as_it_came(response: Any, **options: Any) -> Any:
    del options
    return response


def _size(fields: Mapping[bytes, bytes]) -> int:
    return sum(map(len, fields)) + sum(map(len, fields.values()))


def _mapping(flat: Sequence[bytes]) -> Mapping[bytes, bytes]:
    """Field, value, field, value, ... as a mapping."""
    if len(flat) == 4:  # payload and signature: by far the most
        return {flat[0]: flat[1], flat[2]: flat[3]}
    if len(flat) == 2:
        return {flat[0]: flat[1]}
    return dict(zip(flat[::2], flat[1::2], strict=True))
