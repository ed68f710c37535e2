"""What happens on the bus is counted, and shown when somebody asks."""

import os
import re
import signal
import urllib.error
import urllib.request
from collections.abc import Sequence
from datetime import timedelta
from pathlib import Path

import anyio
import pytest
from prometheus_client.registry import CollectorRegistry
from redis.asyncio import Redis

from tests.oona.bus import (
    CONTROL,
    EMERGENCY,
    GROUP,
    HIGH,
    LOW,
    NORMAL,
    SOON,
    STREAMS,
    TELEMETRY,
    Events,
    Inbox,
    alert,
    command,
    consuming,
    drained,
    finished,
    metric,
    new_outbox,
    publishing,
    send,
    until,
)
from tolaria_bus.oona.connection import ServerClock, connect
from tolaria_bus.oona.consumer import Consumer, Received
from tolaria_bus.oona.counts import BOUNDS, Latency
from tolaria_bus.oona.embedded import EmbeddedServer
from tolaria_bus.oona.metrics import BusMetrics, alive, stalled
from tolaria_bus.oona.outbox import Outbox
from tolaria_bus.oona.publisher import Publisher
from tolaria_bus.oona.sampling import Sampler
from tolaria_bus.oona.spool import Spool
from tolaria_bus.safety.endpoint import Endpoint

PAGE = Path(__file__).parents[2] / "docs" / "metrics.md"


class Scrape:
    """Metrics of parts of a bus, asked for by name."""

    def __init__(
        self,
        *,
        consumers: Sequence[Consumer] = (),
        publisher: Publisher | None = None,
        outbox: Outbox | None = None,
        sampler: Sampler | None = None,
    ) -> None:
        self.registry = CollectorRegistry()
        BusMetrics(
            self.registry,
            consumers=consumers,
            publisher=publisher,
            outbox=outbox,
            sampler=sampler,
        )

    def __call__(self, name: str, **labels: str) -> float | None:
        return self.registry.get_sample_value(f"oona_{name}", labels)

    def control(self, name: str, **labels: str) -> float | None:
        return self(name, stream=CONTROL, group=GROUP, **labels)


async def server_clock(redis: Redis) -> ServerClock:
    clock = ServerClock()
    await clock.sync(redis)
    return clock


async def test_what_a_consumer_does_is_counted(redis: Redis, redis_url: str):
    # Delivered before to a consumer of this name, in an earlier life.
    await redis.xgroup_create(CONTROL, GROUP, "0", mkstream=True)
    await send(redis, CONTROL, command("again"))
    await redis.xreadgroup(GROUP, "me", {CONTROL: ">"})
    clock = await server_clock(redis)
    inbox = Inbox()
    async with consuming(redis_url, inbox, server_now=clock.now) as consumer:
        scrape = Scrape(consumers=[consumer])
        taken = list(await inbox.wait_for(1))
        for number in range(3):
            await send(redis, CONTROL, command(str(number)))
            taken = list(await inbox.wait_for(2 + number))
        await redis.xadd(CONTROL, {"payload": b"rubbish"})
        await redis.xadd(CONTROL, {"json": b'{"commandType": 5, "x": 1}'})
        await until(lambda: scrape.control("dead_letters_total", reason="malformed") == 2)
        assert scrape.control("handed_over_total") == 4
        assert scrape.control("redelivered_total") == 1
        assert scrape.control("in_flight") == 4
        assert scrape.control("acknowledged_total") == 0
        assert scrape.control("lost_total") == 0
        for received in taken:
            await received.ack()
        assert scrape.control("acknowledged_total") == 4
        assert scrape.control("in_flight") == 0
        # Each but the one that had been delivered before; the two bad ones may be one read.
        assert scrape.control("deliver_seconds_count") in (4, 5)
        total = scrape.control("deliver_seconds_sum")
        assert total is not None
        assert 0 <= total < 5 * SOON
        assert scrape.control("deliver_seconds_bucket", le="+Inf") in (4, 5)
        age = scrape.control("read_age_seconds")
        assert age is not None
        assert age < SOON


async def test_entries_that_were_deleted_while_pending_are_counted(redis: Redis, redis_url: str):
    await redis.xgroup_create(CONTROL, GROUP, "0", mkstream=True)
    entry_id = await send(redis, CONTROL, command())
    await redis.xreadgroup(GROUP, "me", {CONTROL: ">"})
    await redis.xdel(CONTROL, entry_id)
    async with consuming(redis_url, Inbox()) as consumer:
        scrape = Scrape(consumers=[consumer])
        await until(lambda: scrape.control("lost_total") == 1)


async def test_a_killed_reader_is_counted_when_it_is_back(redis: Redis, redis_url: str):
    inbox = Inbox(ack=True)
    async with consuming(redis_url, inbox) as consumer:
        scrape = Scrape(consumers=[consumer])
        await send(redis, CONTROL, command("before"))
        await inbox.wait_for(1)
        await finished(redis)
        assert scrape("reconnects_total", connection=CONTROL) == 0
        await redis.execute_command("CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes")  # type: ignore[no-untyped-call]
        await until(lambda: scrape("reconnects_total", connection=CONTROL) == 1)
        assert scrape("connected", connection=CONTROL) == 1


async def test_a_publisher_without_a_server_is_seen_and_counted_when_it_is_back(tmp_path: Path):
    events, outbox = Events(), new_outbox()
    server = EmbeddedServer.start(tmp_path, "r")
    async with publishing(server.url, outbox, on_event=events) as publisher:
        scrape = Scrape(publisher=publisher)
        outbox.put(alert("first"), stream=EMERGENCY, priority=HIGH)
        await drained(publisher)
        server.stop()
        outbox.put(metric(), stream=TELEMETRY, priority=NORMAL)
        await events.wait_for("disconnected")
        assert scrape("connected", connection="bulk") == 0
        assert scrape("connected", connection="emergency") == 1
        with EmbeddedServer.start(tmp_path, "r"):
            await drained(publisher)
            assert scrape("connected", connection="bulk") == 1
            assert scrape("reconnects_total", connection="bulk") == 1
            assert scrape("reconnects_total", connection="emergency") == 0


async def test_what_becomes_of_packets_is_counted_by_stream(tmp_path: Path, redis_url: str):
    with Spool(tmp_path / "spool") as spool:
        outbox = new_outbox(spool, capacity=100)
        scrape = Scrape(outbox=outbox)
        for _ in range(100):
            outbox.put(metric(), stream=TELEMETRY, priority=LOW)
            outbox.put(metric(), stream=TELEMETRY, priority=NORMAL)
        for step in range(5):
            outbox.put(alert("loss", step), stream=EMERGENCY, priority=HIGH)
        assert scrape("shed_total", stream=TELEMETRY, priority="LOW") == 75
        assert scrape("shed_total", stream=TELEMETRY, priority="NORMAL") == 50
        assert scrape("shed_total", stream=EMERGENCY, priority="HIGH") is None
        assert scrape("folded_total", stream=EMERGENCY) == 4
        assert scrape("spooled_total", stream=EMERGENCY) == 5
        # One is sent, and one stands for four.
        assert scrape("spool_packets") == 2
        assert scrape("outbox_packets") == 76
        assert scrape("unspooled_total") == 0
        async with publishing(redis_url, outbox, on_event=Events()) as publisher:
            await drained(publisher)
        assert scrape("published_total", stream=TELEMETRY) == 75
        assert scrape("published_total", stream=EMERGENCY) == 2
        assert scrape("outbox_packets") == scrape("spool_packets") == 0
        # The one that was held back waited on purpose.
        assert scrape("publish_seconds_count", stream=EMERGENCY) == 1
        assert scrape("publish_seconds_count", stream=TELEMETRY) == 1


async def test_the_server_is_asked_in_one_round_trip(redis: Redis):
    await redis.xgroup_create(CONTROL, GROUP, "0", mkstream=True)
    await redis.xgroup_create(CONTROL, "other", "$")
    for number in range(5):
        await send(redis, CONTROL, command(str(number)))
    await redis.xreadgroup(GROUP, "me", {CONTROL: ">"}, count=2)
    missing = STREAMS.state("r")
    clock = ServerClock()
    sampler = Sampler(redis, [CONTROL, missing], clock=clock)
    scrape = Scrape(sampler=sampler)
    assert scrape("stream_entries", stream=CONTROL) is None
    await sampler.take()
    assert scrape("stream_entries", stream=CONTROL) == 5
    assert scrape("stream_entries", stream=missing) == 0
    assert scrape.control("group_lag") == 3
    assert scrape.control("group_pending") == 2
    assert scrape("group_lag", stream=CONTROL, group="other") == 5
    assert scrape("group_pending", stream=CONTROL, group="other") == 0
    age = scrape("sample_age_seconds")
    assert age is not None
    assert age < SOON
    assert clock.now() is not None


async def test_a_server_that_is_gone_leaves_the_last_sample_and_says_so(tmp_path: Path):
    events = Events()
    server = EmbeddedServer.start(tmp_path, "r")
    async with connect(server.url, name="metrics") as client, anyio.create_task_group() as tasks:
        sampler = Sampler(client, [CONTROL], every=timedelta(milliseconds=20), on_event=events)
        tasks.start_soon(sampler.run)
        await until(lambda: sampler.sample is not None)
        server.stop()
        detail = await events.wait_for("disconnected")
        assert detail["connection"] == "metrics"
        assert sampler.sample is not None
        assert sampler.sample.depth == {CONTROL: 0}
        tasks.cancel_scope.cancel()


async def test_a_handler_that_never_returns_is_a_read_loop_that_stands_still(
    redis: Redis, redis_url: str
):
    now = 1000.0
    begun = anyio.Event()

    async def handler(_: Received) -> None:
        begun.set()
        await anyio.sleep_forever()

    def get(url: str) -> tuple[int, str]:
        try:
            with urllib.request.urlopen(url, timeout=SOON) as answer:
                return answer.status, answer.read().decode()
        except urllib.error.HTTPError as error:
            return error.code, error.read().decode()

    async with consuming(redis_url, handler, monotonic=lambda: now) as consumer:
        scrape = Scrape(consumers=[consumer])
        with Endpoint("127.0.0.1", 0, scrape.registry) as endpoint:
            assert await anyio.to_thread.run_sync(get, f"{endpoint.url}/healthz") == (
                503,
                "starting\n",
            )
            endpoint.health = lambda: stalled([consumer])
            # Going round with nothing to do, the loop keeps up with the clock.
            now += 100
            await until(lambda: consumer.read_age == 0)
            assert alive([consumer])
            await send(redis, CONTROL, command())
            with anyio.fail_after(SOON):
                await begun.wait()
            now += 29
            assert await anyio.to_thread.run_sync(get, f"{endpoint.url}/healthz") == (200, "ok\n")
            now += 2
            assert not alive([consumer])
            said = f"{CONTROL}: the read loop stands still for 31 s\n"
            assert await anyio.to_thread.run_sync(get, f"{endpoint.url}/healthz") == (503, said)
            status, page = await anyio.to_thread.run_sync(get, f"{endpoint.url}/metrics")
            assert status == 200
            assert f'oona_read_age_seconds{{group="tolaria",stream="{CONTROL}"}} 31.0' in page
            status, _ = await anyio.to_thread.run_sync(get, f"{endpoint.url}/")
            assert status == 404


@pytest.mark.slow
async def test_a_server_that_hangs_is_no_read_loop_that_stands_still(tmp_path: Path):
    """It is seen as not connected instead."""
    events = Events()
    server = EmbeddedServer.start(tmp_path, "r")
    reply = timedelta(seconds=1)
    async with consuming(server.url, Inbox(), on_event=events, reply=reply) as consumer:
        scrape = Scrape(consumers=[consumer])
        os.kill(server.pid, signal.SIGSTOP)
        try:
            # Much longer than SOON: as long as the reply and the next attempts may take.
            with anyio.fail_after(4 * SOON):
                while not events.of("disconnected"):  # noqa: ASYNC110
                    await anyio.sleep(0.05)
                assert scrape("connected", connection=CONTROL) == 0
                seen = consumer.last_read
                while consumer.last_read == seen:
                    await anyio.sleep(0.05)
                    assert alive([consumer])
        finally:
            os.kill(server.pid, signal.SIGCONT)
        await events.wait_for("reconnected")
        assert scrape("connected", connection=CONTROL) == 1
        assert scrape("reconnects_total", connection=CONTROL) == 1
    server.stop()


async def test_the_page_in_the_docs_lists_every_metric_and_no_other(
    tmp_path: Path, redis: Redis, redis_url: str
):
    clock = await server_clock(redis)
    with Spool(tmp_path / "spool") as spool:
        outbox = new_outbox(spool, capacity=4)
        for _ in range(8):
            outbox.put(metric(), stream=TELEMETRY, priority=LOW)
        await send(redis, CONTROL, command())
        await redis.xadd(CONTROL, {"payload": b"rubbish"})
        inbox = Inbox(ack=True)
        async with (
            consuming(redis_url, inbox, server_now=clock.now) as consumer,
            publishing(redis_url, outbox, on_event=Events()) as publisher,
        ):
            await drained(publisher)
            await inbox.wait_for(1)
            await until(lambda: bool(consumer.dead))
            sampler = Sampler(redis, [CONTROL])
            await sampler.take()
            scrape = Scrape(
                consumers=[consumer], publisher=publisher, outbox=outbox, sampler=sampler
            )
            found = {}
            for family in scrape.registry.collect():
                suffix = "_total" if family.type == "counter" else ""
                labels = set(family.samples[0].labels) - {"le"}
                found[family.name + suffix] = (family.type, labels)
                assert family.documentation
    row = re.compile(r"^\| `(\w+)` \| (\w+) \| ([^|]*) \| [^|]+ \|$", re.MULTILINE)
    documented = {
        name: (kind, set(re.findall(r"`(\w+)`", labels)))
        for name, kind, labels in row.findall(PAGE.read_text())
    }
    assert documented == found


def test_a_latency_is_counted_in_the_first_bucket_that_holds_it():
    latency = Latency()
    for seconds in (-1.0, 0.0, 0.0001, 0.00011, 3.0, 11.0):
        latency.observe(seconds)
    sums = latency.cumulative()
    by_bound = dict(zip(BOUNDS, sums, strict=False))
    assert (by_bound[0.0001], by_bound[0.00025], by_bound[2.5], by_bound[5.0]) == (3, 4, 4, 5)
    assert by_bound[10.0] == 5
    assert sums[-1] == 6
    assert latency.total == pytest.approx(14.00021)
