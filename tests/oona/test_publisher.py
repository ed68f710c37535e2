"""What is put into the outbox arrives, in order, in few round trips, alerts first."""

import threading
from datetime import timedelta

import anyio
import pytest
from redis.asyncio import Redis

from tests.oona.bus import (
    CONTROL,
    CRITICAL,
    EMERGENCY,
    HIGH,
    LOW,
    NORMAL,
    OUTCOMES,
    SOON,
    STREAMS,
    TELEMETRY,
    Events,
    alert,
    drained,
    entries,
    envelopes,
    messages,
    metric,
    new_outbox,
    outcome,
    pending,
    publishing,
    taken_entry,
    until,
)
from tolaria_bus.leyline import CommandOutcome, DeadLetter, Settlement
from tolaria_bus.oona.connection import connect
from tolaria_bus.oona.envelope import Opener
from tolaria_bus.oona.lease import fence_key
from tolaria_bus.oona.publisher import Publisher
from tolaria_bus.oona.trust import KeyRing

RING = KeyRing.parse("k:c2VjcmV0LXNlY3JldA==")


async def test_packets_arrive_on_their_streams_in_order(redis: Redis, redis_url: str):
    outbox = new_outbox()
    async with publishing(redis_url, outbox) as publisher:
        for n in range(1000):
            outbox.put(metric(n), stream=TELEMETRY, priority=NORMAL)
        outbox.put(outcome("c"), stream=OUTCOMES, priority=NORMAL, durable=True)
        outbox.put(alert("a"), stream=EMERGENCY, priority=HIGH)
        await drained(publisher)
    values = [packet.metrics[0].value for packet in await messages(redis, TELEMETRY)]
    assert values == list(range(1000))
    assert await messages(redis, OUTCOMES, CommandOutcome) == [outcome("c")]
    assert await messages(redis, EMERGENCY) == [alert("a")]
    assert outbox.depth == 0


async def test_entries_are_signed_for_their_stream(redis: Redis, redis_url: str):
    outbox = new_outbox()
    async with publishing(redis_url, outbox, RING) as publisher:
        outbox.put(alert("a"), stream=EMERGENCY, priority=CRITICAL, message_id="m")
        await drained(publisher)
    ((entry_id, fields),) = await entries(redis, EMERGENCY)
    opened = Opener(RING, None).open(EMERGENCY, entry_id, fields)
    assert (opened.message_id, opened.source, opened.priority) == ("m", "run/r", CRITICAL)


async def test_a_put_wakes_an_idle_publisher_from_another_thread(redis: Redis, redis_url: str):
    outbox = new_outbox()
    async with publishing(redis_url, outbox) as publisher:
        await anyio.sleep(0.02)  # both pumps are asleep by now

        def put() -> None:
            outbox.put(metric(), stream=TELEMETRY, priority=NORMAL)
            outbox.put(alert("a"), stream=EMERGENCY, priority=HIGH)

        thread = threading.Thread(target=put)
        thread.start()
        thread.join()
        await until(lambda: outbox.depth == 0)
        assert publisher.connected == {"bulk": True, "emergency": True}
    assert len(await messages(redis, TELEMETRY)) == len(await messages(redis, EMERGENCY)) == 1


async def test_an_alert_doesnt_wait_for_bulk(redis: Redis, redis_url: str):
    outbox = new_outbox()
    for n in range(20_000):
        outbox.put(metric(n), stream=TELEMETRY, priority=LOW)
    async with publishing(redis_url, outbox) as publisher:
        await until(lambda: 0 < outbox.depth < 19_000)
        outbox.put(alert("a"), stream=EMERGENCY, priority=CRITICAL)
        assert await redis.xread({EMERGENCY: "0"}, block=int(SOON * 1000))
        assert outbox.depth > 0, "bulk that was there before isn't through yet"
        await drained(publisher)


async def test_telemetry_is_cut_to_its_length(redis: Redis, redis_url: str):
    outbox = new_outbox()
    async with publishing(redis_url, outbox, lengths={TELEMETRY: 200}) as publisher:
        for n in range(2000):
            outbox.put(metric(n), stream=TELEMETRY, priority=NORMAL)
        await drained(publisher)
    assert 200 <= await redis.xlen(TELEMETRY) < 400
    newest = (await messages(redis, TELEMETRY))[-1]
    assert newest.metrics[0].value == 1999


async def test_an_outcome_finishes_its_entry_in_the_same_slot(redis: Redis, redis_url: str):
    entry_id = await taken_entry(redis, CONTROL, "tolaria")
    outbox = new_outbox()
    async with publishing(redis_url, outbox, token=1) as publisher:
        settlement = Settlement(stream=CONTROL, group="tolaria", entry_id=entry_id, delete=True)
        outbox.put(
            outcome("c"), stream=OUTCOMES, priority=NORMAL, settlement=settlement, durable=True
        )
        await drained(publisher)
    assert await messages(redis, OUTCOMES, CommandOutcome) == [outcome("c")]
    assert await pending(redis, CONTROL, "tolaria") == 0
    assert await redis.xlen(CONTROL) == 0


async def test_an_outcome_finishes_an_entry_of_a_shared_stream_and_leaves_it(
    redis: Redis, redis_url: str
):
    shared = STREAMS.fleet_control
    entry_id = await taken_entry(redis, shared, "tolaria.r")
    outbox = new_outbox()
    async with publishing(redis_url, outbox, token=1) as publisher:
        settlement = Settlement(stream=shared, group="tolaria.r", entry_id=entry_id)
        for _ in range(2):
            outbox.put(
                outcome("c"),
                stream=OUTCOMES,
                priority=NORMAL,
                message_id="m",
                settlement=settlement,
                durable=True,
            )
        await drained(publisher)
    assert await messages(redis, OUTCOMES, CommandOutcome) == [outcome("c")]
    assert await pending(redis, shared, "tolaria.r") == 0
    assert await redis.xlen(shared) == 1


async def test_a_fenced_worker_publishes_no_outcome_but_still_its_alerts(
    redis: Redis, redis_url: str
):
    await redis.hset(fence_key(STREAMS, "r"), mapping={"holder": "newer", "token": "3"})
    entry_id = await taken_entry(redis, CONTROL, "tolaria")
    outbox, events, told = new_outbox(), Events(), list[str]()
    settlement = Settlement(stream=CONTROL, group="tolaria", entry_id=entry_id, delete=True)
    async with publishing(
        redis_url, outbox, token=2, on_event=events, on_fenced=told.append
    ) as publisher:
        outbox.put(
            outcome("c"), stream=OUTCOMES, priority=NORMAL, settlement=settlement, durable=True
        )
        outbox.put(outcome("d"), stream=OUTCOMES, priority=NORMAL, durable=True)
        outbox.put(alert("a"), stream=EMERGENCY, priority=HIGH)
        await drained(publisher)
    assert await redis.exists(OUTCOMES) == 0
    assert await pending(redis, CONTROL, "tolaria") == 1
    assert await redis.xlen(CONTROL) == 1
    assert await redis.xlen(EMERGENCY) == 1
    assert told == ["newer"]
    assert events.of("fenced") == [{"holder": "newer"}]


async def test_what_can_never_be_sent_is_told_and_holds_nobody_up(redis: Redis, redis_url: str):
    outbox, events = new_outbox(), Events()
    async with publishing(redis_url, outbox, on_event=events) as publisher:
        outbox.put(DeadLetter(detail="x" * (2 << 20)), stream=TELEMETRY, priority=NORMAL)
        outbox.put(metric(), stream=TELEMETRY, priority=NORMAL, message_id="good")
        await drained(publisher)
    assert [envelope.message_id for envelope in await envelopes(redis, TELEMETRY)] == ["good"]
    assert "oversize" in events.of("unsendable")[0]["error"]


@pytest.mark.parametrize("idle", [False, True])
async def test_folded_alerts_are_sent_at_the_windows_end(redis: Redis, redis_url: str, idle: bool):
    outbox = new_outbox()
    async with publishing(redis_url, outbox):
        if idle:
            await anyio.wait_all_tasks_blocked()
        for step in range(100):
            outbox.put(alert("spike", step), stream=EMERGENCY, priority=HIGH)
        with anyio.fail_after(SOON):
            await redis.xread({EMERGENCY: "0"}, block=50_000)
            ((first, _),) = await entries(redis, EMERGENCY)
            await redis.xread({EMERGENCY: first}, block=50_000)
    found = [(packet.global_step, packet.folded) for packet in await messages(redis, EMERGENCY)]
    assert found == [(0, 0), (99, 99)]


async def test_shedding_is_reported(redis_url: str, redis: Redis):
    outbox, events = new_outbox(capacity=8), Events()
    for _ in range(20):
        outbox.put(metric(), stream=TELEMETRY, priority=LOW)
        outbox.put(metric(), stream=TELEMETRY, priority=NORMAL)
    soon = timedelta(milliseconds=10)
    async with publishing(redis_url, outbox, on_event=events, tell_every=soon):
        assert await events.wait_for("shed") == {"low": "18", "normal": "16"}


async def test_what_was_shed_is_told_at_the_end_at_the_latest(redis_url: str, redis: Redis):
    outbox, events = new_outbox(capacity=8), Events()
    async with publishing(redis_url, outbox, on_event=events):
        for _ in range(20):
            outbox.put(metric(), stream=TELEMETRY, priority=LOW)
    assert events.names() == ["shed"]


async def test_cancelling_in_the_middle_loses_nothing(redis: Redis, redis_url: str):
    """Whatever the moment: what isn't delivered is in the outbox, in order."""
    outbox = new_outbox()
    for n in range(3000):
        outbox.put(metric(n), stream=TELEMETRY, priority=NORMAL, message_id=str(n))
    async with connect(redis_url, name="bulk") as bulk, connect(redis_url, name="em") as emergency:
        publisher = Publisher(bulk, emergency, outbox, KeyRing())
        for milliseconds in (1, 3, 5, 8):
            with anyio.move_on_after(milliseconds / 1000):
                await publisher.run()
            publisher = Publisher(bulk, emergency, outbox, KeyRing())
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(publisher.run)
            await publisher.drain(timedelta(seconds=SOON))
            publisher.stop()
    seen = [envelope.message_id for envelope in await envelopes(redis, TELEMETRY)]
    assert list(dict.fromkeys(seen)) == [str(n) for n in range(3000)]
