"""Where the time goes, in tables of 80 columns; and what becomes of a request."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import anyio
import pytest
from google.protobuf.message import Message

from tests.cli.answering import outcome, worker
from tests.cli.conftest import Call
from tolaria_bus.cli.profile_lines import percentile, phases_table, report_json, report_table
from tolaria_bus.leyline import (
    AdaptationCommand,
    Histogram,
    MetricPoint,
    ProfileEntry,
    ProfileReport,
    TelemetryPacket,
)


def report(**changed: Any) -> ProfileReport:
    made = ProfileReport(
        profile="s4-t1",
        first_step=5,
        steps=4,
        asked_steps=10,
        milliseconds=40.0,
        phases=[
            ProfileEntry(name="forward", calls=4, total_ms=10.0, self_ms=1.0),
            ProfileEntry(name="backward", calls=4, total_ms=24.0, self_ms=2.0),
        ],
        operators=[
            ProfileEntry(
                name="autograd::engine::evaluate_function: " + "X" * 50,
                calls=12,
                total_ms=9.0,
                self_ms=8.0,
                self_bytes=8_000_000,
            ),
            ProfileEntry(name="aten::mm", calls=4, self_ms=0.02, self_bytes=-4096),
        ],
        other_self_ms=2.0,
        peak_bytes=12_300_000,
        device="cpu",
        host="far-away",
        trace="/runs/first/profiles/s4-t1.json",
        trace_bytes=1_500_000,
        cut_short="the run ended",
    )
    made.MergeFrom(ProfileReport(**changed))
    return made


def test_a_report_is_a_table_of_milliseconds_for_each_step() -> None:
    lines = list(report_table(report(), colour=False))
    assert max(map(len, lines)) <= 80
    rows = [line.split() for line in lines]
    assert rows[0][:7] == ["4", "steps", "from", "step", "5", "on,", "10"]
    assert lines[1] == "not all that were asked for: the run ended"
    assert rows[3] == ["backward", "60.0%", "6", "0.500"]
    assert rows[4] == ["forward", "25.0%", "2.5", "0.250"]
    assert rows[6][-4:] == ["3", "2", "2", "MB"]
    assert rows[7] == ["aten::mm", "1", "0.005", "-1.02", "kB"]
    assert rows[8] == ["and", "others", "0.500"]
    assert lines[9] == "memory: at most 12.3 MB above the beginning"
    assert lines[10].startswith("trace: /runs/first/profiles/s4-t1.json (1.5 MB)")


def test_a_report_without_a_trace_says_why() -> None:
    failed = ProfileReport(trace_failed="the disk is full")
    assert list(report_table(failed, colour=False))[-1] == "no trace: the disk is full"
    assert json.loads(report_json("first", failed)) == {
        "run": "first",
        "traceFailed": "the disk is full",
    }


def test_what_is_told_all_the_time_is_a_table_of_shares() -> None:
    def point(phase: str, clock: str, *counts: int) -> MetricPoint:
        bounds = [float(2**place) for place in range(len(counts))]
        total = float(sum(counts)) * 2
        return MetricPoint(
            name="tolaria.phase_ms",
            value=2.0,
            attributes={"phase": phase, "clock": clock},
            histogram=Histogram(
                count=sum(counts), sum=total, max=3.5, bounds=bounds, counts=counts
            ),
        )

    points = [
        point("data", "host", 10, 0, 0),
        point("forward", "host", 0, 89, 1),
        point("forward", "device", 5),
    ]
    packet = TelemetryPacket(training_run_id="first", global_step=90, metrics=points)
    lines = list(phases_table(packet, colour=False))
    assert max(map(len, lines)) <= 80
    assert lines[0] == "first phases of 0.2 s up to step 90"
    assert lines[2].split() == [
        "forward", "90.0%", "0.18", "s", "90", "2", "2", "3.5", "3.5",
    ]  # fmt: skip
    assert lines[3].split()[:2] == ["data", "10.0%"]
    assert lines[4] == "on the device, of one step in 16:"
    assert lines[5].split()[:3] == ["forward", "0.01", "s"]


@pytest.mark.parametrize(("share", "value"), [(0.0, 1.0), (0.5, 1.0), (0.51, 2.0), (1.0, 3.5)])
def test_a_percentile_is_the_end_of_its_bucket_and_never_over_the_largest(share, value) -> None:
    told = Histogram(count=10, max=3.5, bounds=[1.0, 2.0, 4.0], counts=[5, 4, 1])
    assert percentile(told, share) == value
    assert percentile(Histogram(), share) == 0.0


async def test_a_refusal_and_a_trace_that_is_elsewhere_have_exit_codes_of_their_own(
    cli: Call, redis_url: str, tmp_path: Path
) -> None:
    trace = tmp_path / "there.json"
    trace.write_text("{}")

    def answers(command: AdaptationCommand) -> Sequence[Message]:
        if command.profile.steps == 1:
            return [outcome(command, "REJECTED", code="busy")]
        path = str(trace) if command.profile.steps == 2 else "/nowhere/s4.json"
        told = report(command_id=command.command_id, trace=path, trace_bytes=2)
        other = report(command_id="of-another", trace_failed="not mine")
        return [
            TelemetryPacket(profile=other),
            outcome(command),
            TelemetryPacket(profile=told),
        ]

    async with worker(redis_url, answers=answers):
        here = ("--redis", redis_url, "--trace", "copy.json")
        ended = await cli("profile", "first", "--steps", "1", *here)
        assert (ended.code, ended.out) == (3, "")
        assert "REJECTED profile busy" in ended.err
        ended = await cli("profile", "first", "--steps", "2", "--json", *here)
        assert (ended.code, ended.err) == (0, "")
        assert json.loads(ended.out)["operators"][1]["name"] == "aten::mm"
        assert await anyio.Path("copy.json").read_text() == "{}"
        ended = await cli("profile", "first", "--steps", "3", *here)
        assert ended.code == 1
        assert "the trace is on far-away, at /nowhere/s4.json" in ended.err
        assert "aten::mm" in ended.out
    ended = await cli("profile", "first", "--phases", "--redis", redis_url)
    assert ended.code == 2
    assert "nothing is known of its phases yet" in ended.err
    ended = await cli("profile", "first", "--phases", *here)
    assert ended.code == 2
    ended = await cli("profile", "first", "--redis", redis_url, "--wait", "0.2")
    assert (ended.code, ended.out) == (4, "")
    assert "it has not answered" in ended.err
