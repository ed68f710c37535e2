"""The bus without the rest: what a program needs to publish and to consume."""

from datetime import timedelta
from pathlib import Path

import anyio
import pytest
from redis.asyncio import Redis

from tests.oona.bus import (
    CONTROL,
    EMERGENCY,
    GROUP,
    HIGH,
    Events,
    Inbox,
    alert,
    command,
    envelopes,
    finished,
    letters,
    metric,
    send,
)
from tolaria_bus.leyline import AdaptationCommand
from tolaria_bus.oona import EmbeddedServer, KeyRing, open_consumer, open_publisher
from tolaria_bus.oona.connection import connect

RING = KeyRing.parse("k:c2VjcmV0LXNlY3JldA==")


async def test_what_was_put_has_arrived_when_the_block_is_left(redis: Redis, redis_url: str):
    async with open_publisher(redis_url, source="service/scheduler", ring=RING) as publisher:
        assert publisher.put(command("a"), stream=CONTROL)
        assert publisher.put(alert("late"), stream=EMERGENCY, priority=HIGH)
    (envelope,) = await envelopes(redis, CONTROL)
    assert (envelope.source, envelope.key_id) == ("service/scheduler", "k")
    assert len(await envelopes(redis, EMERGENCY)) == 1


async def test_what_the_block_raises_comes_out_as_it_is(redis_url: str):
    with pytest.raises(ZeroDivisionError):
        async with open_publisher(redis_url, source="me"):
            raise ZeroDivisionError


async def test_a_publisher_and_a_consumer_meet(redis: Redis, redis_url: str, tmp_path: Path):
    inbox = Inbox(ack=True)
    async with (
        open_publisher(redis_url, source="me", ring=RING) as publisher,
        open_consumer(
            redis_url,
            stream=CONTROL,
            group=GROUP,
            name="worker-1",
            accept=AdaptationCommand,
            ring=RING,
            nonces=tmp_path / "nonces",
            delete=True,
        ) as consumer,
        anyio.create_task_group() as tasks,
    ):
        tasks.start_soon(consumer.run, inbox)
        for n in range(100):
            publisher.put(command(str(n)), stream=CONTROL)
        publisher.put(metric(), stream=CONTROL)
        await inbox.wait_for(100)
        await publisher.drain()
        while not consumer.dead:  # noqa: ASYNC110
            await anyio.sleep(0.005)
        await finished(redis)
        await consumer.stop()
    assert inbox.ids() == [str(n) for n in range(100)]
    assert [letter.reason for letter in await letters(redis, ring=RING)] == ["type"]
    assert (tmp_path / "nonces").stat().st_size > 0


async def test_both_start_before_there_is_a_server(state_home: None, tmp_path: Path):
    url = f"unix://{tmp_path / 'run' / 'valkey' / 'valkey.sock'}"
    inbox, events = Inbox(ack=True), Events()
    async with (
        open_publisher(url, source="me", spool=tmp_path / "spool", on_event=events) as publisher,
        open_consumer(
            url,
            stream=CONTROL,
            group=GROUP,
            name="worker-1",
            accept={AdaptationCommand},
            on_event=events,
        ) as consumer,
        anyio.create_task_group() as tasks,
    ):
        tasks.start_soon(consumer.run, inbox)
        publisher.put(command(), stream=CONTROL, durable=True)
        await events.wait_for("disconnected")
        with EmbeddedServer.start(tmp_path / "run", "r") as server:
            await inbox.wait_for(1)
            assert await publisher.drain() == 0
            # It knows the server's clock by now.
            async with connect(server.url, name="hostile") as redis:
                seconds, _ = await redis.time()
                await redis.xadd(CONTROL, {"payload": b"x"}, id=f"{seconds * 1000 + 60_000}-0")
            assert (await events.wait_for("dead_letter"))["reason"] == "future"
            await consumer.stop()
    assert "server_clock_unknown" in events.names()


async def test_an_entry_that_a_stopped_consumer_released_is_anothers_at_once(
    redis: Redis, redis_url: str
):
    """And what was begun and isn't finished within the limit is released too."""
    stuck = anyio.Event()

    async def hang(_: object) -> None:
        stuck.set()
        await anyio.sleep_forever()

    options = {"stream": CONTROL, "group": GROUP, "accept": AdaptationCommand, "delete": True}
    inbox, events = Inbox(ack=True), Events()
    for n in range(5):
        await send(redis, CONTROL, command(str(n)))
    async with (
        open_consumer(redis_url, name="a", on_event=events, **options) as first,  # type: ignore[arg-type]
        open_consumer(redis_url, name="b", on_event=events, **options) as second,  # type: ignore[arg-type]
        anyio.create_task_group() as tasks,
    ):
        tasks.start_soon(first.run, hang)
        await stuck.wait()
        await first.stop(timedelta(milliseconds=50))
        tasks.start_soon(second.run, inbox)
        await inbox.wait_for(5)
        await finished(redis)
        await second.stop()
    assert inbox.ids() == [str(n) for n in range(5)]
    assert len(events.of("unfinished")) == 1
