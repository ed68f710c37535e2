"""A worker whose senders go wrong: what they send is shown or answered, and training goes on."""

from __future__ import annotations

import os
import signal
from base64 import b64encode
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import pytest
from redis.asyncio import Redis

from tests.oona.bus import letters, send
from tests.weatherlight.streams import wait_for
from tests.worker.processes import Process, Terminal
from tolaria_bus.leyline import (
    AdaptationCommand,
    CommandLearningRate,
    CommandOutcome,
    CommandStatus,
    CommandType,
)
from tolaria_bus.leyline.codec import short_name
from tolaria_bus.oona.connection import connect
from tolaria_bus.oona.embedded import EmbeddedServer
from tolaria_bus.oona.opening import Opener
from tolaria_bus.oona.sealing import PAYLOAD, seal
from tolaria_bus.oona.streams import Streams, dead_letters_of
from tolaria_bus.oona.trust import KeyRing
from tolaria_bus.safety import SignalView

RUN = "r"
STREAMS = Streams()
CONTROL = STREAMS.control(RUN)
SECRETS = {"old": b"o" * 32, "new": b"n" * 32}
OLD, NEW = (KeyRing({name: secret}) for name, secret in SECRETS.items())
STRANGE = KeyRing({"strange": b"s" * 32})
KEYS = ",".join(f"{name}:{b64encode(secret).decode()}" for name, secret in SECRETS.items())
FLOOD = int(os.environ.get("FLOOD", "10000"))
"""Commands; ``FLOOD=50000`` takes a minute."""
TEN_MEGABYTES = 10_000_000


@dataclass
class Scene:
    """A signed worker at work, and its server."""

    worker: Process
    redis: Redis
    folder: Path

    async def answers(self, after: str = "-") -> dict[str, Counter[str]]:
        """By command: how often it was answered how, since an entry of the outcomes' stream."""
        opener = Opener(OLD, None)
        found: dict[str, Counter[str]] = {}
        stream = STREAMS.outcomes(RUN)
        entries: Any = await self.redis.xrange(stream, after)
        for entry_id, fields in entries:
            outcome = opener.open(stream, entry_id, fields).message
            assert isinstance(outcome, CommandOutcome)
            status = short_name(CommandStatus, outcome.status)
            found.setdefault(outcome.command_id, Counter())[status] += 1
        return found

    async def applied(self, name: str, ring: KeyRing = OLD) -> None:
        """Send a command as it should be, and see it applied."""
        newest: Any = await self.redis.xrevrange(STREAMS.outcomes(RUN), count=1)
        after = newest[0][0].decode() if newest else "-"
        await send(self.redis, CONTROL, rate(name), ring)

        async def look() -> bool:
            return name in await self.answers(after)

        assert await wait_for(look)
        assert (await self.answers(after))[name] == Counter(APPLIED=1)

    async def dead(self) -> list[str]:
        """Reasons of the dead letters, in their order."""
        return [letter.reason for letter in await letters(self.redis, CONTROL, OLD)]

    async def buried(self, count: int) -> list[str]:
        """As :meth:`dead`, once there are so many."""

        async def look() -> bool:
            return len(await self.dead()) >= count

        await wait_for(look)
        return await self.dead()

    def step(self) -> int:
        with SignalView(self.folder / "runs" / RUN) as view:
            view.refresh()
            return view.step


def rate(name: str) -> AdaptationCommand:
    return AdaptationCommand(
        version=1,
        command_id=name,
        command_type=CommandType.COMMAND_LEARNING_RATE,
        learning_rate=CommandLearningRate(learning_rate=0.001),
    )


@pytest.fixture(scope="module")
def worker(
    tmp_path_factory: pytest.TempPathFactory, state_home: None
) -> Iterator[tuple[Process, str, Path]]:
    folder = tmp_path_factory.mktemp("senders")
    terminal = Terminal(folder, {"TOLARIA_SIGNING_KEYS": KEYS})
    with EmbeddedServer.start(folder / "server", RUN) as server:
        words = ("worker", "tiny.py:Tiny", "--run", RUN, "--redis", server.url)
        calm = ("--set", "loss_spike_factor=1000000", "--set", "accuracy_collapse_factor=0")
        with terminal.start(*words, *calm, "--epochs", "1000000") as process:
            process.says("progress")
            yield process, server.url, folder
            process.signal(signal.SIGTERM)
            process.ends(0)


@pytest.fixture
async def scene(worker: tuple[Process, str, Path]) -> AsyncIterator[Scene]:
    process, url, folder = worker
    async with connect(url, name="tests") as redis:
        await redis.delete(dead_letters_of(CONTROL))
        yield Scene(process, redis, folder)


@pytest.mark.slow
async def test_what_another_key_signed_or_somebody_sent_again_is_a_dead_letter(
    scene: Scene,
) -> None:
    await send(scene.redis, CONTROL, rate("forged"), STRANGE)
    fields = seal(rate("once"), stream=CONTROL, source="operator/ann", ring=OLD)
    for _ in range(2):
        await scene.redis.xadd(CONTROL, fields)  # type: ignore[arg-type]
    assert await scene.buried(2) == ["signature", "replay"]
    await scene.applied("behind them")
    answers = await scene.answers()
    assert answers["once"] == Counter(APPLIED=1)
    assert "forged" not in answers


@pytest.mark.slow
async def test_keys_are_rotated_with_no_gap(scene: Scene) -> None:
    for turn in range(3):
        await scene.applied(f"old {turn}", OLD)
        await scene.applied(f"new {turn}", NEW)
    assert await scene.dead() == []


@pytest.mark.slow
async def test_ten_megabytes_are_a_dead_letter_and_cost_no_memory(scene: Scene) -> None:
    await scene.applied("before")
    memory = psutil.Process(scene.worker.popen.pid).memory_info().rss
    for _ in range(5):
        await scene.redis.xadd(CONTROL, {PAYLOAD: b"\x0a" * TEN_MEGABYTES})
    assert await scene.buried(5) == ["oversize"] * 5
    await scene.applied("after")
    grown = psutil.Process(scene.worker.popen.pid).memory_info().rss - memory
    assert grown < 10 * TEN_MEGABYTES


@pytest.mark.slow
async def test_a_sender_that_repeats_a_command_without_end_is_answered_each_time(
    scene: Scene,
) -> None:
    """One effect; training goes on; a command of another sender gets through meanwhile."""
    before = scene.step()
    pipe = scene.redis.pipeline(transaction=False)
    message = rate("again and again")
    for number in range(FLOOD):
        pipe.xadd(CONTROL, seal(message, stream=CONTROL, source="service/loop", ring=OLD))  # type: ignore[arg-type]
        if number % 1000 == 999:
            await pipe.execute()
    await scene.applied("in between", NEW)

    # However long it takes: it gets on.
    while left := await scene.redis.xlen(CONTROL):

        async def look(left: int = left) -> bool:
            return (await scene.redis.xlen(CONTROL)) < left

        assert await wait_for(look)
    assert (await scene.answers())["again and again"] == Counter(APPLIED=1, DUPLICATE=FLOOD - 1)
    assert await scene.dead() == []
    assert scene.step() > before
