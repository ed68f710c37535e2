"""From a bad entry to its effect, with a real worker: dead letter, shown, mended, replayed."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import anyio
import orjson
import pytest
from redis.asyncio import Redis

from tests.worker.processes import JOB, Process, Terminal
from tolaria_bus.leyline import AdaptationCommand, CommandOutcome, CommandStatus
from tolaria_bus.leyline.codec import from_json, short_name
from tolaria_bus.oona.by_hand import derived_id
from tolaria_bus.oona.dead_letters import begun_key
from tolaria_bus.oona.opening import Opener
from tolaria_bus.oona.sealing import seal
from tolaria_bus.oona.streams import Streams
from tolaria_bus.oona.trust import KeyRing

STREAMS = Streams()
RUN = "d"
CONTROL, DEAD = STREAMS.control(RUN), STREAMS.dead(RUN)
KEYS = "k1:c2VjcmV0LXNlY3JldC1zZWNyZXQtc2VjcmV0"
RING = KeyRing.parse(KEYS)
LR = '{"commandId": "c1", "commandType": "LEARNING_RATE", "learningRate": {"factor": 0.5}}'
SECONDS = 60.0  # much longer than anything takes that works

FUSED = JOB.replace(
    "    def loss",
    '''    def optimizer(self, params):
        import os, pathlib

        class Fuse(dict):
            """Ends the process when its weight decay is to be 0.2, as long as there is a file."""

            def update(self, *args, **values):
                wanted = dict(*args, **values).get("weight_decay")
                if wanted == 0.2 and pathlib.Path("armed").exists():
                    os._exit(9)
                super().update(*args, **values)

        return torch.optim.AdamW([Fuse(params=list(params), lr=0.01)])

    def loss''',
)


class Beside:
    """A second terminal of the run, and what the server has."""

    def __init__(self, terminal: Terminal, redis: Redis, url: str, ring: KeyRing) -> None:
        self._terminal = terminal
        self._redis = redis
        self._where = ("--redis", url, "--run", RUN)
        self._ring = ring
        self._read = "0"

    async def call(self, *words: str, check: int = 0) -> str:
        return await anyio.to_thread.run_sync(
            lambda: self._terminal.run(*words, *self._where, check=check)
        )

    async def letters(self, *words: str, count: int = 1) -> list[dict[str, Any]]:
        """What ``dlq ls`` lists, once there are so many."""
        with anyio.fail_after(SECONDS):
            while await self._redis.xlen(DEAD) < count:  # noqa: ASYNC110 - nobody tells of it
                await anyio.sleep(0.05)
        lines = (await self.call("dlq", "ls", "--json", *words)).splitlines()
        return [orjson.loads(line) for line in lines]

    async def outcome(self) -> CommandOutcome:
        """The next one."""
        read: Any = await self._redis.xread(
            {STREAMS.outcomes(RUN): self._read}, count=1, block=int(SECONDS * 1000)
        )
        assert read, "no outcome"
        ((_, ((entry_id, fields),)),) = read
        self._read = entry_id
        message = Opener(self._ring, None).open(STREAMS.outcomes(RUN), entry_id, fields).message
        assert isinstance(message, CommandOutcome)
        return message

    async def next_is(self, command_id: str, status: str) -> CommandOutcome:
        outcome = await self.outcome()
        assert (outcome.command_id, short_name(CommandStatus, outcome.status)) == (
            command_id,
            status,
        ), outcome
        return outcome

    async def finished(self) -> None:
        """Wait until no entry of the control stream is left."""
        with anyio.fail_after(SECONDS):
            while await self._redis.xlen(CONTROL):  # noqa: ASYNC110 - nobody tells of it
                await anyio.sleep(0.05)


@pytest.fixture
async def patient(redis_url: str) -> Any:
    """A client that may wait for a worker."""
    async with Redis.from_url(redis_url, socket_timeout=2 * SECONDS) as client:
        yield client


def start(terminal: Terminal, url: str) -> Any:
    words = ("run", "tiny.py:Tiny", "--run", RUN, "--redis", url, "--epochs", "100000")
    return terminal.start(*words)


def late(ring: KeyRing, message: AdaptationCommand) -> Any:
    """An entry that was an hour on its way."""
    hour = 3_600_000_000_000
    return seal(
        message, stream=CONTROL, source="test", ring=ring, clock=lambda: time.time_ns() - hour
    )


@pytest.mark.slow
async def test_rubbish_is_shown_mended_replayed_and_applied_once(
    tmp_path: Path, patient: Redis, redis_url: str
) -> None:
    terminal = Terminal(tmp_path)
    beside = Beside(terminal, patient, redis_url, KeyRing())
    entry: Any = await patient.xadd(CONTROL, {"json": '{"commandType": "PAUZE"}'})
    command_id = derived_id(CONTROL, entry.decode())
    with start(terminal, redis_url):
        (letter,) = await beside.letters("--where", "reason=malformed")
        assert "did you mean" in letter["detail"] or "PAUZE" in letter["detail"]
        shown = await beside.call("dlq", "show", letter["id"])
        assert '{"commandType": "PAUZE"}' in shown
        mended = ("dlq", "replay", letter["id"], "--json", '{"commandType": "PAUSE"}')
        await beside.call(*mended, "--dry-run")
        assert await patient.xlen(DEAD) == 1
        await beside.call(*mended)
        await beside.next_is(command_id, "APPLIED")
        # The run is paused; steering goes on.
        command = from_json(LR, AdaptationCommand)
        await patient.xadd(CONTROL, {"json": LR})
        applied = await beside.next_is("c1", "APPLIED")
        await patient.xadd(CONTROL, late(KeyRing(), command))
        (letter,) = await beside.letters()
        assert letter["reason"] == "stale"
        await beside.call("dlq", "replay", "--where", "reason=stale")
        duplicate = await beside.next_is("c1", "DUPLICATE")
        assert duplicate.first_outcome.step == applied.step
        await beside.finished()
        assert await patient.xlen(DEAD) == 0
        log: Any = await patient.xrange(STREAMS.telemetry(RUN))
        assert sum(b"dead_letters_replayed" in fields[b"payload"] for _, fields in log) == 2


@pytest.mark.slow
async def test_a_forged_entry_stays_dead(tmp_path: Path, patient: Redis, redis_url: str) -> None:
    terminal = Terminal(tmp_path, {"TOLARIA_SIGNING_KEYS": KEYS})
    beside = Beside(terminal, patient, redis_url, RING)
    await patient.xadd(CONTROL, {"json": '{"commandType": "STOP"}'})
    with start(terminal, redis_url):
        (letter,) = await beside.letters()
        assert letter["reason"] == "signature"
        refused = await beside.call("dlq", "replay", "--all", check=1)
        assert "unbelieved" in refused
        assert await patient.xlen(CONTROL) == 0
        await beside.call("dlq", "purge", "--all", "--yes")
        assert await patient.xlen(DEAD) == 0
        await beside.call("send", "lr", "0.003", "--id", "c1")
        await beside.next_is("c1", "APPLIED")


@pytest.mark.slow
@pytest.mark.parametrize("put_off", [False, True])
async def test_a_command_that_was_given_up_is_replayed_once_its_cause_is_mended(
    tmp_path: Path, patient: Redis, redis_url: str, put_off: bool
) -> None:
    terminal = Terminal(tmp_path, {"TOLARIA_SIGNING_KEYS": KEYS})
    (tmp_path / "tiny.py").write_text(FUSED)
    (tmp_path / "armed").touch()
    beside = Beside(terminal, patient, redis_url, RING)
    later = ("--at-step", "5", "--late-ok") if put_off else ()
    await beside.call("send", "optimizer", "weight_decay=0.2", "--id", "x", "--wait", "0", *later)
    for _ in range(3):
        with start(terminal, redis_url) as worker:
            await ends(worker, 9)
    if put_off:
        await beside.next_is("x", "DEFERRED")
    with start(terminal, redis_url):
        given_up = await beside.next_is("x", "REJECTED")
        assert given_up.code == "fatal"
        (letter,) = await beside.letters()
        assert (letter["reason"], letter["commandId"]) == ("fatal", "x")
        assert "distrust" not in letter
        await beside.finished()
        (tmp_path / "armed").unlink()
        await beside.call("dlq", "replay", letter["id"])
        await beside.next_is("x", "APPLIED")
        await beside.finished()
        assert await patient.xlen(DEAD) == 0


@pytest.mark.slow
async def test_an_entry_beside_a_command_that_kills_isnt_taken_for_the_killer(
    tmp_path: Path, patient: Redis, redis_url: str
) -> None:
    terminal = Terminal(tmp_path, {"TOLARIA_SIGNING_KEYS": KEYS})
    (tmp_path / "tiny.py").write_text(FUSED)
    (tmp_path / "armed").touch()
    beside = Beside(terminal, patient, redis_url, RING)
    await beside.call("send", "optimizer", "weight_decay=0.2", "--id", "x", "--wait", "0")
    with start(terminal, redis_url) as worker:
        await ends(worker, 9)
    # As if it had been about to be handed over each time that the other one killed.
    innocent = from_json(LR, AdaptationCommand)
    entry: Any = await patient.xadd(
        CONTROL,
        seal(innocent, stream=CONTROL, source="test", ring=RING),  # type: ignore[arg-type]
    )
    await patient.xreadgroup("tolaria", RUN, {CONTROL: ">"})
    await patient.hset(begun_key(CONTROL, "tolaria"), entry.decode(), "2")
    (tmp_path / "armed").unlink()
    with start(terminal, redis_url):
        await beside.next_is("x", "APPLIED")
        await beside.next_is("c1", "APPLIED")
        await beside.finished()
        assert await patient.xlen(DEAD) == 0


async def ends(worker: Process, code: int) -> None:
    await anyio.to_thread.run_sync(worker.ends, code)
