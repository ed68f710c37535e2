"""The server is well; the way to it isn't."""

from datetime import timedelta
from functools import partial
from pathlib import Path

import anyio
import pytest

from tests.oona.bus import (
    CONTROL,
    GROUP,
    Events,
    Inbox,
    command,
    consuming,
    finished,
    send,
    unmarked,
)
from tests.oona.faults.own_server import OwnServer
from tests.oona.faults.proxy import proxied
from tests.oona.faults.scene import PUBLISHING, READING, until
from tests.oona.faults.stage import acting
from tolaria_bus.oona.connection import connect

REPLY = timedelta(seconds=1)
"""Long enough for a loaded machine, short enough not to be waited for often."""


async def test_connections_that_are_killed_again_and_again_cost_nothing(
    own: OwnServer, tmp_path: Path
):
    """Some in the middle of being made, or just before they are written to."""
    async with acting(tmp_path, own.url) as scene:
        await scene.flows()
        with anyio.move_on_after(1.5):
            while True:
                await scene.operator.client_kill_filter(_type="normal", skipme=True)
                await anyio.sleep(0.003)
        await scene.told("reconnected", READING, *PUBLISHING)
        await scene.closes()


@pytest.mark.parametrize("replies_only", [False, True], ids=["both ways", "replies only"])
async def test_a_dead_connection_that_nobody_closes_is_noticed(
    own: OwnServer, tmp_path: Path, replies_only: bool
):
    """Where only replies are lost, the server does everything, and does it again."""
    async with (
        proxied(own.socket) as proxy,
        acting(tmp_path, own.url, url=proxy.url, reply=REPLY) as scene,
    ):
        await scene.flows()
        proxy.die(replies_only=replies_only)
        await scene.told("disconnected", READING, *PUBLISHING)
        # New connections are as dead.
        await scene.held()
        proxy.heal()
        await scene.told("reconnected", READING, *PUBLISHING)
        await scene.closes()
        errors = {told["error"] for told in scene.events.of("disconnected")}
        assert all("Timeout" in error for error in errors), errors


async def test_a_slow_way_to_the_server_slows_nothing_but_the_bus(own: OwnServer, tmp_path: Path):
    async with (
        proxied(own.socket) as proxy,
        acting(tmp_path, own.url, url=proxy.url) as scene,
    ):
        await scene.flows()
        proxy.latency = 0.05
        await scene.held()
        await scene.closes()
        assert scene.events.seen == []


async def test_a_read_that_reaches_the_server_when_its_sender_is_gone_loses_nothing(
    own: OwnServer, tmp_path: Path
):
    """What it took is pending with a consumer that doesn't know: it comes with the next sweep."""
    async with (
        proxied(own.socket) as proxy,
        acting(
            tmp_path, own.url, url=proxy.url, reply=REPLY, min_idle=timedelta(seconds=1)
        ) as scene,
    ):
        await scene.flows()
        proxy.hold_requests()
        await scene.told("disconnected", READING)
        await scene.told("reconnected", READING)
        proxy.deliver_late()
        # Whether those found something to take is up to chance; this one does.
        await scene.sender.send_to_a_read_that_is_gone("me")
        await scene.closes(in_order=False)
        assert scene.redelivered


async def test_an_entry_whose_mark_is_not_answered_is_not_taken_for_one_that_kills(
    own: OwnServer, tmp_path: Path
):
    """The mark is set again and again, and nothing was begun."""
    inbox, events = Inbox(ack=True), Events()
    async with proxied(own.socket) as proxy, connect(own.url, name="operator") as operator:
        entry_id = await send(operator, CONTROL, command())
        await operator.xgroup_create(CONTROL, GROUP, "0")
        await operator.xreadgroup(GROUP, "me", {CONTROL: ">"})
        proxy.unanswered = b"HINCRBY"
        start = partial(consuming, proxy.url, inbox, on_event=events, max_deliveries=3)
        async with start(reply=timedelta(milliseconds=300)) as running:
            await until(lambda: proxy.lost == 3, lambda: events.seen)
            proxy.unanswered = None
            (received,) = await inbox.wait_for(1)
            await finished(operator)
            await unmarked(operator)
            assert running.dead == {}
        assert received.entry_id == entry_id
