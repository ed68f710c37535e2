"""What becomes of an entry that can't be used: kept with its reason, to be shown, mended, replayed.

A letter is written and its entry finished in one step, in the slot of the entry's stream, so an
entry is never lost between the two and never handed out again. An entry of a shared stream, which
many groups read, gets one letter.
"""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final

from redis.asyncio import Redis

from tolaria_bus.leyline import DeadLetter, DeadLetterField, MessagePriority
from tolaria_bus.oona import scripts
from tolaria_bus.oona.opening import Opener, Refused
from tolaria_bus.oona.scripts import Entry
from tolaria_bus.oona.sealing import seal
from tolaria_bus.oona.streams import beside, dead_letters_of
from tolaria_bus.oona.trust import KeyRing

KEPT_BYTES: Final = (1 << 20) - (64 << 10)
"""Of the entry's own bytes: a letter is a message, and with all around it has to be under 1 MiB."""
PART_BYTES: Final = 16 << 10
"""Kept of an entry that doesn't fit: it can't be put back, and for a look at it this is enough."""

_DETAIL: Final = 4096  # characters
_FIELDS: Final = 2048
"""Fields kept of an entry: each costs its letter some bytes beside its own."""
_PAGE: Final = 100


def build(
    entry: Entry,
    reason: str,
    detail: str,
    fields: Mapping[bytes, bytes],
    *,
    consumer: str = "",
    deliveries: int = 0,
    clock: Callable[[], int] = time.time_ns,
) -> DeadLetter:
    """A letter about an entry.

    Args:
        entry: Which one.
        reason: One word, for programs.
        detail: One sentence, for people.
        fields: The entry as it was; of one with more than ``KEPT_BYTES``, or 2048 fields, the first
            ``PART_BYTES``.
        consumer: Who gave it up.
        deliveries: How often it was delivered.
        clock: Nanoseconds since the epoch.
    """
    letter = DeadLetter(
        reason=reason,
        detail=detail[:_DETAIL].encode("utf-8", "replace").decode(),
        stream=entry.stream,
        entry_id=entry.entry_id,
        deliveries=deliveries,
        group=entry.group,
        consumer=consumer,
    )
    milliseconds = entry.entry_id.partition("-")[0]
    if milliseconds.isdigit() and int(milliseconds) < 1 << 47:
        letter.first_seen_at.FromMilliseconds(int(milliseconds))
    letter.dead_at.FromNanoseconds(clock())
    size = sum(map(len, fields)) + sum(map(len, fields.values()))
    letter.truncated = size > KEPT_BYTES or len(fields) > _FIELDS
    room = PART_BYTES if letter.truncated else KEPT_BYTES
    for name, value in fields.items():
        if room <= 0 or len(letter.fields) == _FIELDS:
            break
        kept_name = name[:room]
        kept = value[: room - len(kept_name)]
        room -= len(kept_name) + len(kept)
        letter.fields.append(DeadLetterField(name=kept_name, value=kept))
    return letter


async def bury(client: Redis, letter: DeadLetter, *, ring: KeyRing, delete: bool) -> str:
    """Write a letter and finish its entry for the group, in one step.

    Args:
        client: Any client.
        letter: From :func:`build`.
        ring: Signs the letter.
        delete: Also delete the entry.

    Returns:
        The id of the letter's entry; empty if the dead entry had a letter already.

    Raises:
        RedisError: redis-py's; nothing is done then, or all of it.
    """
    dead = dead_letters_of(letter.stream)
    fields = seal(
        letter,
        stream=dead,
        source=f"{letter.group}/{letter.consumer}",
        ring=ring,
        priority=MessagePriority.MESSAGE_PRIORITY_HIGH,
        message_id=f"{letter.stream}/{letter.entry_id}",
    )
    return await scripts.dead_letter(
        client,
        Entry(letter.stream, letter.group, letter.entry_id, delete),
        fields,
        dead=dead,
        seen=seen_key(letter.stream),
        begun=begun_key(letter.stream, letter.group),
    )


@dataclass(frozen=True, slots=True)
class Letter:
    """An entry of a dead-letter stream.

    Attributes:
        entry_id: Its id there.
        letter: What it says; ``None`` if it can't be read.
        problem: Why it can't be.
    """

    entry_id: str
    letter: DeadLetter | None
    problem: str = ""


async def read(
    client: Redis, dead: str, opener: Opener, *, after: str = "-"
) -> AsyncIterator[Letter]:
    """The letters of a dead-letter stream, oldest first.

    Args:
        client: Any client.
        dead: Key of the dead-letter stream.
        opener: Judges them; one without a memory of nonces.
        after: Only later ones than this entry id.

    Raises:
        RedisError: redis-py's.
    """
    start = "-" if after == "-" else f"({after}"
    while True:
        page: Any = await client.xrange(dead, min=start, count=_PAGE)
        for key, fields in page:
            entry_id = key.decode()
            yield _letter(opener, dead, entry_id, fields)
            start = f"({entry_id}"
        if len(page) < _PAGE:
            return


def seen_key(stream: str) -> str:
    """Key of the entries of a stream's slot that have a letter, by when they last got one."""
    return beside(dead_letters_of(stream), "seen")


def begun_key(stream: str, group: str) -> str:
    """Key of the counts of begun handlings of a group, in the slot of its stream."""
    return beside(stream, f"begun:{group}")


def seen_member(letter: DeadLetter) -> str:
    """How the entry of a letter is named there."""
    return f"{letter.stream} {letter.entry_id}"


def _letter(opener: Opener, dead: str, entry_id: str, fields: Mapping[bytes, bytes]) -> Letter:
    try:
        message = opener.open(dead, entry_id, fields).message
    except Refused as refused:
        return Letter(entry_id, None, str(refused))
    if isinstance(message, DeadLetter):
        return Letter(entry_id, message)
    return Letter(entry_id, None, f"type: a {message.DESCRIPTOR.name} is no dead letter")
