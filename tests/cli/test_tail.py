"""Streams of a real server are followed by a real process."""

from __future__ import annotations

import base64
import signal
import sys
from pathlib import Path
from typing import Any

import anyio
import orjson
import pytest
from google.protobuf.message import Message
from redis.asyncio import Redis

from tests.cli.answering import STREAMS
from tests.cli.conftest import Call
from tests.cli.processes import SECONDS, Process, started
from tolaria_bus.leyline import (
    CommandOutcome,
    CommandStatus,
    EmergencyLevel,
    EmergencySignal,
    SystemStatePacket,
    TelemetryPacket,
)
from tolaria_bus.oona.connection import connect
from tolaria_bus.oona.embedded import EmbeddedServer
from tolaria_bus.oona.sealing import seal
from tolaria_bus.oona.trust import KeyRing

SECRET = base64.b64encode(b"s" * 32).decode()
RING = KeyRing.parse(f"k1:{SECRET}")
OUTCOMES = STREAMS.outcomes("first")


async def put(redis: Redis, stream: str, message: Message, ring: KeyRing | None = None) -> str:
    fields: Any = seal(message, stream=stream, source="tests", ring=ring or KeyRing())
    entry_id: Any = await redis.xadd(stream, fields)
    return str(entry_id.decode())


def applied(name: str) -> CommandOutcome:
    return CommandOutcome(command_id=name, status=CommandStatus.COMMAND_STATUS_APPLIED)


def alert(run: str, reason: str = "hot") -> EmergencySignal:
    return EmergencySignal(level=EmergencyLevel.EMERGENCY_LEVEL_ELEVATED, reason=reason, run_id=run)


async def reads(process: Process) -> str:
    return await anyio.to_thread.run_sync(process.line)


async def connected(redis: Redis, count: int = 1) -> None:
    """Wait until so many tails wait in the server."""
    with anyio.fail_after(SECONDS):
        while True:
            clients: Any = await redis.client_list()
            waiting = [c for c in clients if c["name"] == "tolaria-tail" and c["cmd"] == "xread"]
            if len(waiting) >= count:
                return
            await anyio.sleep(0.02)


async def test_what_comes_is_shown_as_it_comes(clean_place: Path, redis: Redis, redis_url: str):
    await put(redis, OUTCOMES, applied("old"))
    with started("tail", "--redis", redis_url, "--run", "first") as process:
        await connected(redis)
        await put(redis, OUTCOMES, applied("new"))
        assert "first outcomes  APPLIED unknown at step 0 id new" in await reads(process)
        await put(redis, STREAMS.emergency, alert("first"))
        assert "first emergency ELEVATED hot" in await reads(process)
        process.popen.send_signal(signal.SIGINT)
        assert process.rest() == ([], [])
        assert process.popen.returncode == 0


async def test_sigterm_ends_it_with_0(clean_place: Path, redis: Redis, redis_url: str):
    with started("tail", "--redis", redis_url, "--emergency") as process:
        await connected(redis)
        process.popen.send_signal(signal.SIGTERM)
        assert process.rest() == ([], [])
        assert process.popen.returncode == 0


async def test_alerts_of_all_runs_unless_one_is_named(
    clean_place: Path, redis: Redis, redis_url: str
):
    await put(redis, STREAMS.emergency, alert("first", "one"))
    await put(redis, STREAMS.emergency, alert("other", "two"))
    words = ["tail", "--emergency", "--since", "0", "--no-follow", "--json", "--redis", redis_url]
    everybody = await tail(*words)
    only_first = await tail(*words, "--run", "first")
    assert [line["message"]["reason"] for line in everybody] == ["one", "two"]
    assert [line["message"]["reason"] for line in only_first] == ["one"]


async def tail(*words: str) -> list[dict[str, Any]]:
    """JSON lines of a tail that ends by itself."""
    with started(*words) as process:
        out, err = await anyio.to_thread.run_sync(process.rest)
        assert err == []
        assert process.popen.returncode == 0
        return [orjson.loads(line) for line in out]


async def test_entries_of_all_streams_come_in_order_of_time(
    clean_place: Path, redis: Redis, redis_url: str
):
    await redis.hset(STREAMS.runs, "first", "{}")
    ids = []
    for number in range(4):
        ids.append(await put(redis, OUTCOMES, applied(str(number))))
        ids.append(await put(redis, STREAMS.telemetry("first"), TelemetryPacket(epoch=number)))
        ids.append(await put(redis, STREAMS.state("first"), SystemStatePacket()))
        await anyio.sleep(0.002)
    words = ["tail", "--all", "--since", "0", "--no-follow", "--json", "--redis", redis_url]
    lines = await tail(*words)
    assert [line["id"].split("-")[0] for line in lines] == [name.split("-")[0] for name in ids]
    assert len(await tail(*words, "--count", "5")) == 5
    since = ["--since", ids[5]]
    later = await tail(*[*words[:2], *since, *words[4:]])
    assert len(later) <= 6


async def test_only_the_streams_that_are_asked_for(clean_place: Path, redis: Redis, redis_url: str):
    await redis.hset(STREAMS.runs, "first", "{}")
    await put(redis, OUTCOMES, applied("a"))
    await put(redis, STREAMS.state("first"), SystemStatePacket())
    words = ["--since", "0", "--no-follow", "--json", "--redis", redis_url]
    assert {line["type"] for line in await tail("tail", "--state", *words)} == {"SYSTEM_STATE"}
    assert {line["type"] for line in await tail("tail", *words)} == {"COMMAND_OUTCOME"}


async def test_a_run_that_appears_later_is_followed_from_its_beginning(
    clean_place: Path, redis: Redis, redis_url: str
):
    with started("tail", "--outcomes", "--emergency", "--redis", redis_url) as process:
        await connected(redis)
        await redis.hset(STREAMS.runs, "first", "{}")
        await put(redis, OUTCOMES, applied("early"))
        assert "id early" in await reads(process)


async def test_with_keys_what_is_not_signed_is_marked(
    clean_place: Path, redis: Redis, redis_url: str, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("TOLARIA_SIGNING_KEYS", f"k1:{SECRET}")
    await put(redis, STREAMS.emergency, alert("first", "signed"), RING)
    await put(redis, STREAMS.emergency, alert("first", "forged"))
    await redis.xadd(STREAMS.emergency, {"json": '{"level":"NOTICE","reason":"by hand"}'})
    await redis.xadd(STREAMS.emergency, {"payload": b"\xff"})
    words = ["tail", "--emergency", "--since", "0", "--no-follow", "--json", "--redis", redis_url]
    lines = await tail(*words)
    assert [(line["message"] or {}).get("reason") for line in lines] == [
        "signed",
        "forged",
        "by hand",
        None,
    ]
    assert [line["verified"] for line in lines] == [True, False, False, False]
    assert lines[3]["error"].startswith("malformed: ")


async def test_a_lost_server_is_waited_for(clean_place: Path):
    folder = clean_place / "run"
    server = EmbeddedServer.start(folder, "first")
    with started("tail", "--run", "first", "--outcomes") as process:
        async with connect(server.url, name="tests") as redis:
            await connected(redis)
            await put(redis, OUTCOMES, applied("before"))
        assert "id before" in await reads(process)
        server.stop()
        complaint = await anyio.to_thread.run_sync(process.complaint)
        assert "waiting for the server" in complaint
        with EmbeddedServer.start(folder, "first") as again:
            async with connect(again.url, name="tests") as redis:
                await put(redis, OUTCOMES, applied("after"))
            assert "id after" in await reads(process)
            assert "is back" in await anyio.to_thread.run_sync(process.complaint)


async def test_a_reader_that_goes_away_ends_it_quietly(
    clean_place: Path, redis: Redis, redis_url: str
):
    for _ in range(3):
        await put(redis, STREAMS.emergency, alert("first"))
    tail = f"{sys.executable} -m tolaria_bus tail --emergency --since 0 --redis {redis_url}"
    # Its output is large enough to be cut in the middle, and its reader takes one line.
    script = f"set -o pipefail; {tail} | head -n 1 >/dev/null"
    async with await anyio.open_process(["bash", "-c", script]) as process:
        with anyio.fail_after(SECONDS):
            while process.returncode is None:
                await put(redis, STREAMS.emergency, alert("first", "x" * 1000))
                await anyio.sleep(0.05)
        assert process.stderr is not None
        assert [chunk async for chunk in process.stderr] == []
    assert process.returncode == 0


async def test_no_server_is_one_line(clean_place: Path, tmp_path: Path):
    with started("tail", "--redis", f"unix://{tmp_path}/none.sock") as process:
        out, err = await anyio.to_thread.run_sync(process.rest)
    assert process.popen.returncode == 2
    assert out == []
    assert len(err) == 1


async def test_a_wrong_since_is_one_line(cli: Call):
    ended = await cli("tail", "--since", "yesterday")
    assert ended.code == 2
    assert ended.err.count("\n") == 1
    assert "--since" in ended.err
