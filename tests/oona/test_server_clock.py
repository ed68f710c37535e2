"""A server whose clock steps ahead of what a consumer knows of it: its entries are in time."""

from functools import partial
from typing import Any

import pytest
from redis.asyncio import Redis
from redis.exceptions import NoPermissionError

from tests.oona.bus import (
    CONTROL,
    GROUP,
    Events,
    Inbox,
    command,
    consuming,
    finished,
    letters,
    send,
    unmarked,
)
from tolaria_bus.oona.connection import ServerClock
from tolaria_bus.oona.dead_letters import begun_key
from tolaria_bus.oona.opening import Opener
from tolaria_bus.oona.trust import KeyRing


class Watch:
    """This machine's clock, as far as a consumer knows it; the server's then steps ahead of it."""

    def __init__(self) -> None:
        self.now = 1_000.0
        self.clock = ServerClock(lambda: self.now, lambda: self.now)

    def step(self, seconds: float) -> None:
        self.now -= seconds

    def options(self, redis: Redis) -> dict[str, Any]:
        return {
            "opener": Opener(KeyRing(), None, server_now_ms=self.clock.now_ms),
            "sync_clock": partial(self.clock.sync, redis),
        }


@pytest.fixture
async def watch(redis: Redis) -> Watch:
    made = Watch()
    await made.clock.sync(redis)
    return made


async def test_commands_are_taken_after_the_servers_clock_has_stepped(
    redis: Redis, redis_url: str, watch: Watch
):
    inbox, events = Inbox(ack=True), Events()
    async with consuming(redis_url, inbox, on_event=events, **watch.options(redis)):
        await send(redis, CONTROL, command("before"))
        await inbox.wait_for(1)
        watch.step(60)
        for name in ("after", "one more"):
            await send(redis, CONTROL, command(name))
        await inbox.wait_for(3)
        await finished(redis)
    assert inbox.ids() == ["before", "after", "one more"]
    assert events.seen == []


async def test_so_are_commands_that_come_again(redis: Redis, redis_url: str, watch: Watch):
    await send(redis, CONTROL, command())
    await redis.xgroup_create(CONTROL, GROUP, "0")
    await redis.xreadgroup(GROUP, "me", {CONTROL: ">"})
    watch.step(60)
    inbox, events = Inbox(ack=True), Events()
    async with consuming(redis_url, inbox, on_event=events, **watch.options(redis)):
        await inbox.wait_for(1)
        await finished(redis)
        await unmarked(redis)
    assert events.seen == []


async def test_an_id_from_the_future_is_still_refused(redis: Redis, redis_url: str, watch: Watch):
    seconds, _ = await redis.time()
    events = Events()
    watch.step(60)
    async with consuming(redis_url, Inbox(), on_event=events, **watch.options(redis)):
        await redis.xadd(CONTROL, {"payload": b"x"}, id=f"{seconds * 1000 + 90_000}-0")
        await events.wait_for("stream_mended")
    (letter,) = await letters(redis)
    assert letter.reason == "future"
    # By the server's clock, not by the one that lagged.
    ahead = float(letter.detail.removesuffix(" s ahead of the server").split()[-1])
    assert ahead <= 91


async def test_a_server_that_cannot_be_asked_has_its_entry_judged_later(
    redis: Redis, redis_url: str, watch: Watch
):
    """It was neither refused nor begun."""
    inbox, events = Inbox(ack=True), Events()
    options = watch.options(redis)
    ask, refusals = options["sync_clock"], [ConnectionError("gone")] * 3

    async def sync() -> None:
        if refusals:
            raise refusals.pop()
        await ask()

    watch.step(60)
    options["sync_clock"] = sync
    async with consuming(redis_url, inbox, on_event=events, max_deliveries=2, **options):
        await send(redis, CONTROL, command())
        await inbox.wait_for(1)
        await finished(redis)
        await unmarked(redis)
    assert "dead_letter" not in events.names()
    assert not await redis.exists(begun_key(CONTROL, GROUP))


async def test_whoever_may_not_ask_judges_by_what_is_known(
    redis: Redis, redis_url: str, watch: Watch
):
    inbox, events = Inbox(ack=True), Events()

    async def sync() -> None:
        raise NoPermissionError("no permissions to run the 'time' command")

    watch.step(60)
    options = {**watch.options(redis), "sync_clock": sync}
    async with consuming(redis_url, inbox, on_event=events, **options):
        await send(redis, CONTROL, command())
        await events.wait_for("dead_letter")
    assert events.names().count("server_clock_unknown") == 1


async def test_what_was_before_an_entry_is_never_said_to_be_after_it(redis: Redis):
    """However long the server's answer was on its way."""
    now = 1_000.0

    def slow() -> float:
        nonlocal now
        now += 30
        return now

    clock = ServerClock(slow, lambda: 0.0)
    assert clock.past_ms() is None
    seconds, _ = await redis.time()
    await clock.sync(redis)
    now -= 30  # The moment at which its answer was there.
    past = clock.past_ms()
    entry: Any = await redis.xadd(CONTROL, {"payload": b"x"})
    assert past is not None
    assert seconds * 1000 <= past <= int(entry.partition(b"-")[0])
