"""A worker that is killed again and again ends with the same bits, and every command once."""

from __future__ import annotations

import os
import signal
from collections import Counter
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from redis.asyncio import Redis

from tests.worker.processes import Terminal, summary
from tolaria_bus.leyline import CommandOutcome, CommandStatus
from tolaria_bus.leyline.codec import short_name
from tolaria_bus.oona.connection import connect
from tolaria_bus.oona.opening import Opener
from tolaria_bus.oona.streams import Streams
from tolaria_bus.oona.trust import KeyRing

STREAMS = Streams()
KEYS = "k1:c2VjcmV0LXNlY3JldC1zZWNyZXQtc2VjcmV0"

STEERING = [
    ("lr", "0.003", "--at-step", "20"),
    ("seed", "germinate", "--seed-id", "s1", "--blueprint", "residual_mlp", "--at-step", "60"),
    ("optimizer", "weight_decay=0.1", "--at-step", "90"),
    ("rollback", "--lr-factor", "0.5", "--at-step", "120"),
    ("seed", "cull", "s1", "--at-step", "150"),
    ("checkpoint", "--at-step", "170"),
]


async def outcomes(redis: Redis, run: str) -> AsyncIterator[CommandOutcome]:
    """Outcomes of a run as they come, from the beginning."""
    stream, last = STREAMS.outcomes(run), "0"
    opener = Opener(KeyRing.parse(KEYS), None)
    while True:
        read: Any = await redis.xread({stream: last}, block=20_000)
        for _, entries in read or []:
            for entry_id, fields in entries:
                last = entry_id
                message = opener.open(stream, entry_id, fields).message
                assert isinstance(message, CommandOutcome)
                yield message


def steer(terminal: Terminal, run: str, url: str) -> None:
    for number, words in enumerate(STEERING):
        terminal.run(
            "send", *words, "--id", f"c{number}", "--run", run, "--redis", url, "--wait", "0"
        )


@pytest.mark.slow
async def test_killed_at_each_command_it_ends_with_the_bits_of_an_unkilled_run(
    tmp_path: Path, redis_url: str
) -> None:
    terminal = Terminal(tmp_path, {"TOLARIA_SIGNING_KEYS": KEYS})

    def words(run: str) -> tuple[str, ...]:
        return ("run", "tiny.py:Tiny", "--run", run, "--redis", redis_url, "--seed", "3",
                "--summary", f"{run}.json")  # fmt: skip

    steer(terminal, "whole", redis_url)
    terminal.run(*words("whole"))
    steer(terminal, "killed", redis_url)
    seen: Counter[tuple[str, str]] = Counter()
    async with connect(redis_url, name="tests") as plain:
        await plain.ping()
    async with Redis.from_url(redis_url, socket_timeout=120) as redis:
        stream = outcomes(redis, "killed")
        for kill_at in ("c0", "c2", "c3", "c5", None):
            with terminal.start(*words("killed")) as worker:
                if kill_at is None:
                    worker.ends(0)
                    break
                async for outcome in stream:
                    status = short_name(CommandStatus, outcome.status)
                    seen[outcome.command_id, status] += 1
                    if (outcome.command_id, status) == (kill_at, "APPLIED"):
                        break
                os.killpg(worker.popen.pid, signal.SIGKILL)
        left: Any = await redis.xrange(STREAMS.outcomes("killed"))
        assert len(left) == 2 * len(STEERING)  # DEFERRED and APPLIED, each once.
        assert await redis.xlen(STREAMS.control("killed")) == 0
        assert await redis.xlen(STREAMS.dead("killed")) == 0
    whole, killed = summary(tmp_path / "whole.json"), summary(tmp_path / "killed.json")
    assert killed["weights_sha256"] == whole["weights_sha256"]
    assert killed["steps"] == whole["steps"]
    assert killed["resumed_from"]
    assert max(seen.values()) == 1


@pytest.mark.slow
def test_a_signal_drains_and_the_run_goes_on_where_it_was(tmp_path: Path) -> None:
    terminal = Terminal(tmp_path)
    words = ("run", "tiny.py:Tiny", "--run", "d", "--epochs", "400", "--summary", "s.json")
    with Terminal(tmp_path, fresh=True).start(*words) as worker:
        worker.says("embedded server")
        terminal.run("send", "checkpoint", "--run", "d", "--wait", "120")
        worker.signal(signal.SIGTERM)
        worker.ends(0)
    first = summary(tmp_path / "s.json")
    assert first["stopped_by"] == "signal"
    with terminal.start(*words) as worker:
        worker.says("embedded server")
        terminal.run("send", "stop", "--run", "d", "--wait", "120")
        worker.ends(0)
    second = summary(tmp_path / "s.json")
    assert second["resumed_from"] == first["checkpoint"]
    assert second["steps"] >= first["steps"]


@pytest.mark.slow
def test_a_second_worker_of_the_same_run_is_refused_in_one_line(tmp_path: Path) -> None:
    terminal = Terminal(tmp_path)
    words = ("run", "tiny.py:Tiny", "--run", "two", "--epochs", "4000")
    with terminal.start(*words) as worker:
        worker.says("embedded server")
        output = terminal.run(*words, check=None)
        [line] = output.strip().splitlines()
        assert str(worker.popen.pid) in line
        worker.signal(signal.SIGINT)
        worker.ends(0)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("words", "names"),
    [
        (("--set", "lease_seconds=0"), "lease_seconds"),
        (("--set", "nonsense=1"), "nonsense"),
        (("--run", "no spaces"), "run"),
        (("--redis", "http://x"), "http://x"),
    ],
)
def test_a_bad_setting_is_one_line_and_exit_code_two(
    tmp_path: Path, words: tuple[str, ...], names: str
) -> None:
    output = Terminal(tmp_path).run("run", "tiny.py:Tiny", *words, check=2)
    [line] = output.strip().splitlines()
    assert names in line
