"""Where the time goes: phases always, a trace when asked for; and no weight ever differs for it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.recovery.small_disk import fill, run_on_small_disk
from tests.trainer.conftest import STEPS_PER_EPOCH, Run
from tests.trainer.lives import Power
from tests.trainer.test_recovery import FailsAtOutcome
from tests.trainer.test_replay import Again, again  # noqa: F401 - a fixture
from tolaria_bus.leyline import CommandOutcome, ProfileReport, TelemetryPacket
from tolaria_bus.tolaria.control.mailbox import Delivery, RecordingOutbound
from tolaria_bus.tolaria.engine.phases import PhaseClock
from tolaria_bus.tolaria.engine.tracing import Tracing
from tolaria_bus.tolaria.recovery.profile_folder import ProfileFolder

EPOCH_PHASES = {"validation", "tamiyo", "boundary", "fence", "checkpoint"}
STEP_PHASES = {"data", "prepare", "forward", "backward", "optimizer", "loss"}


def ask(run: Run, command_id: str, steps: int, **annotations: Any) -> None:
    wanted = {"commandId": command_id, "commandType": "PROFILE", "profile": {"steps": steps}}
    run.send(json.dumps(wanted), **annotations)


def packets(run: Run) -> list[TelemetryPacket]:
    return [packet for packet, _ in run.outbound.packets]


def reports(run: Run) -> list[ProfileReport]:
    return [packet.profile for packet in packets(run) if packet.HasField("profile")]


def events(run: Run, name: str) -> list[Any]:
    return [each for packet in packets(run) for each in packet.events if each.event_id == name]


@pytest.fixture
def plain(make_run) -> str:
    """The weights of a run that nobody looks at."""
    weights: str = make_run("plain").train().weights_sha256
    return weights


def test_every_phase_of_a_run_is_timed_and_published_as_a_histogram(make_run) -> None:
    run = make_run(steps=20)
    run.train()
    points = {
        point.attributes["phase"]: point
        for packet in packets(run)
        for point in packet.metrics
        if point.name == "tolaria.phase_ms"
    }
    assert (
        STEP_PHASES | {"validation", "tamiyo", "boundary", "fence", "checkpoint"} <= points.keys()
    )
    for name in STEP_PHASES:
        histogram = points[name].histogram
        assert histogram.count >= 20
        assert sum(histogram.counts) == histogram.count
        assert histogram.max <= histogram.bounds[-1]
        assert points[name].value == pytest.approx(histogram.sum / histogram.count)


class Resumes(RecordingOutbound):
    """Somebody who lets a run go on as soon as it is paused."""

    def __init__(self, run: Run) -> None:
        super().__init__()
        self._run = run

    def outcome(self, outcome: CommandOutcome, delivery: Delivery | None) -> None:
        super().outcome(outcome, delivery)
        if outcome.command_id == "pause":
            self._run.send('{"commandId": "resume", "commandType": "RESUME"}')


def test_what_a_run_is_held_for_is_a_phase_of_its_own(make_run) -> None:
    run = make_run(steps=8)
    run.outbound = Resumes(run)
    run.send('{"commandId": "pause", "commandType": "PAUSE"}')
    run.train()
    named = {
        point.attributes["phase"]
        for packet in packets(run)
        for point in packet.metrics
        if point.name == "tolaria.phase_ms"
    }
    assert {"held", "fence"} <= named


@pytest.mark.parametrize("by", ["setting", "command"])
def test_a_trace_names_operators_memory_and_our_phases_and_changes_no_bit(
    make_run, plain: str, by: str
) -> None:
    run = make_run(profile_steps=20) if by == "setting" else make_run()
    if by == "command":
        ask(run, "p", 20, at_step=5)
    assert run.train().weights_sha256 == plain
    (report,) = reports(run)
    assert (report.steps, report.asked_steps) == (20, 20)
    assert report.command_id == ("p" if by == "command" else "")
    # One step is the warm-up.
    assert report.first_step == (6 if by == "command" else 1)
    trace = json.loads(Path(report.trace).read_text())
    assert Path(report.trace).stat().st_size == report.trace_bytes
    names = {event.get("name") for event in trace["traceEvents"]}
    assert {f"tolaria.{name}" for name in STEP_PHASES} <= names
    # An epoch ends among them.
    assert {"tolaria.validation", "tolaria.boundary", "aten::addmm", "[memory]"} <= names
    phases = {entry.name: entry for entry in report.phases}
    assert phases["forward"].calls == phases["backward"].calls == 20
    assert phases["forward"].self_ms < phases["forward"].total_ms
    operators = {entry.name: entry for entry in report.operators}
    assert operators["aten::addmm"].calls >= 40
    assert len(report.operators) <= 40
    assert report.peak_bytes > 0
    assert events(run, "profile")[0].attributes["profile"] == report.profile
    assert [path.suffix for path in Path(report.trace).parent.iterdir()] == [".json"]
    if by == "command":
        details = run.outcome("p").details
        assert details["profile"] == report.profile
        assert details["folder"] == str(Path(report.trace).parent)


def test_a_second_request_is_told_that_one_is_going_on(make_run) -> None:
    run = make_run()
    ask(run, "one", 3)
    ask(run, "two", 3)
    run.train()
    assert run.outcome("one").code == "ok"
    refused = run.outcome("two")
    assert refused.code == "busy"
    assert "of 3 steps, is being recorded" in refused.reason
    assert [report.command_id for report in reports(run)] == ["one"]


def test_conservative_mode_refuses_it_and_ends_one_that_goes_on(make_run) -> None:
    run = make_run()
    ask(run, "one", 30)
    run.send('{"commandId": "m", "commandType": "MODE", "mode": {"conservative": true}}', at_step=9)
    ask(run, "two", 3, at_step=12)
    run.train()
    assert run.outcome("two").code == "conservative"
    (report,) = reports(run)
    assert (report.steps, report.cut_short) == (8, "conservative mode began")
    assert Path(report.trace).is_file()


def test_a_trace_is_bounded_in_size_and_number(make_run) -> None:
    found = []
    for epochs in (1, 2, 3):
        run = make_run(profile_max_mb=1, profile_keep=2, epochs=epochs)
        ask(run, f"p{epochs}", 1000)
        run.train()
        found += reports(run)
    assert [report.command_id for report in found] == ["p1", "p2", "p3"]
    for report in found:
        assert 0 < report.steps < STEPS_PER_EPOCH
        assert "steps fit profile_max_mb" in report.cut_short
        assert report.trace_bytes <= 1 << 20
    kept = sorted(str(path) for path in (run.path / "profiles").iterdir())
    assert kept == sorted([found[1].trace, found[2].trace])


def test_it_goes_as_far_as_the_run_does(make_run) -> None:
    run = make_run(steps=12)
    ask(run, "p", 50, at_step=4)
    run.train()
    (report,) = reports(run)
    assert (report.first_step, report.steps, report.cut_short) == (5, 7, "the run ended")


def test_what_died_while_recording_is_told_as_lost_and_not_recorded_again(
    make_run,
    plain: str,
    tmp_path: Path,
    again: Again,  # noqa: F811
) -> None:
    run = make_run("run", profile_steps=2)
    ask(run, "p", 30, at_step=20)
    # The power goes while it records: two are put off, and this is the fourth outcome.
    run.send('{"commandId": "c", "commandType": "CONTINUE"}', at_step=25)
    run.outbound = FailsAtOutcome(Power(run.path, tmp_path / "copy"), 4)
    assert run.train().weights_sha256 == plain
    assert len(reports(run)) == 2
    copy = make_run("copy", profile_steps=2)
    assert copy.train().weights_sha256 == plain
    assert reports(copy) == []
    (lost,) = events(copy, "profile_lost")
    assert lost.attributes["command_id"] == "p"
    assert len(events(copy, "profile_skipped")) == 1
    # Nor does whoever repeats the run.
    assert again(tmp_path / "copy").run.weights_sha256 == plain
    later = make_run("copy", epochs=5, profile_steps=2)
    later.train()
    assert events(later, "profile_lost") == []
    assert [report.first_step for report in reports(later)] == [4 * STEPS_PER_EPOCH + 1]


def test_a_profiler_of_somebody_else_is_in_the_way_and_training_goes_on(
    make_run, plain: str
) -> None:
    run = make_run()
    ask(run, "p", 5)
    theirs = torch.profiler.profile()
    theirs.start()
    try:
        assert run.train().weights_sha256 == plain
    finally:
        theirs.stop()
    (report,) = reports(run)
    assert "could not begin" in report.trace_failed
    assert len(events(run, "profile_failed")) == 1


_ON_A_SMALL_DISK = """
import sys
from pathlib import Path
from tests.trainer.test_profiling import fills_the_disk
fills_the_disk(Path(sys.argv[1]))
"""


def fills_the_disk(folder: Path) -> None:
    """In a process of its own, on a disk of 80 MB."""

    def recorded() -> Tracing:
        tracing = Tracing(PhaseClock(), torch.device("cpu"))
        tracing.start()
        for _ in range(100):
            torch.ones(3).add(1)
        tracing.stop()
        return tracing

    profiles = ProfileFolder(folder, keep=2, max_bytes=1 << 20)
    profiles.begin({})
    path, _ = profiles.store("good.json", recorded().save, 1)
    assert json.loads(path.read_text())["traceEvents"]

    def with_a_full_disk(scratch: Path) -> None:
        fill(folder)
        recorded().save(scratch)

    for save, why in ((with_a_full_disk, "could not be written"), (recorded().save, "MiB free")):
        with pytest.raises((OSError, RuntimeError), match=why):
            profiles.store("bad.json", save, 1)
    assert sorted(item.name for item in profiles.path.iterdir()) == [".recording", "good.json"]


@pytest.mark.slow
def test_a_full_disk_leaves_no_half_a_trace(tmp_path: Path) -> None:
    run_on_small_disk(_ON_A_SMALL_DISK, tmp_path / "disk", size="80m")


def test_a_mark_that_was_torn_is_a_mark(tmp_path: Path) -> None:
    profiles = ProfileFolder(tmp_path, keep=2, max_bytes=1 << 20)
    assert profiles.left_over() is None
    profiles.begin({"profile": "p"})
    (profiles.path / ".saving.tmp").write_text("half")
    (profiles.path / ".recording").write_text('{"pro')
    assert profiles.left_over() == {}
    assert profiles.left_over() is None
    assert list(profiles.path.iterdir()) == []


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
def test_on_cuda_the_device_is_timed_by_its_own_events_and_its_kernels_are_traced(
    make_run,
) -> None:
    run = make_run()
    run.settings = run.settings.model_copy(update={"device": "cuda"})
    ask(run, "p", 5, at_step=5)
    run.train()
    clocks = {
        (point.attributes["phase"], point.attributes["clock"])
        for packet in packets(run)
        for point in packet.metrics
        if point.name == "tolaria.phase_ms"
    }
    assert {("forward", "host"), ("forward", "device"), ("backward", "device")} <= clocks
    (report,) = reports(run)
    assert sum(entry.device_ms for entry in report.operators) > 0
