"""What must happen in one step on the server: Lua scripts, each in a file, with typed calls.

Each file opens with its keys and arguments. All keys of one call are in one slot.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from redis.asyncio import Redis
from redis.exceptions import NoScriptError

Argument = str | bytes | int

_FOLDER: Final = Path(__file__).parent


class Script:
    """A script by the name of its file."""

    def __init__(self, name: str) -> None:
        self.body: Final = (_FOLDER / f"{name}.lua").read_text()
        self.sha: Final = hashlib.sha1(self.body.encode(), usedforsecurity=False).hexdigest()

    async def run(self, client: Redis, keys: Sequence[str], arguments: Sequence[Argument]) -> Any:
        """Run it; a server that doesn't know it yet is sent the text. Raises redis-py's errors."""
        operands = (len(keys), *keys, *arguments)
        try:
            return await client.execute_command("EVALSHA", self.sha, *operands)  # type: ignore[no-untyped-call]
        except NoScriptError:
            return await client.execute_command("EVAL", self.body, *operands)  # type: ignore[no-untyped-call]

    def command(self, keys: Sequence[str], arguments: Sequence[Argument]) -> list[Argument]:
        """As a command for a pipeline, with its text: nobody could send that after a refusal."""
        return ["EVAL", self.body, len(keys), *keys, *arguments]


_KEPT_IDS: Final = 10_000
"""Message ids remembered of a slot: what is sent again was sent seconds ago."""

_APPEND: Final = Script("append")
_APPEND_ONCE: Final = Script("append_once")
_SETTLE: Final = Script("settle")
_ACK: Final = Script("ack")
_DEAD_LETTER: Final = Script("dead_letter")
_MEND: Final = Script("mend")
_RENEW_CLAIMS: Final = Script("renew_claims")
_LEASE_ACQUIRE: Final = Script("lease_acquire")
_LEASE_RENEW: Final = Script("lease_renew")
_LEASE_RELEASE: Final = Script("lease_release")


@dataclass(frozen=True, slots=True)
class Entry:
    """A stream entry as one group sees it.

    Attributes:
        stream: Key of its stream.
        group: The group that it is pending in.
        entry_id: Its id.
        delete: Finishing it also deletes it (a stream with one group only).
    """

    stream: str
    group: str
    entry_id: str
    delete: bool = False


@dataclass(frozen=True, slots=True)
class Settled:
    """What ``settle`` did.

    Attributes:
        fenced: Nothing: a newer worker has the run.
        written: The message is new; false if an earlier attempt had written it.
        entry_id: Id of the new entry, empty unless ``written``.
        acknowledged: The answered entry was still pending.
        holder: Who has the run, if ``fenced``.
    """

    fenced: bool = False
    written: bool = False
    entry_id: str = ""
    acknowledged: bool = False
    holder: str = ""


def append_command(
    stream: str, entries: Sequence[Mapping[bytes, bytes]], *, keep: int
) -> list[Argument]:
    """Return the command that adds entries; it is answered with how many it added, or an id.

    Args:
        stream: Where they go.
        entries: At least one; all have the same fields in the same order.
        keep: Length limit of the stream.
    """
    if len(entries) == 1:
        pairs = [part for pair in entries[0].items() for part in pair]
        return ["XADD", stream, "MAXLEN", "~", keep, "*", *pairs]
    names = list(entries[0])
    values = [value for entry in entries for value in entry.values()]
    return _APPEND.command([stream], [keep, len(names), *names, *values])


def append_once_command(
    stream: str,
    settled: str,
    entries: Sequence[tuple[str, Mapping[bytes, bytes]]],
    *,
    keep: int,
    until_ms: int,
    keep_ids: int = _KEPT_IDS,
) -> list[Argument]:
    """Return the command that adds entries whose ids aren't known yet; the answer is how many.

    Args:
        stream: Where they go.
        settled: Key of what was already written, in the same slot.
        entries: At least one message id with its fields, which have all the same names.
        keep: Length limit of the stream.
        until_ms: Server time after which nothing is added.
        keep_ids: How many message ids are remembered.
    """
    names = list(entries[0][1])
    values: list[Argument] = []
    for message_id, entry in entries:
        values.append(message_id)
        values.extend(entry.values())
    arguments = [keep, keep_ids, until_ms, len(names), *names, *values]
    return _APPEND_ONCE.command([stream, settled], arguments)


def settle_command(
    fields: Mapping[bytes, bytes],
    *,
    stream: str,
    settled: str,
    fence: str,
    message_id: str,
    token: int | None,
    entry: Entry | None,
    keep: int,
    until_ms: int,
    keep_ids: int = _KEPT_IDS,
) -> list[Argument]:
    """Return ``settle.lua`` as a command; its answer is read with :func:`settle_reply`.

    Args:
        fields: The sealed message.
        stream: Where it goes.
        settled: Key of what was already written.
        fence: Key of the run's fence.
        message_id: The message's; with one that is known nothing is added.
        token: Our fencing token; ``None`` for none.
        entry: What the message answers, in the same slot.
        keep: Length limit of the stream.
        until_ms: Server time after which nothing is done.
        keep_ids: How many message ids are remembered.
    """
    keys = [stream, settled, fence]
    place: tuple[Argument, ...] = ("", "", "")
    if entry is not None:
        keys.append(entry.stream)
        place = (entry.group, entry.entry_id, int(entry.delete))
    ours = "" if token is None else token
    pairs = [part for pair in fields.items() for part in pair]
    return _SETTLE.command(keys, (ours, message_id, keep, keep_ids, until_ms, *place, *pairs))


def settle_reply(reply: Sequence[Any]) -> Settled:
    """Read what ``settle.lua`` answers."""
    if reply[0] == b"FENCED":
        return Settled(fenced=True, holder=reply[2].decode(errors="replace"))
    return Settled(
        written=reply[0] == b"WRITTEN",
        entry_id=reply[1].decode(),
        acknowledged=bool(reply[2]),
    )


async def ack(
    client: Redis, stream: str, group: str, entry_ids: Sequence[str], *, delete: bool
) -> int:
    """Acknowledge entries, at most 1,000; how many were still pending. Raises redis-py's errors."""
    acknowledged = await _ACK.run(client, [stream], [group, int(delete), *entry_ids])
    return int(acknowledged)


async def dead_letter(
    client: Redis,
    entry: Entry,
    fields: Mapping[bytes, bytes],
    *,
    dead: str,
    seen: str,
    begun: str,
    keep: int = 100_000,
) -> str:
    """Move an entry to the dead letters.

    Args:
        client: Any client.
        entry: What is given up.
        fields: The sealed letter.
        dead: Key of the dead-letter stream.
        seen: Key of the entries that have a letter.
        begun: Key of the group's counts of begun handlings.
        keep: Length limit of the dead-letter stream.

    Returns:
        The letter's entry id; empty if the entry had one already.

    Raises:
        RedisError: redis-py's; nothing is done then, or all of it.
    """
    pairs = [part for pair in fields.items() for part in pair]
    place = (entry.group, entry.entry_id, int(entry.delete), keep)
    reply = await _DEAD_LETTER.run(client, [dead, entry.stream, seen, begun], [*place, *pairs])
    return bytes(reply).decode()


async def mend(
    client: Redis, stream: str, *, seen: str, scratch: str, ahead_ms: int, most: int
) -> int:
    """Give a stream back its clock, after entries with ids far ahead of it; see ``mend.lua``.

    Args:
        client: Any client.
        stream: Key of the stream.
        seen: Key of the entries that have a dead letter.
        scratch: A key in the stream's slot that nobody uses.
        ahead_ms: How far an id may be ahead of the server's time.
        most: Entries that are copied, at most.

    Returns:
        How many entries were left behind; -1: nothing was done; -2: there are more than ``most``;
        -3: one has too many fields to be copied, and no dead letter.

    Raises:
        RedisError: redis-py's.
    """
    reply = await _MEND.run(client, [stream, seen, scratch], [ahead_ms, most])
    return int(reply)


async def renew_claims(
    client: Redis, stream: str, group: str, consumer: str, entry_ids: Sequence[str]
) -> list[str]:
    """Extend claims, at most 1,000; the ids that are ours no longer. Raises redis-py's errors."""
    lost = await _RENEW_CLAIMS.run(client, [stream], [group, consumer, *entry_ids])
    return [entry_id.decode() for entry_id in lost]


@dataclass(frozen=True, slots=True)
class LeaseReply:
    """What a lease script answers.

    Attributes:
        verdict: ``ACQUIRED``, ``RENEWED``, ``REACQUIRED``, ``HELD``, ``SUPERSEDED`` or ``LOST``.
        holder: Who has the lease, where it isn't ours; empty if nobody any more.
        since_ms: Since when, by the server's clock.
        token: Their token.
    """

    verdict: str
    holder: str = ""
    since_ms: int = 0
    token: int = 0


@dataclass(frozen=True, slots=True)
class LeaseTerms:
    """Whose lease, and for how long.

    Attributes:
        key: Key of the lease.
        fence: Key of the fence.
        holder: Who has it, or wants it.
        token: Their token.
        ttl_ms: Milliseconds that it holds without being renewed.
        fence_ms: Milliseconds that the token is remembered.
    """

    key: str
    fence: str
    holder: str
    token: int
    ttl_ms: int
    fence_ms: int


async def lease_acquire(client: Redis, terms: LeaseTerms, *, fresh: bool) -> LeaseReply:
    """Take a lease; see ``lease_acquire.lua``. Raises redis-py's errors."""
    arguments = (terms.holder, terms.token, terms.ttl_ms, terms.fence_ms, int(fresh))
    return _lease_reply(await _LEASE_ACQUIRE.run(client, [terms.key, terms.fence], arguments))


async def lease_renew(client: Redis, terms: LeaseTerms) -> LeaseReply:
    """Extend a lease; see ``lease_renew.lua``. Raises redis-py's errors."""
    arguments = (terms.holder, terms.token, terms.ttl_ms, terms.fence_ms)
    return _lease_reply(await _LEASE_RENEW.run(client, [terms.key, terms.fence], arguments))


async def lease_release(client: Redis, terms: LeaseTerms) -> bool:
    """Give a lease back; was it ours? Raises redis-py's errors."""
    return bool(await _LEASE_RELEASE.run(client, [terms.key], (terms.holder, terms.token)))


def _lease_reply(reply: Sequence[bytes]) -> LeaseReply:
    verdict, *other = (part.decode(errors="replace") for part in reply)
    if not other:
        return LeaseReply(verdict)
    return LeaseReply(verdict, other[0], int(other[1]), int(other[2]))
