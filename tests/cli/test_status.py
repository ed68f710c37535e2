"""How a run is: judged by what was told and what the server knows, shown in 80 columns."""

from __future__ import annotations

import json
import time
from typing import Any

import pytest
from redis.asyncio import Redis

from tests.cli.conftest import Call
from tolaria_bus.cli.running_state import judge
from tolaria_bus.cli.status_asking import Seen
from tolaria_bus.cli.status_lines import page, table
from tolaria_bus.oona.streams import Streams

STREAMS = Streams()
NOW = 1_800_000_000.0


def told(**changed: Any) -> dict[str, Any]:
    """What a worker says of a run that is well, and what differs."""
    return {
        "run": "first",
        "host": "machine",
        "pid": 12,
        "job": "digits",
        "started": NOW - 100,
        "beat": NOW - 0.5,
        "beat_server": NOW - 0.5,
        "step": 1200,
        "total_steps": 9000,
        "epoch": 3,
        "epochs": 20,
        "loss": 0.123456,
        "accuracy": 0.9712,
        "learning_rate": 0.001,
        "steps_per_second": 231.4,
        "mode": "running",
        "timeline": 2,
        "quiet": 0.1,
        "quiet_limit": 20.0,
        "ended": None,
        "breakers": [
            {"name": "timing", "state": "closed", "failures": 0, "threshold": 3},
            {"name": "tamiyo", "state": "closed", "failures": 1, "threshold": 2},
            {
                "name": "kasmina",
                "state": "half_open",
                "since": 1100.0,
                "unit": "steps",
                "reason": "cooled down",
                "ends": "1 that work, or send breaker kasmina closed",
            },
        ],
        "deferred": ["c1", "c2", "c3"],
        "deferred_commands": [
            {"command_id": "c1", "command": "LEARNING_RATE", "at_step": 2000, "by": "operator/ann"},
            {"command_id": "c2", "command": "PAUSE", "at_epoch": 9, "reason": "night"},
        ],
        "seeds": [
            {"seed_id": "s1", "stage": "TRAINING", "slot": "body", "blueprint_id": "residual_conv",
             "parameters": 1234, "since_step": 900},
        ],
        "checkpoint": {"name": "step-00001100-t2-s40", "step": 1100, "written": NOW - 40},
        **changed,
    }  # fmt: skip


def seen(**changed: Any) -> Seen:
    status = told(**changed)
    state = judge(status, now=NOW, lease_held=True)
    return Seen("first", status, state, {"lag": 2, "pending": 1}, 3)


@pytest.mark.parametrize(
    ("changed", "lease", "name", "why", "bad"),
    [
        ({}, True, "running", "", False),
        ({"mode": "conservative"}, True, "conservative", "", False),
        ({"mode": "paused", "quiet": 999.0}, True, "paused", "", False),
        ({"quiet": 31.0}, True, "hung", "for 31 s (limit 20 s)", True),
        ({"beat_server": NOW - 11}, True, "silent", "for 11 s; it still has", True),
        ({"beat_server": NOW - 7200}, False, "dead", "for 2.0 h, and nobody holds", True),
        # A worker whose clock is an hour behind; and one that doesn't know the server's.
        ({"beat": NOW - 3600}, True, "running", "", False),
        ({"beat": NOW - 3600, "beat_server": None}, False, "dead", "for 60 min", True),
        ({"ended": {"how": "finished"}, "beat_server": 5}, False, "finished", "its end", False),
        ({"ended": {"how": "signal"}}, False, "stopped", "by a signal", False),
        ({"ended": {"how": "failed", "reason": "ValueError: no"}}, False, "failed", "no", True),
        ({"beat": "soon", "beat_server": "now"}, True, "unknown", "never told", False),
    ],
)
def test_a_state_is_judged_by_the_beats_age_the_lease_and_what_was_told(
    changed, lease, name, why, bad
) -> None:
    state = judge(told(**changed), now=NOW, lease_held=lease)
    assert (state.name, state.bad) == (name, bad)
    assert why in state.why


@pytest.mark.parametrize(
    ("lease", "name", "bad"), [(True, "starting", False), (False, "unknown", True)]
)
def test_a_run_that_never_told_how_it_is_is_starting_while_somebody_has_it(
    lease, name, bad
) -> None:
    state = judge({}, now=NOW, lease_held=lease)
    assert (state.name, state.bad) == (name, bad)


def test_a_page_has_all_of_it_in_80_columns() -> None:
    note = {"reason": "a test " * 20, "by": "operator/ann", "since_step": 1000, "since": NOW - 9}
    mode = {"conservative": {**note, "off": ["profiling"], "ends": "send mode normal"}}
    level = {"level": "conservative", "cause": "loss_spike", "reason": "loss 9.1", "by": "tolaria"}
    mode["emergency"] = {**level, "since_step": 1100, "falls_at_step": 1600}
    lines = list(page(seen(mode="conservative", **mode), colour=False))
    text = " ".join(" ".join(lines).split())
    assert max(map(len, lines)) <= 80
    assert lines[0] == "first CONSERVATIVE"
    for words in (
        "emergency CONSERVATIVE since step 1100 by tolaria: loss 9.1 (loss_spike)",
        "falls at step 1600 if nothing happens",
        "digits on machine, pid 12",
        "heard of 0.5 s ago",
        "step 1200/9000, epoch 3/20, timeline 2",
        "loss 0.1235, accuracy 97.12%, lr 0.001, 231 steps/s",
        "conservative since step 1000 (",
        "by operator/ann: a test a test",
        "off: profiling",
        "ends: send mode normal",
        "kasmina HALF_OPEN since step 1100: cooled down",
        "closes: 1 that work, or send breaker kasmina closed",
        "tamiyo closed, 1 of 2 failures in a row",
        "timing closed",
        "learning rate at step 2000, by operator/ann, id c1",
        "pause at epoch 9, id c2: night",
        "and 1 more",
        "s1 TRAINING in body (residual_conv, 1234 parameters), grown at step 900",
        "step-00001100-t2-s40, 40 s old",
        "2 unread, 1 in work",
        "3 (tolaria-bus dlq ls --run first)",
    ):
        assert words in text, words


def test_a_table_has_a_line_for_each_run_in_80_columns() -> None:
    lines = list(table([seen(), seen(ended={"how": "finished"})], colour=False))
    assert len(lines) == 3
    assert max(map(len, lines)) <= 80
    assert lines[1].split() == [
        "first", "running", "1200/9000", "0.1235", "97.12%", "231", "0.5", "s",
    ]  # fmt: skip
    assert "finished" in lines[2]


@pytest.mark.parametrize("junk", [None, 7, "x\x1b[2J", [], {}, [[1]], [{}], True])
def test_what_others_wrote_into_a_status_breaks_nothing(junk) -> None:
    for name in told():
        status = told(**{name: junk})
        run = Seen("first", status, judge(status, now=NOW, lease_held=True), {"lag": None}, 0)
        shown = [*page(run, colour=False), *table([run], colour=False)]
        assert all(line.isprintable() for line in shown)
        json.dumps(run.to_json())


async def test_the_server_is_asked_for_what_it_alone_knows(
    cli: Call, redis: Redis, redis_url: str
) -> None:
    here = ("--redis", redis_url)
    now = time.time()
    for run, age in (("one", 0.0), ("two", 500.0)):
        await redis.hset(STREAMS.runs, run, "{}")
        status = told(beat=now - age, beat_server=now - age, run=run)
        await redis.set(STREAMS.status(run), json.dumps(status))
    await redis.hset(STREAMS.lease("one"), "holder", "tests")
    for _ in range(3):
        await redis.xadd(STREAMS.control("one"), {"payload": b""})
    await redis.xgroup_create(STREAMS.control("one"), "tolaria", "0")
    await redis.xreadgroup("tolaria", "one", {STREAMS.control("one"): ">"}, count=1)
    await redis.xadd(STREAMS.dead("one"), {"payload": b""})

    ended = await cli("status", "one", "--json", *here)
    assert ended.code == 0, ended.err
    found = json.loads(ended.out)
    assert (found["state"], found["control"], found["dead_letters"], found["step"]) == (
        "running", {"lag": 2, "pending": 1}, 1, 1200,
    )  # fmt: skip
    ended = await cli("status", "two", *here)
    assert (ended.code, ended.lines[0].split()[:2]) == (1, ["two", "DEAD"])
    ended = await cli("status", *here)
    assert ended.code == 1
    assert [line.split()[:2] for line in ended.lines[1:]] == [["one", "running"], ["two", "dead"]]
    ended = await cli("status", "three", *here)
    assert ended.code == 2
    assert "knows no such run; known there: one, two" in ended.err
