"""The server is well; the worker takes longer with its commands than a claim holds."""

from datetime import timedelta
from functools import partial
from pathlib import Path

import anyio
from redis.asyncio import Redis

from tests.oona.bus import Inbox, command, consuming, finished, send, until
from tests.oona.faults.own_server import OwnServer
from tests.oona.faults.stage import acting
from tolaria_bus.oona.consumer import Received

CLAIM = timedelta(milliseconds=250)
LONG = 4 * CLAIM.total_seconds()
MOST = 8


class Slow:
    """Takes commands on at once and is done with each only much later."""

    def __init__(self, tasks: anyio.abc.TaskGroup, *, seconds: float = LONG) -> None:
        self.taken: list[Received] = []
        self.at_work = 0
        self.most_at_work = 0
        self._tasks = tasks
        self._seconds = seconds

    async def __call__(self, received: Received) -> None:
        self.taken.append(received)
        self._tasks.start_soon(self._work, received)

    async def _work(self, received: Received) -> None:
        self.at_work += 1
        self.most_at_work = max(self.most_at_work, self.at_work)
        await anyio.sleep(self._seconds)
        await received.ack()
        self.at_work -= 1


async def test_a_slow_consumer_keeps_what_it_has_and_takes_no_more_than_it_may(
    redis: Redis, redis_url: str
):
    """All is handled once, though it takes three rounds of four leases each."""
    names = [str(n) for n in range(3 * MOST)]
    for name in names:
        await send(redis, "oona:{r}:control", command(name))
    async with anyio.create_task_group() as tasks:
        slow = Slow(tasks)
        async with consuming(redis_url, slow, max_in_flight=MOST, min_idle=CLAIM) as running:
            await until(lambda: len(slow.taken) == len(names))
            await finished(redis)
            # The server knows first.
            await until(lambda: len(running.in_flight) == 0)
    assert [received.opened.message.command_id for received in slow.taken] == names  # type: ignore[attr-defined]
    assert {received.deliveries for received in slow.taken} == {1}
    assert slow.most_at_work == MOST


async def test_what_a_slow_consumer_has_no_hands_for_goes_to_another(redis: Redis, redis_url: str):
    """Its claims, which a rival looks at, are long enough for a busy machine to renew in time."""
    claim = timedelta(seconds=1)
    names = [str(n) for n in range(3 * MOST)]
    for name in names:
        await send(redis, "oona:{r}:control", command(name))
    async with anyio.create_task_group() as tasks:
        slow, quick = Slow(tasks, seconds=2.5), Inbox(ack=True)
        start = partial(consuming, redis_url, max_in_flight=MOST, min_idle=claim)
        async with start(slow, "slow"):
            await until(lambda: len(slow.taken) == MOST)
            async with start(quick, "quick"):
                await quick.wait_for(2 * MOST)
                await finished(redis)
    assert len(slow.taken) == MOST
    assert quick.ids() == names[MOST:]
    assert not any(received.redelivered for received in quick.received)


async def test_a_handler_that_stands_still_is_given_nothing_twice_and_misses_nothing(
    own: OwnServer, tmp_path: Path
):
    async def stand_still(command_id: str) -> None:
        if command_id == "c20":
            await anyio.sleep(LONG)

    async with acting(tmp_path, own.url, on_command=stand_still, min_idle=CLAIM) as scene:
        await scene.flows()
        await scene.closes()
        assert scene.redelivered == []
        assert scene.events.seen == []
