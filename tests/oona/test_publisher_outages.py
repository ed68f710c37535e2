"""Whatever happens to the server or to this process, no alert is lost, and none is told twice."""

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import anyio
import pytest
from redis.asyncio import Redis

from tests.oona.bus import (
    CONTROL,
    EMERGENCY,
    HIGH,
    LOW,
    NORMAL,
    OUTCOMES,
    SOON,
    TELEMETRY,
    UNSIGNED,
    Events,
    alert,
    drained,
    entries,
    envelopes,
    metric,
    new_outbox,
    outcome,
    pending,
    publishing,
    taken_entry,
    until,
)
from tolaria_bus.leyline import CommandOutcome, Settlement
from tolaria_bus.oona.connection import connect
from tolaria_bus.oona.embedded import EmbeddedServer
from tolaria_bus.oona.opening import Opener
from tolaria_bus.oona.spool import Spool


@pytest.fixture
def spool(tmp_path: Path) -> Iterator[Spool]:
    with Spool(tmp_path / "spool") as spool:
        yield spool


def kill(server: EmbeddedServer) -> None:
    """As a power cut would; then tidy up after it."""
    os.kill(server.pid, signal.SIGKILL)
    server.stop()


@pytest.mark.usefixtures("state_home")
async def test_a_killed_server_costs_no_alert_and_no_outcome(tmp_path: Path, spool: Spool):
    """The server is killed twice while packets are put and sent."""
    server = EmbeddedServer.start(tmp_path, "r")
    outbox, events = new_outbox(spool), Events()
    count = 2000

    def put_all() -> None:
        for n in range(count):
            outbox.put(alert(f"a{n}"), stream=EMERGENCY, priority=HIGH, message_id=f"a{n}")
            outbox.put(metric(n), stream=TELEMETRY, priority=LOW)
            if n % 10 == 0:
                outbox.put(
                    outcome(f"o{n}"),
                    stream=OUTCOMES,
                    priority=NORMAL,
                    message_id=f"o{n}",
                    durable=True,
                )
            if n % 100 == 0:
                paused.wait(0.02)

    paused = threading.Event()
    putting = threading.Thread(target=put_all)
    try:
        async with publishing(server.url, outbox, on_event=events) as publisher:
            putting.start()
            for _ in range(2):
                await anyio.sleep(0.1)
                kill(server)
                await events.wait_for("disconnected")
                await anyio.sleep(0.1)
                server = EmbeddedServer.start(tmp_path, "r")
                await events.wait_for("reconnected")
            await anyio.to_thread.run_sync(putting.join)
            await drained(publisher)
        async with connect(server.url, name="reader") as redis:
            alerts = [envelope.message_id for envelope in await envelopes(redis, EMERGENCY)]
            outcomes = [envelope.message_id for envelope in await envelopes(redis, OUTCOMES)]
    finally:
        server.stop()
    # Nothing is even written twice.
    assert alerts == [f"a{n}" for n in range(count)]
    assert outcomes == [f"o{n}" for n in range(0, count, 10)]
    assert len(spool) == 0


async def test_alerts_of_a_killed_process_are_delivered_by_the_next(
    redis: Redis, redis_url: str, tmp_path: Path
):
    """It was killed while it had no server."""
    script = """
import os, signal, sys
from pathlib import Path
from tests.oona.bus import *
outbox = new_outbox(Spool(Path(sys.argv[1])))
for n in range(500):
    outbox.put(alert(f"a{n}"), stream=EMERGENCY, priority=HIGH, message_id=f"a{n}")
    outbox.put(metric(n), stream=TELEMETRY, priority=NORMAL)
outbox.put(outcome("o"), stream=OUTCOMES, priority=NORMAL, message_id="o", durable=True)
async def main():
    async with publishing("unix:///nonexistent/sock", outbox):
        await anyio.sleep(0.1)
        os.kill(os.getpid(), signal.SIGKILL)
anyio.run(main)
"""
    command = [sys.executable, "-c", script, str(tmp_path / "spool")]
    killed = await anyio.run_process(command, check=False, stderr=subprocess.PIPE)
    assert killed.returncode == -signal.SIGKILL, killed.stderr.decode()
    with Spool(tmp_path / "spool") as spool:
        outbox = new_outbox(spool)
        outbox.put(alert("new"), stream=EMERGENCY, priority=HIGH, message_id="new")
        async with publishing(redis_url, outbox) as publisher:
            await drained(publisher)
        assert len(spool) == 0
    alerts = [envelope.message_id for envelope in await envelopes(redis, EMERGENCY)]
    assert alerts == [*(f"a{n}" for n in range(500)), "new"]
    assert [envelope.message_id for envelope in await envelopes(redis, OUTCOMES)] == ["o"]


async def test_what_a_server_without_memory_refuses_is_kept_in_order(
    redis: Redis, redis_url: str, spool: Spool
):
    outbox, events = new_outbox(spool), Events()
    await redis.config_set("maxmemory", "1")
    try:
        async with publishing(redis_url, outbox, on_event=events) as publisher:
            for n in range(600):
                outbox.put(
                    outcome(str(n)),
                    stream=OUTCOMES,
                    priority=NORMAL,
                    message_id=str(n),
                    durable=True,
                )
                outbox.put(metric(n), stream=TELEMETRY, priority=NORMAL, message_id=str(n))
            refused = await events.wait_for("refused")
            assert "OutOfMemory" in refused["error"]
            assert outbox.depth == 1200
            await redis.config_set("maxmemory", "0")
            await drained(publisher)
    finally:
        await redis.config_set("maxmemory", "0")
    for stream in (OUTCOMES, TELEMETRY):
        sent = [envelope.message_id for envelope in await envelopes(redis, stream)]
        assert sent == [str(n) for n in range(600)]
    assert events.names().count("disconnected") == 0


@pytest.mark.usefixtures("state_home")
async def test_a_replica_refuses_until_it_is_promoted(tmp_path: Path, spool: Spool):
    with EmbeddedServer.start(tmp_path, "r") as server:
        outbox, events = new_outbox(spool), Events()
        async with connect(server.url, name="operator") as redis:
            await redis.replicaof("127.0.0.1", "1")
            async with publishing(server.url, outbox, on_event=events) as publisher:
                outbox.put(alert("a"), stream=EMERGENCY, priority=HIGH)
                assert "ReadOnly" in (await events.wait_for("refused"))["error"]
                assert len(spool) == 1
                await redis.replicaof("NO", "ONE")
                await drained(publisher)
            assert len(await envelopes(redis, EMERGENCY)) == 1


async def test_one_bad_stream_doesnt_hold_up_the_others(redis: Redis, redis_url: str):
    await redis.set(TELEMETRY, "not a stream")
    outbox, events = new_outbox(), Events()
    async with publishing(redis_url, outbox, on_event=events) as publisher:
        outbox.put(metric(), stream=TELEMETRY, priority=NORMAL)
        await events.wait_for("refused")
        outbox.put(outcome("c"), stream=OUTCOMES, priority=NORMAL, durable=True)
        await until(lambda: outbox.depth == 1)
        assert len(await envelopes(redis, OUTCOMES)) == 1
        await redis.delete(TELEMETRY)
        await drained(publisher)
    assert len(await envelopes(redis, TELEMETRY)) == 1
    assert events.names() == ["refused", "accepted"]


async def test_a_refused_stream_with_a_backlog_keeps_its_order_and_holds_nobody_up(
    redis: Redis, redis_url: str
):
    """While it is refused, more is put for it, and for others."""
    await redis.set("refused", "not a stream")
    outbox, events = new_outbox(), Events()
    async with publishing(redis_url, outbox, on_event=events) as publisher:
        for n in range(600):
            outbox.put(metric(), stream="refused", priority=NORMAL, message_id=str(n))
        await events.wait_for("refused")
        for n in range(600, 1200):
            outbox.put(metric(), stream="refused", priority=NORMAL, message_id=str(n))
            outbox.put(metric(), stream=TELEMETRY, priority=NORMAL, message_id=str(n))
        await until(lambda: outbox.depth == 1200)
        await redis.delete("refused")
        await drained(publisher)
    sent = [envelope.message_id for envelope in await envelopes(redis, "refused")]
    assert sent == [str(n) for n in range(1200)]
    sent = [envelope.message_id for envelope in await envelopes(redis, TELEMETRY)]
    assert sent == [str(n) for n in range(600, 1200)]


async def test_a_refusal_is_told_once_though_others_are_accepted_meanwhile(
    redis: Redis, redis_url: str
):
    await redis.set("refused", "not a stream")
    outbox, events = new_outbox(), Events()
    async with publishing(redis_url, outbox, on_event=events) as publisher:
        outbox.put(metric(), stream="refused", priority=NORMAL)
        await events.wait_for("refused")
        for _ in range(3):
            # Whole batches, before which the refused packet doesn't come.
            for n in range(300):
                outbox.put(outcome(str(n)), stream=OUTCOMES, priority=NORMAL, durable=True)
            await until(lambda: outbox.depth == 1)
            await publisher.progress()  # one more try
        assert events.names() == ["refused"]
        await redis.delete("refused")
        await drained(publisher)
    assert events.names() == ["refused", "accepted"]


@pytest.mark.parametrize("stream", [EMERGENCY, OUTCOMES])
async def test_what_was_sealed_too_long_ago_is_sealed_anew(
    redis: Redis, redis_url: str, stream: str
):
    """As when the process stood still before it sent, or its clock is behind."""
    behind = 61_000_000_000
    outbox, events = new_outbox(), Events()
    async with publishing(
        redis_url, outbox, on_event=events, clock=lambda: time.time_ns() - behind
    ) as publisher:
        message = alert("a") if stream == EMERGENCY else outcome("c")
        outbox.put(message, stream=stream, priority=HIGH, message_id="m")
        refused = await events.wait_for("refused")
        assert "sealed too long ago, by the clock of its sender" in refused["error"]
        assert await redis.exists(stream) == 0
        behind = 0
        await drained(publisher)
    ((entry_id, fields),) = await entries(redis, stream)
    assert Opener(UNSIGNED, None).open(stream, entry_id, fields).message_id == "m"
    assert events.names() == ["refused", "accepted"]


async def test_a_wiped_server_is_written_to_as_before(redis: Redis, redis_url: str):
    outbox = new_outbox()
    async with publishing(redis_url, outbox) as publisher:
        outbox.put(outcome("before"), stream=OUTCOMES, priority=NORMAL, durable=True)
        await drained(publisher)
        await redis.flushall()
        outbox.put(outcome("after"), stream=OUTCOMES, priority=NORMAL, durable=True)
        await drained(publisher)
    (envelope,) = await envelopes(redis, OUTCOMES)
    assert CommandOutcome.FromString(envelope.payload) == outcome("after")


async def test_an_outcome_sent_again_after_a_crash_is_written_once(
    redis: Redis, redis_url: str, spool: Spool
):
    """The process died between the server's reply and the drop from the spool."""
    entry_id = await taken_entry(redis, CONTROL, "tolaria")
    settlement = Settlement(stream=CONTROL, group="tolaria", entry_id=entry_id, delete=True)
    for attempt in range(2):
        outbox = new_outbox(spool) if attempt else new_outbox()
        outbox.put(
            outcome("c"),
            stream=OUTCOMES,
            priority=NORMAL,
            message_id="m",
            settlement=settlement,
            durable=True,
        )
        async with publishing(redis_url, outbox, token=1) as publisher:
            await drained(publisher)
    assert len(await entries(redis, OUTCOMES)) == 1
    assert await pending(redis, CONTROL, "tolaria") == 0
    assert len(spool) == 0


async def test_a_spool_that_cannot_be_synced_is_told_and_nothing_is_lost(
    redis: Redis, redis_url: str, spool: Spool, monkeypatch: pytest.MonkeyPatch
):
    def broken(_: int) -> None:
        raise OSError("I/O error")

    monkeypatch.setattr(os, "fsync", broken)
    outbox, events = new_outbox(spool), Events()
    async with publishing(redis_url, outbox, on_event=events) as publisher:
        outbox.put(alert("a"), stream=EMERGENCY, priority=HIGH)
        await drained(publisher)
        assert "I/O error" in (await events.wait_for("spool_failed"))["error"]
    monkeypatch.undo()
    assert len(await envelopes(redis, EMERGENCY)) == 1


async def test_without_a_server_the_time_to_drain_is_kept(spool: Spool):
    outbox = new_outbox(spool)
    async with publishing("unix:///nonexistent/sock", outbox, on_event=Events()) as publisher:
        outbox.put(alert("a"), stream=EMERGENCY, priority=HIGH)
        with anyio.fail_after(SOON):
            assert await publisher.drain(timedelta(milliseconds=50)) == 1
    assert len(spool) == 1


@pytest.mark.usefixtures("state_home")
async def test_the_emergency_connection_is_made_before_there_is_an_alert(tmp_path: Path):
    """And where that can't be, it is told, and so is its end."""
    events, outbox = Events(), new_outbox()
    url = f"unix://{tmp_path / 'valkey' / 'valkey.sock'}"
    async with publishing(url, outbox, on_event=events) as publisher:
        assert (await events.wait_for("disconnected"))["connection"] == "emergency"
        assert publisher.connected == {"bulk": True, "emergency": False}
        with EmbeddedServer.start(tmp_path, "r") as server:
            assert (await events.wait_for("reconnected"))["connection"] == "emergency"
            async with connect(server.url, name="operator") as redis:
                clients: Any = await redis.client_list()
            assert "emergency" in {client["name"] for client in clients}
