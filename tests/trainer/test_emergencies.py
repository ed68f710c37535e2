"""A run's level: raised and lowered by what happens, told once, the same after any death."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import pytest

from tests.trainer.conftest import STEPS_PER_EPOCH, Moons, Run
from tests.trainer.lives import Poisoned, Power
from tests.trainer.test_commands import GERMINATE, LR, PAUSE, RESUME
from tests.trainer.test_died_on_the_way import Died
from tests.trainer.test_recovery import Explodes
from tests.trainer.test_rollback import AlwaysBad
from tolaria_bus.leyline import (
    AdaptationCommand,
    CommandStatus,
    EmergencyLevel,
    EmergencySignal,
    JournalRecord,
)
from tolaria_bus.leyline.codec import encode, from_json, short_name
from tolaria_bus.safety.emergency_signal import checksum
from tolaria_bus.tolaria.control.mailbox import Delivery, RecordingOutbound
from tolaria_bus.tolaria.recovery.journal import Journal, JournalUnwritable, read_records

EMERGENCY = """{"commandId": "%s", "commandType": "EMERGENCY", "emergency": {"level": "%s"},
    "annotations": {"reason": "smoke"}}"""
HALT = EmergencyLevel.EMERGENCY_LEVEL_HALT


def told(run: Run) -> list[str]:
    return [short_name(EmergencyLevel, signal.level).lower() for signal in run.outbound.signals]


def eased(run: Run) -> list[tuple[int, str]]:
    return [
        (packet.global_step, event.attributes["level"])
        for packet, _ in run.outbound.packets
        for event in packet.events
        if event.event_id == "emergency_eased" and not packet.replayed
    ]


def test_a_rollback_elevates_and_a_second_one_is_conservative(make_run) -> None:
    run = make_run(job=Explodes(times=3), epochs=8, rollback_limit=9, emergency_clean_steps=1000)
    run.send(GERMINATE, at_step=4 * STEPS_PER_EPOCH)
    summary = run.train()
    assert told(run) == ["elevated", "conservative"]
    assert summary.mode == "conservative"
    assert run.outcome("g").code == "conservative"
    for signal in run.outbound.signals:
        assert signal.payload_checksum == checksum(signal)
        assert signal.attributes["cause"] == "loss_not_finite"
        assert signal.attributes["scope"] == "self"


def test_clean_stretches_lower_it_step_by_step_and_leave_conservative_mode(make_run) -> None:
    run = make_run(epochs=4, emergency_clean_steps=10)
    run.send(EMERGENCY % ("e", "CONSERVATIVE"), at_step=5)
    run.send(GERMINATE, at_step=14)
    run.send(GERMINATE.replace('"g"', '"g2"'), at_step=16)
    summary = run.train()
    assert eased(run) == [(15, "elevated"), (25, "notice"), (35, "none")]
    assert run.outcome("g").code == "conservative"
    assert run.outcome("g2").code == "ok"
    assert summary.mode == "running"


def test_conservative_mode_that_somebody_asked_for_is_not_left_with_the_emergency(make_run) -> None:
    run = make_run(epochs=4, emergency_clean_steps=10)
    run.send('{"commandId": "m", "commandType": "MODE", "mode": {"conservative": true}}')
    run.send(EMERGENCY % ("e", "CONSERVATIVE"), at_step=5)
    assert run.train().mode == "conservative"


def test_a_halt_is_not_lowered_by_time_and_a_resume_leaves_it_conservative(make_run) -> None:
    run = make_run(epochs=4, emergency_clean_steps=1)

    class Resumes(RecordingOutbound):
        def outcome(self, outcome: Any, delivery: Any) -> None:
            super().outcome(outcome, delivery)
            if outcome.command_id == "h" and outcome.code == "ok":
                run.send(EMERGENCY % ("n", "NOTICE"))
                run.send(RESUME)

    run.outbound = Resumes()
    run.send(EMERGENCY % ("h", "HALT"), at_step=5)
    summary = run.train()
    assert run.outcome("h").details["at"] == "halt"
    assert run.outcome("h").details["checkpoint"].startswith("step-00000005")
    assert run.outcome("h").details["checkpoint_step"] == 5
    assert run.outcome("n").details["at"] == "halt"
    assert run.outcome("r").details["mode"] == "conservative"
    assert eased(run) == [(6, "elevated"), (7, "notice"), (8, "none")]
    assert summary.mode == "running"


class StopsAtHalt(RecordingOutbound):
    """Ends the process in good order once the run has told of a HALT."""

    def __init__(self, run: Run) -> None:
        super().__init__()
        self.run = run

    def emergency(self, signal: EmergencySignal) -> None:
        super().emergency(signal)
        if signal.level == HALT:
            self.run.mailbox.request_stop("signal")


def halted(run: Run) -> list[dict[str, str]]:
    return [
        dict(event.attributes)
        for packet in run.outbound.alerts()
        for event in packet.events
        if event.event_id == "halted"
    ]


def test_a_halt_from_inside_is_durable_says_its_step_and_survives_restarts(make_run) -> None:
    options: dict[str, Any] = {"rollback_limit": 2, "snapshot_every_steps": 8}
    run = make_run(job=AlwaysBad(), **options)
    run.outbound = StopsAtHalt(run)
    summary = run.train()
    assert (summary.mode, told(run)) == ("halted", ["elevated", "halt"])
    (alert,) = halted(run)
    assert alert["checkpoint_step"] == str(summary.steps) == "16"
    assert (run.path / "checkpoints" / alert["checkpoint"]).is_dir()
    again = make_run(job=Moons(), **options)
    again.mailbox.request_stop("signal")
    still = again.train()
    assert (still.mode, still.steps, told(again), halted(again)) == ("halted", 16, [], [])
    freed = make_run(job=Moons(), **options)
    freed.send(RESUME)
    assert freed.train().stopped_by == "finished"


class Dies(RecordingOutbound):
    """The process dies when it sends its nth signal: before that is safe, or after."""

    def __init__(self, nth: int, *, said: bool) -> None:
        super().__init__()
        self.left, self.said = nth, said

    def emergency(self, signal: EmergencySignal) -> None:
        self.left -= 1
        if self.left or self.said:
            super().emergency(signal)
        if not self.left:
            raise Died


def ids(*runs: Run) -> list[str]:
    return [signal.attributes["signal_id"] for run in runs for signal in run.outbound.signals]


@pytest.mark.parametrize("nth", [1, 2, 3])
@pytest.mark.parametrize("said", [False, True])
def test_a_process_that_dies_at_its_own_signal_comes_to_the_same_one_again(
    make_run, nth: int, said: bool
) -> None:
    options: dict[str, Any] = {"job": Poisoned(), "epochs": 8, "rollback_limit": 3}
    whole = make_run("whole", **options)
    whole.outbound = StopsAtHalt(whole)
    end = whole.train()
    assert told(whole) == ["elevated", "conservative", "halt"]
    run = make_run("run", **options)
    run.outbound = Dies(nth, said=said)
    with pytest.raises(Died):
        run.train()
    again = make_run("run", **options)
    again.outbound = StopsAtHalt(again)
    summary = again.train()
    assert set(ids(run, again)) == set(ids(whole))
    assert len(ids(run, again)) == 3 + said
    assert (summary.mode, summary.weights_sha256) == ("halted", end.weights_sha256)


class Copies(RecordingOutbound):
    """Copies the run's folder when the level has fallen: what a disk holds at that moment."""

    def __init__(self, run: Run, copy: Path, nth: int) -> None:
        super().__init__()
        self.run, self.copy, self.left = run, copy, nth

    def telemetry(self, packet: Any, priority: Any) -> None:
        super().telemetry(packet, priority)
        if any(event.event_id == "emergency_eased" for event in packet.events):
            self.left -= 1
            if self.left == 0:
                Power(self.run.path, self.copy).fails()


@pytest.mark.parametrize("nth", [1, 2, 3])
def test_power_lost_where_a_level_falls_ends_in_the_same_bits_and_decides_nothing_again(
    make_run, tmp_path: Path, nth: int
) -> None:
    options: dict[str, Any] = {"epochs": 4, "emergency_clean_steps": 7}
    run = make_run("run", **options)
    run.outbound = Copies(run, tmp_path / "copy", nth)
    run.send(EMERGENCY % ("e", "CONSERVATIVE"), at_step=5)
    run.send(GERMINATE, at_step=13)
    whole = run.train()
    again = make_run("copy", **options)
    summary = again.train()
    assert summary.weights_sha256 == whole.weights_sha256
    assert len(eased(again)) == 3 - nth
    decisions = [item for item in read_records(again.path) if item.HasField("decision")]
    assert [item.step for item in decisions] == [12, 19, 26]


def test_a_higher_level_is_published_more_often_and_in_each_packet(make_run) -> None:
    run = make_run(epochs=2, emergency_clean_steps=10)
    run.send(EMERGENCY % ("e", "ELEVATED"), at_step=5)
    run.train()
    levels = {
        packet.global_step: metric.value
        for packet, _ in run.outbound.packets
        for metric in packet.metrics
        if metric.name == "tolaria.emergency.level"
    }
    assert levels == dict.fromkeys(range(6, 16), 2.0) | dict.fromkeys(range(16, 26), 1.0)


SIGNAL = EMERGENCY.replace('"%s", "commandType"', '"signal:%s", "commandType"')


def answers(run: Run) -> dict[str, tuple[str, str]]:
    return {
        item.command_id: (short_name(CommandStatus, item.status), item.code)
        for item in run.outbound.outcomes
    }


def test_a_resume_cancels_every_signal_of_an_earlier_entry_in_a_later_life_too(make_run) -> None:
    run = make_run(steps=5)
    run.send(RESUME, entry="500-0")
    run.send(SIGNAL % ("before", "HALT"), entry="499-9")
    run.train()
    # EMERGENCY goes first at a fence: this one halted the run, and the RESUME freed it.
    assert answers(run) == {"signal:before": ("APPLIED", "ok"), "r": ("APPLIED", "ok")}
    again = make_run(steps=9)
    again.send(SIGNAL % ("late", "HALT"), entry="499-8")
    again.send(EMERGENCY % ("fleet", "CONSERVATIVE"), entry="500-0")
    assert again.train().steps == 9
    assert again.outcome("signal:late").code == "cancelled"
    assert "500-0" in again.outcome("signal:late").reason
    assert again.outcome("fleet").code == "ok"
    assert told(again) == ["conservative"]


def test_a_resume_that_was_sent_before_a_halt_does_not_end_it(make_run) -> None:
    run = make_run()

    class Resumes(RecordingOutbound):
        def outcome(self, outcome: Any, delivery: Any) -> None:
            super().outcome(outcome, delivery)
            if outcome.command_id == "signal:h":
                run.send(RESUME.replace('"r"', '"early"'), entry="499-0")
            elif outcome.command_id == "early":
                run.send(RESUME, entry="501-0")

    run.outbound = Resumes()
    run.send(SIGNAL % ("h", "HALT"), entry="500-0")
    assert run.train().stopped_by == "finished"
    assert answers(run)["early"] == ("REJECTED", "superseded")
    assert answers(run)["r"] == ("APPLIED", "ok")


def test_a_pause_that_overtook_an_earlier_resume_holds_until_a_later_one(make_run) -> None:
    run = make_run()

    class Resumes(RecordingOutbound):
        def outcome(self, outcome: Any, delivery: Any) -> None:
            super().outcome(outcome, delivery)
            if outcome.command_id == "r":
                run.send(RESUME.replace('"r"', '"again"'), entry="502-0")

    run.outbound = Resumes()
    # Read together: a PAUSE doesn't wait behind a RESUME, and is the later word all the same.
    run.send(RESUME, entry="500-0")
    run.send(PAUSE, entry="501-0")
    assert run.train().stopped_by == "finished"
    assert [item.command_id for item in run.outbound.outcomes] == ["p", "r", "again"]
    assert answers(run)["r"] == ("REJECTED", "superseded")
    assert "the PAUSE of entry 501-0" in run.outcome("r").reason
    assert answers(run)["again"] == ("APPLIED", "ok")


def test_a_halt_is_obeyed_though_the_servers_clock_was_set_back_since_the_last_resume(
    make_run,
) -> None:
    run = make_run(steps=5)
    run.send(RESUME, entry="900000-0")
    run.train()
    again = make_run()
    again.mailbox.server_ms = lambda: 100_000
    again.outbound = StopsAtHalt(again)
    again.send(SIGNAL % ("h", "HALT"), entry="100000-0")
    assert again.train().mode == "halted"


class ResumesAfterHalt(RecordingOutbound):
    """Sends a RESUME with each of these ids in turn, the first once the run has halted itself."""

    def __init__(self, run: Run, *entries: str) -> None:
        super().__init__()
        self.run, self.entries = run, list(entries)

    def emergency(self, signal: EmergencySignal) -> None:
        super().emergency(signal)
        if signal.level == HALT:
            self.resume()

    def outcome(self, outcome: Any, delivery: Any) -> None:
        super().outcome(outcome, delivery)
        self.resume()

    def resume(self) -> None:
        if self.entries:
            entry = self.entries.pop(0)
            self.run.send(RESUME.replace('"r"', f'"{entry}"'), entry=entry)
        else:
            self.run.mailbox.request_stop("signal")


def test_a_resume_that_was_on_its_way_when_the_run_halted_itself_does_not_end_that_halt(
    make_run,
) -> None:
    options: dict[str, Any] = {"rollback_limit": 2, "snapshot_every_steps": 8}
    run = make_run(job=AlwaysBad(), **options)
    run.mailbox.server_ms = lambda: 500
    run.outbound = ResumesAfterHalt(run, "499-7")
    assert run.train().mode == "halted"
    assert answers(run)["499-7"] == ("REJECTED", "superseded")
    assert "of before the run halted itself" in run.outcome("499-7").reason
    again = make_run(job=Moons(), **options)
    again.mailbox.server_ms = lambda: 900
    again.outbound = ResumesAfterHalt(again, "500-0")
    again.send(RESUME.replace('"r"', '"late"'), entry="499-9")
    assert again.train().mode == "conservative"
    assert answers(again) == {"late": ("REJECTED", "superseded"), "500-0": ("APPLIED", "ok")}


def test_a_resume_that_was_on_its_way_does_not_end_a_halt_that_was_passed_on_without_a_server(
    make_run,
) -> None:
    run = make_run()
    run.mailbox.server_ms = lambda: 500_000
    run.outbound = ResumesAfterHalt(run, "380000-0", "440000-0")
    halt = from_json(SIGNAL % ("h", "HALT"), AdaptationCommand)
    # Given a minute before the worker sees it.
    halt.issued_at.FromNanoseconds(time.time_ns() - 60_000_000_000)
    run.mailbox.post(Delivery(halt, encode(halt), stream="passed_on", source="x"))
    assert run.train().mode == "conservative"
    assert answers(run)["380000-0"] == ("REJECTED", "superseded")
    assert answers(run)["440000-0"] == ("APPLIED", "ok")


def test_a_run_that_halted_itself_can_be_resumed_though_the_servers_clock_was_set_back(
    make_run,
) -> None:
    options: dict[str, Any] = {"rollback_limit": 2, "snapshot_every_steps": 8}
    run = make_run(job=AlwaysBad(), **options)
    run.mailbox.server_ms = lambda: 900_000
    run.outbound = StopsAtHalt(run)
    assert run.train().mode == "halted"
    again = make_run(job=Moons(), **options)
    again.mailbox.server_ms = lambda: 120_000
    again.send(RESUME, entry="119000-0")
    assert again.train().stopped_by == "finished"


def test_a_signal_that_comes_by_two_ways_is_obeyed_once(make_run) -> None:
    run = make_run()
    run.send(SIGNAL % ("s", "ELEVATED"), entry="7-0")
    run.train()
    again = make_run(epochs=5)
    again.send(SIGNAL % ("s", "ELEVATED"), entry="9-0")
    again.train()
    assert (told(run), told(again)) == (["elevated"], [])
    assert answers(again) == {"signal:s": ("DUPLICATE", "duplicate")}


@pytest.mark.parametrize(
    ("emergency", "says"),
    [
        ("{}", "notice, elevated"),
        ('{"level": "HALT", "scope": "mine"}', "self, run, pattern or all"),
        ('{"level": "HALT", "scope": "pattern"}', "glob"),
        ('{"level": "HALT", "scope": "all", "runs": "exp-*"}', "glob"),
    ],
)
def test_an_emergency_that_means_nothing_is_refused(make_run, emergency: str, says: str) -> None:
    run = make_run(steps=5)
    run.send(f'{{"commandId": "x", "commandType": "EMERGENCY", "emergency": {emergency}}}')
    assert run.train().steps == 5
    assert run.outcome("x").code == "bad_payload"
    assert says in run.outcome("x").reason
    assert run.outbound.signals == []


@pytest.fixture
def disk(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """While there is a word in it, no journal can be written."""
    troubles: list[str] = []
    append = Journal.append

    def refusing(self: Journal, *records: JournalRecord) -> Any:
        if troubles:
            raise JournalUnwritable(troubles[0])
        return append(self, *records)

    monkeypatch.setattr(Journal, "append", refusing)
    return troubles


def test_a_halt_stops_a_run_whose_journal_cannot_be_written_and_is_done_when_it_can(
    make_run, disk: list[str]
) -> None:
    run = make_run()

    class Breaks(RecordingOutbound):
        def telemetry(self, packet: Any, priority: Any) -> None:
            super().telemetry(packet, priority)
            names = [event.event_id for event in packet.events]
            if packet.global_step == 20 and not self.signals and not names and not disk:
                disk.append("no room")
                run.send(EMERGENCY % ("h", "HALT"))
            if names == ["halted"]:
                # It stands, and nothing is in the journal; then there is room again.
                disk.clear()

        def outcome(self, outcome: Any, delivery: Any) -> None:
            super().outcome(outcome, delivery)
            if outcome.command_id == "h":
                run.mailbox.request_stop("signal")

    run.outbound = Breaks()
    summary = run.train()
    assert (summary.steps, summary.mode) == (20, "halted")
    assert run.outcomes() == [("h", "APPLIED", 20)]
    assert [alert["reason"] for alert in halted(run)] == ["smoke", "smoke"]
    assert told(run) == ["elevated", "halt"]


def test_a_halt_that_is_over_stops_nothing_while_the_journal_cannot_be_written(
    make_run, disk: list[str]
) -> None:
    first = make_run(steps=10)
    first.send(SIGNAL % ("old", "HALT"), entry="500-0")
    first.send(RESUME, entry="501-0")
    first.train()
    run = make_run(steps=30)

    class Breaks(RecordingOutbound):
        def telemetry(self, packet: Any, priority: Any) -> None:
            super().telemetry(packet, priority)
            if packet.global_step == 20 and not packet.events and not disk:
                disk.append("no room")
                run.send(LR % ("a", 0.001))
                run.send(SIGNAL % ("old", "HALT"), entry="500-0")
                run.send(SIGNAL % ("late", "HALT"), entry="499-0")
            if packet.global_step == 25:
                disk.clear()

    run.outbound = Breaks()
    summary = run.train()
    assert (summary.steps, summary.stopped_by, halted(run)) == (30, "finished", [])
