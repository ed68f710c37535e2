"""What may not be lost is added once, however often it is sent, and never when it is stale."""

import pytest
from redis.asyncio import Redis
from redis.exceptions import ResponseError

from tests.oona.bus import OUTCOMES, RUN, STREAMS, TELEMETRY, entries
from tolaria_bus.oona.scripts import append_once_command
from tolaria_bus.oona.streams import settled_of

NEVER = 1 << 50


async def append(
    redis: Redis, *message_ids: str, stream: str = TELEMETRY, until_ms: int = NEVER
) -> int:
    fields = {b"payload": b"p", b"signature": b"s"}
    command = append_once_command(
        stream,
        settled_of(stream),
        [(message_id, fields) for message_id in message_ids],
        keep=1000,
        until_ms=until_ms,
    )
    return int(await redis.execute_command(*command))  # type: ignore[no-untyped-call]


async def test_what_is_sent_again_is_added_once(redis: Redis):
    assert await append(redis, "a", "b") == 2
    assert await append(redis, "a", "b", "c") == 1
    found = await entries(redis, TELEMETRY)
    assert [fields for _, fields in found] == [{b"payload": b"p", b"signature": b"s"}] * 3


async def test_one_id_on_two_streams_of_a_slot_is_two_messages(redis: Redis):
    assert settled_of(TELEMETRY) == settled_of(OUTCOMES) == STREAMS.settled(RUN)
    for stream in (TELEMETRY, OUTCOMES):
        assert await append(redis, "a", stream=stream) == 1
        assert await append(redis, "a", stream=stream) == 0
        assert await redis.xlen(stream) == 1


async def test_an_id_that_was_refused_isnt_known(redis: Redis):
    await redis.set(TELEMETRY, "not a stream")
    with pytest.raises(ResponseError, match="WRONGTYPE"):
        await append(redis, "a")
    await redis.delete(TELEMETRY)
    assert await append(redis, "a") == 1


async def test_what_comes_too_late_is_not_added_and_keeps_nobody_out(redis: Redis):
    """The server stood still; its first copy would be a dead letter to every reader."""
    seconds, _ = await redis.time()
    with pytest.raises(ResponseError, match="STALE"):
        await append(redis, "a", until_ms=seconds * 1000 - 1)
    assert await redis.exists(TELEMETRY, settled_of(TELEMETRY)) == 0
    assert await append(redis, "a", until_ms=(seconds + 60) * 1000) == 1
