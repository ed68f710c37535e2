"""Replaying and purging dead letters, with a trace of who did it.

A letter is replayed in one atomic step: its entry is added to its stream and the letter removed. A
crash before leaves the letter, a crash after has replayed it; of two people who replay the same
letter one finds it gone. The new entry has an id of its own, so that if it dies again it gets a
letter of its own; and it keeps the command id, so that what was applied before is a DUPLICATE.

Letters are dealt with in batches, each followed by a telemetry packet: who replayed how many, for
which reasons. A purge is told before it is done, as nothing else is left of it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import AsyncIterable, AsyncIterator, Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Final

from redis.asyncio import Redis
from redis.exceptions import RedisError, ResponseError

from tolaria_bus.oona.events import reason_of
from tolaria_bus.oona.letters import Found
from tolaria_bus.oona.resealing import NotReplayable, Resealer
from tolaria_bus.oona.scripts import letters as scripts
from tolaria_bus.oona.tracing import Tracer

BATCH: Final = 16
"""Letters in memory at once, and in one trace."""


class Fate(Enum):
    """What became of a letter."""

    REPLAYED = "replayed"
    PURGED = "purged"
    WOULD_REPLAY = "would be replayed"
    WOULD_PURGE = "would be purged"
    REFUSED = "refused"
    GONE = "gone"
    """Somebody else was faster."""

    @property
    def is_good(self) -> bool:
        """Was, or would, what was asked for be done?"""
        return self not in (Fate.REFUSED, Fate.GONE)


@dataclass(frozen=True, slots=True)
class Result:
    """One letter, dealt with.

    Attributes:
        found: The letter.
        fate: What became of it.
        entry_id: Of the new entry.
        code: Why it was refused, in one word.
        reason: The same in a sentence.
    """

    found: Found
    fate: Fate
    entry_id: str = ""
    code: str = ""
    reason: str = ""


async def replay(
    client: Redis,
    letters: AsyncIterable[Found],
    resealer: Resealer,
    tracer: Tracer,
    *,
    dry_run: bool = False,
) -> AsyncIterator[Result]:
    """Replay letters, and yield what became of each.

    Args:
        client: Any client.
        letters: Which.
        resealer: Makes entries of them.
        tracer: Tells who did it.
        dry_run: Change nothing.

    Raises:
        RedisError: The server is gone; what was replayed until then is so.
    """
    async for batch in _batches(letters):
        results: list[Result] = []
        failure: Exception | None = None
        for found in batch:
            try:
                results.append(await _replay_one(client, found, resealer, dry_run=dry_run))
            except (RedisError, OSError) as error:
                failure = error
                break
        done = [result.found for result in results if result.fate is Fate.REPLAYED]
        if done and failure is None:
            await tracer.tell("dead_letters_replayed", Counter(found.reason for found in done))
        for result in results:
            yield result
        if failure is not None:
            raise failure


async def purge(
    client: Redis, letters: AsyncIterable[Found], tracer: Tracer, *, dry_run: bool = False
) -> AsyncIterator[Result]:
    """Remove letters for good, and yield what became of each.

    Args:
        client: Any client.
        letters: Which, all of one dead-letter stream.
        tracer: Tells who did it.
        dry_run: Change nothing.

    Raises:
        RedisError: The server is gone; what was purged until then is so.
    """
    async for batch in _batches(letters):
        if dry_run:
            for found in batch:
                yield Result(found, Fate.WOULD_PURGE)
            continue
        await tracer.tell("dead_letters_purged", Counter(found.reason for found in batch))
        pipe = client.pipeline(transaction=False)
        for found in batch:
            pipe.xdel(found.dead, found.entry_id)
        for found, removed in zip(batch, await pipe.execute(), strict=True):
            yield Result(found, Fate.PURGED if removed else Fate.GONE)


async def _replay_one(client: Redis, found: Found, resealer: Resealer, *, dry_run: bool) -> Result:
    try:
        fields = resealer.fields(found)
    except NotReplayable as error:
        return Result(found, Fate.REFUSED, code=error.code, reason=str(error))
    if dry_run:
        return Result(found, Fate.WOULD_REPLAY)
    assert found.letter is not None
    try:
        entry_id = await scripts.replay(
            client,
            dead=found.dead,
            letter_id=found.entry_id,
            stream=found.letter.stream,
            fields=fields,
        )
    except ResponseError as error:
        return Result(found, Fate.REFUSED, code="server", reason=reason_of(error))
    return Result(found, Fate.GONE) if entry_id is None else Result(found, Fate.REPLAYED, entry_id)


async def _batches(letters: AsyncIterable[Found]) -> AsyncIterator[Sequence[Found]]:
    batch: list[Found] = []
    async for found in letters:
        batch.append(found)
        if len(batch) == BATCH:
            yield batch
            batch = []
    if batch:
        yield batch
