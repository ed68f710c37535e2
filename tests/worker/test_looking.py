"""Looking at a run from a second terminal: how it is, and where its time goes."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import anyio
import pytest
from redis.asyncio import Redis

from tests.worker.processes import Terminal
from tolaria_bus.oona.streams import Streams

STREAMS = Streams()


def said(terminal: Terminal, *words: str, check: int = 0) -> dict[str, Any]:
    """What a command printed as JSON, without its warnings."""
    text = terminal.run(*words, check=check)
    (line,) = [line for line in text.splitlines() if line.startswith("{")]
    found: dict[str, Any] = json.loads(line)
    return found


@pytest.mark.slow
def test_where_the_time_goes_is_asked_of_a_run_and_comes_over_the_bus(tmp_path: Path) -> None:
    one = Terminal(tmp_path)
    run = ("run", "tiny.py:Tiny", "--run", "first", "--epochs", "1000000")
    with one.start(*run, "--profile", "3") as worker:
        worker.says("embedded server")
        worker.says("compile off (not asked for)")
        # A command that comes before the run listens waits for it.
        pruned = one.run("send", "prune", "0", "0.25", "impact=1e6", "--wait", "120")
        assert "APPLIED structural pruning" in pruned
        assert "channels_removed=2" in pruned
        found = said(one, "profile", "first", "--steps", "4", "--trace", "trace.json", "--json")
        assert (found["run"], found["steps"], found["askedSteps"]) == ("first", 4, 4)
        phases = {entry["name"] for entry in found["phases"]}
        assert {"data", "forward", "backward", "optimizer"} <= phases
        assert any(entry["name"] == "aten::addmm" for entry in found["operators"])
        trace = (tmp_path / "trace.json").read_bytes()
        assert trace == Path(found["trace"]).read_bytes()
        names = {event.get("name") for event in json.loads(trace)["traceEvents"]}
        assert {"tolaria.forward", "[memory]"} <= names
        # That of the start, and this one.
        assert len(list((tmp_path / "runs/first/profiles").glob("*.json"))) == 2

        one.run("send", "pause")
        held = one.run("profile", "--steps", "2", "--wait", "1", check=4)
        assert "a held run makes no steps" in held
        assert "is being recorded" in one.run("profile", "--steps", "2", check=3)
        one.run("send", "stop")
        worker.ends(0)


async def until_status(redis: Redis, holds: Callable[[dict[str, Any]], object]) -> dict[str, Any]:
    """The status of the run ``first``, once it is as it should be."""
    with anyio.fail_after(180):
        while True:
            found: Any = await redis.get(STREAMS.status("first"))
            status: dict[str, Any] = json.loads(found) if found else {}
            if status and holds(status):
                return status
            # A key can't be awaited; the worker writes it each second.
            await anyio.sleep(0.05)


async def by_hand(redis: Redis, *commands: dict[str, Any]) -> None:
    for command in commands:
        await redis.xadd(STREAMS.control("first"), {"json": json.dumps(command)})


@pytest.mark.slow
async def test_a_status_has_what_is_open_held_waiting_and_growing_until_the_worker_dies(
    tmp_path: Path, redis: Redis, redis_url: str
) -> None:
    one = Terminal(tmp_path, {"TOLARIA_REDIS_URL": redis_url})
    with one.start("run", "tiny.py:Tiny", "--run", "first", "--epochs", "1000000") as worker:
        await by_hand(
            redis,
            {
                "commandType": "SEED",
                "targetSeedId": "s1",
                "seedOperation": {"operation": "GERMINATE", "blueprintId": "residual_mlp"},
            },
            {
                "commandType": "CIRCUIT_BREAKER",
                "circuitBreaker": {
                    "breaker": "kasmina",
                    "desiredState": "OPEN",
                    "rationale": "not here",
                },
            },
            {
                "commandType": "MODE",
                "mode": {"conservative": True},
                "issuedBy": "ann",
                "annotations": {"reason": "a test"},
            },
            {
                "commandId": "later",
                "commandType": "CONTINUE",
                "annotations": {"at_step": "90000000"},
            },
            {"commandType": "PAUSE", "annotations": {"reason": "lunch"}},
        )
        status = await until_status(redis, lambda told: told.get("held"))
        assert status["held"]["reason"] == "lunch"
        # A pause since then has not taken its place.
        assert status["conservative"]["reason"] == "a test"
        assert status["conservative"]["by"] == "ann"
        assert [seed["seed_id"] for seed in status["seeds"]] == ["s1"]
        (kasmina,) = [each for each in status["breakers"] if each["name"] == "kasmina"]
        assert (kasmina["state"], kasmina["reason"]) == ("open", "not here")
        assert status["checkpoint"]["name"].startswith("step-")
        assert status["deferred"] == ["later"]
        page = await anyio.to_thread.run_sync(lambda: one.run("status", "first"))
        for words in ("first PAUSED", "lunch", "a test", "kasmina OPEN", "later", "s1 GERMINATED"):
            assert words in page, page
        await by_hand(redis, {"commandType": "STOP"})
        await anyio.to_thread.run_sync(worker.ends)
    status = await until_status(redis, lambda told: told["ended"])
    assert status["ended"]["how"] == "command"
