import asyncio
import contextlib
import random
from collections.abc import AsyncIterator
from datetime import timedelta
from pathlib import Path

import pytest
from redis.asyncio import Redis
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import TimeoutError as RedisTimeoutError

from tolaria_bus.oona import connection
from tolaria_bus.oona.connection import (
    ServerClock,
    ServerUnreachable,
    check,
    connect,
)


@pytest.fixture
async def guarded(redis: Redis, redis_url: str) -> AsyncIterator[str]:
    """The server's URL with a user and a password that has signs which URLs must escape."""
    await redis.acl_setuser(
        "ann", enabled=True, passwords="+p@ss/w:rd", keys="*", channels="*", categories=["+@all"]
    )
    yield redis_url.replace("unix://", "unix://ann:p%40ss%2Fw%3Ard@")
    await redis.acl_deluser("ann")


async def test_a_client_shows_its_name(redis: Redis, redis_url: str) -> None:
    async with connect(redis_url, name="reader-1") as client:
        await client.ping()
        assert "reader-1" in [one["name"] for one in await redis.client_list()]


async def test_user_and_password_come_from_the_url(guarded: str) -> None:
    async with connect(guarded, name="ann") as client:
        assert await client.acl_whoami() in ("ann", b"ann")


async def test_a_blocking_read_may_take_longer_than_a_reply(
    redis_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(connection, "REPLY_TIMEOUT", timedelta(milliseconds=500))
    async with connect(redis_url, name="reader", block=timedelta(seconds=10)) as reader:
        assert not await reader.xread({"nothing": "$"}, block=700)
    async with connect(redis_url, name="writer") as writer:
        with pytest.raises(RedisTimeoutError):
            await writer.xread({"nothing": "$"}, block=60_000)


async def test_nothing_is_retried_and_no_global_generator_drawn_from(tmp_path: Path) -> None:
    random.seed(1)
    before = random.getstate()
    async with connect(f"unix://{tmp_path}/nobody", name="test") as client:
        with pytest.raises(RedisConnectionError):
            await asyncio.wait_for(client.ping(), 60)
    assert random.getstate() == before


async def test_a_lost_connection_is_the_callers_to_see_and_the_next_call_reconnects(
    redis: Redis, redis_url: str
) -> None:
    async with connect(redis_url, name="victim") as client:
        number = await client.client_id()
        await redis.client_kill_filter(_id=str(number))
        with contextlib.suppress(RedisConnectionError):
            await client.ping()
        assert await client.ping()


async def test_a_server_tells_what_it_is(redis_url: str) -> None:
    info = await check(redis_url)
    assert info.name == "valkey"
    assert info.version.startswith("9.")
    assert info.durable
    assert not info.evicts


async def test_a_user_who_may_not_see_settings_is_no_failure(guarded: str, redis: Redis) -> None:
    await redis.acl_setuser("ann", enabled=True, commands=["-config"], reset_keys=False)
    info = await check(guarded)
    assert not info.durable, "not known is not promised"


async def test_an_absent_server_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(ServerUnreachable) as error:
        await check(f"unix://ann:secret@{tmp_path}/nobody")
    assert str(error.value).startswith(f"server unix://ann:***@{tmp_path}/nobody: ")
    assert "\n" not in str(error.value)


async def test_a_wrong_password_is_one_line(guarded: str) -> None:
    with pytest.raises(ServerUnreachable, match="invalid username-password") as error:
        await check(guarded.replace("p%40ss", "wrong"))
    assert "wrong" not in str(error.value)


async def test_something_that_is_no_redis_is_one_line(tmp_path: Path) -> None:
    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read(10)
        writer.write(b"HTTP/1.1 400 Bad Request\r\n\r\n")
        writer.close()

    async with await asyncio.start_unix_server(answer, tmp_path / "web"):
        with pytest.raises(ServerUnreachable) as error:
            await check(f"unix://{tmp_path}/web")
    assert "\n" not in str(error.value)


async def test_the_servers_clock_goes_on_between_two_answers(redis: Redis) -> None:
    now = 100.0
    clock = ServerClock(monotonic=lambda: now, wall=lambda: 0.0)
    assert clock.now_ms() is None
    await clock.sync(redis)
    seconds, micros = await redis.time()
    first = clock.now_ms()
    assert first is not None
    assert 0 <= seconds * 1000 + micros / 1000 - first < 5000
    now = 101.5
    assert clock.now_ms() == pytest.approx(first + 1500, abs=1)


async def test_a_machine_that_slept_doesnt_lag_behind(redis: Redis) -> None:
    wall = 0.0
    clock = ServerClock(monotonic=lambda: 100.0, wall=lambda: wall)
    await clock.sync(redis)
    wall = 9e9
    assert clock.now_ms() == 9e12
