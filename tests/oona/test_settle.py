"""One step writes the outcome and finishes its entry, for the run's worker only."""

from typing import Any

import pytest
from redis.asyncio import Redis
from redis.exceptions import NoScriptError, ResponseError

from tests.oona.bus import CONTROL, GROUP, OUTCOMES, STREAMS, pending, taken_entry
from tolaria_bus.oona.lease import fence_key
from tolaria_bus.oona.scripts import Entry, Script, Settled, settle_command, settle_reply

SETTLED = STREAMS.settled("r")
FENCE = fence_key(STREAMS, "r")
NEVER = 1 << 50


async def settle(
    redis: Redis, message_id: str = "m", entry: Entry | None = None, **options: Any
) -> Settled:
    settings: dict[str, Any] = {
        "stream": OUTCOMES,
        "token": 2,
        "keep": 1000,
        "until_ms": NEVER,
        **options,
    }
    fields = {b"payload": b"p", b"signature": b"s"}
    command = settle_command(
        fields,
        settled=SETTLED,
        fence=FENCE,
        message_id=message_id,
        entry=entry,
        **settings,
    )
    return settle_reply(await redis.execute_command(*command))  # type: ignore[no-untyped-call]


async def taken(redis: Redis, *, delete: bool = True) -> Entry:
    return Entry(CONTROL, GROUP, await taken_entry(redis, CONTROL, GROUP), delete)


async def test_outcome_acknowledgement_and_deletion(redis: Redis):
    settled = await settle(redis, entry=await taken(redis))
    assert (settled.written, settled.acknowledged, settled.fenced) == (True, True, False)
    found: Any = await redis.xrange(OUTCOMES)
    assert found == [(settled.entry_id.encode(), {b"payload": b"p", b"signature": b"s"})]
    assert await pending(redis, CONTROL, GROUP) == 0
    assert await redis.xlen(CONTROL) == 0


async def test_an_entry_of_a_stream_with_more_groups_is_kept(redis: Redis):
    await settle(redis, entry=await taken(redis, delete=False))
    assert await pending(redis, CONTROL, GROUP) == 0
    assert await redis.xlen(CONTROL) == 1


async def test_a_repeated_message_is_written_once_and_still_finishes_its_entry(redis: Redis):
    await settle(redis)
    again = await settle(redis, entry=await taken(redis))
    assert again == Settled(acknowledged=True)
    assert await settle(redis, entry=Entry(CONTROL, GROUP, "1-0", delete=True)) == Settled()
    assert await redis.xlen(OUTCOMES) == 1
    assert (await settle(redis, "other")).written
    assert await redis.xlen(OUTCOMES) == 2


async def test_one_id_on_two_streams_of_the_run_is_two_messages(redis: Redis):
    assert (await settle(redis)).written
    assert (await settle(redis, stream=STREAMS.reports("r"))).written
    assert not (await settle(redis, stream=STREAMS.reports("r"))).written


@pytest.mark.parametrize(("token", "fenced"), [(1, False), (2, False), (3, True), (10, True)])
async def test_a_newer_workers_token_fences_and_an_older_ones_doesnt(
    token: int, fenced: bool, redis: Redis
):
    await redis.hset(FENCE, mapping={"token": token, "holder": "other"})
    entry = await taken(redis)
    settled = await settle(redis, entry=entry)
    assert settled.fenced == fenced
    assert await redis.exists(OUTCOMES) == (not fenced)
    assert await redis.exists(SETTLED) == (not fenced)
    assert await pending(redis, CONTROL, GROUP) == fenced
    assert await redis.xlen(CONTROL) == fenced
    if fenced:
        assert settled.holder == "other"


async def test_without_a_token_nothing_is_fenced(redis: Redis):
    await redis.hset(FENCE, mapping={"token": 9, "holder": "other"})
    assert (await settle(redis, token=None)).written


async def test_what_is_remembered_is_bounded(redis: Redis):
    for n in range(30):
        await settle(redis, str(n), keep_ids=10, keep=10)
    assert await redis.zcard(SETTLED) == 10
    assert not (await settle(redis, "29", keep_ids=10)).written
    assert (await settle(redis, "0", keep_ids=10)).written


async def test_a_step_that_fails_is_not_half_done(redis: Redis):
    entry = await taken(redis)
    await redis.set(OUTCOMES, "not a stream")
    with pytest.raises(ResponseError, match="WRONGTYPE"):
        await settle(redis, entry=entry)
    assert await pending(redis, CONTROL, GROUP) == 1
    assert not await redis.exists(SETTLED)


async def test_an_outcome_that_comes_too_late_changes_nothing_and_keeps_nobody_out(redis: Redis):
    entry = await taken(redis)
    seconds, _ = await redis.time()
    with pytest.raises(ResponseError, match="STALE"):
        await settle(redis, entry=entry, until_ms=seconds * 1000 - 1)
    assert await pending(redis, CONTROL, GROUP) == await redis.xlen(CONTROL) == 1
    assert await redis.exists(OUTCOMES, SETTLED) == 0
    settled = await settle(redis, entry=entry, until_ms=(seconds + 60) * 1000)
    assert (settled.written, settled.acknowledged) == (True, True)


async def test_scripts_survive_a_server_that_forgot_them(redis: Redis):
    script = Script("ack")
    entry_id = await taken_entry(redis, CONTROL, GROUP)
    await redis.script_flush()
    with pytest.raises(NoScriptError):
        await redis.evalsha(script.sha, 1, CONTROL, GROUP, 0, entry_id)
    assert await script.run(redis, [CONTROL], [GROUP, 0, entry_id]) == 1
    assert await script.run(redis, [CONTROL], [GROUP, 0, entry_id]) == 0
