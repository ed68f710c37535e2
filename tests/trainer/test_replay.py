"""A steered run is done again from its journal alone, to the same bits."""

from __future__ import annotations

import os
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.trainer.conftest import STEPS_PER_EPOCH, Moons, Run
from tests.trainer.lives import Power
from tests.trainer.test_recovery import Explodes, FailsAtOutcome, FailsAtState, steer
from tests.trainer.test_seeds import Slotted, live
from tolaria_bus.leyline import CheckpointSaved, JournalRecord
from tolaria_bus.settings import load
from tolaria_bus.tolaria.control.mailbox import RecordingOutbound
from tolaria_bus.tolaria.control.recovering import Divergence
from tolaria_bus.tolaria.engine.job import Job, view
from tolaria_bus.tolaria.recovery.journal import Journal, JournalCorrupt, read_records
from tolaria_bus.tolaria.recovery.journal_view import NothingRecorded
from tolaria_bus.tolaria.recovery.recording import Recording
from tolaria_bus.tolaria.recovery.run_folder import RunFolder
from tolaria_bus.tolaria.replay import (
    Replay,
    ReplayRefused,
    ReplaySummary,
    recorded_options,
    recorded_settings,
)

Again = Callable[..., ReplaySummary]


@pytest.fixture
def again(tmp_path: Path) -> Again:
    """Repeat the run in a folder, with settings as keyword arguments."""

    def repeat(path: Path, *, job: Any = None, **settings: Any) -> ReplaySummary:
        recording = Recording.read(path)
        given, _ = load(**settings)
        with closing(RunFolder.open(tmp_path / f"again-{os.urandom(4).hex()}")) as folder:
            found: Job = view(job or Moons())
            return Replay(found, recorded_settings(recording, given), recording, folder).run()

    return repeat


def contents(path: Path) -> dict[str, bytes]:
    return {str(file): file.read_bytes() for file in path.rglob("*") if file.is_file()}


def test_a_steered_run_is_repeated_to_the_same_bits_and_its_folder_is_left_alone(
    make_run, again: Again
) -> None:
    run = make_run()
    steer(run)
    recorded = run.train()
    before = contents(run.path)
    repeated = again(run.path)
    assert repeated.run.weights_sha256 == recorded.weights_sha256
    assert repeated.recorded_sha256 == recorded.weights_sha256
    assert repeated.same_bits
    assert repeated.run.commands_applied == 4  # Going back isn't one of them.
    assert (repeated.run.steps, repeated.run.timeline) == (recorded.steps, 2)
    assert repeated.run.accuracy == recorded.accuracy
    assert contents(run.path) == before


def test_it_needs_no_checkpoint_of_the_run(make_run, again: Again) -> None:
    run = make_run()
    steer(run)
    recorded = run.train()
    for file in (run.path / "checkpoints").rglob("*.*"):
        file.unlink()
    assert again(run.path).run.weights_sha256 == recorded.weights_sha256


def test_it_ends_where_the_run_stopped_though_a_process_that_died_had_got_further(
    make_run, again: Again, tmp_path: Path
) -> None:
    run = make_run()
    run.outbound = FailsAtState(Power(run.path, tmp_path / "copy"), 1)
    run.train()
    further = 2 * STEPS_PER_EPOCH
    # A checkpoint that is gone.
    name = f"step-{further:08d}-t1-s999"
    note = JournalRecord(timeline=1, step=further, checkpoint=CheckpointSaved(name=name))
    with Journal.open(tmp_path / "copy") as journal:
        journal.append(note)
    resumed = make_run("copy")
    resumed.send('{"commandId": "s", "commandType": "STOP"}', at_step=STEPS_PER_EPOCH + 4)
    stopped = resumed.train()
    assert stopped.steps < further
    repeated = again(resumed.path)
    assert repeated.run.steps == stopped.steps
    assert repeated.same_bits


@pytest.mark.parametrize("nth", [1, 6, 7, 8, 9])
def test_a_run_that_was_killed_ends_with_the_bits_of_its_uninterrupted_repetition(
    make_run, again: Again, tmp_path: Path, nth: int
) -> None:
    run = make_run("run")
    run.outbound = FailsAtOutcome(Power(run.path, tmp_path / "copy"), nth)
    steer(run)
    run.train()
    killed = make_run("copy")
    steer(killed)
    resumed = killed.train()
    repeated = again(killed.path)
    assert repeated.same_bits
    assert repeated.run.weights_sha256 == resumed.weights_sha256


def test_rollbacks_within_rollbacks_and_commands_of_one_step_are_followed(
    make_run, again: Again
) -> None:
    run = make_run(checkpoint_every_steps=5)
    for number, (step, words) in enumerate(
        [
            (10, '"commandType": "LEARNING_RATE", "learningRate": {"factor": 0.5}'),
            (10, '"commandType": "CHECKPOINT"'),
            (10, '"commandType": "LEARNING_RATE", "learningRate": {"factor": 0.5}'),
            (13, '"commandType": "ROLLBACK", "rollbackPayload": {"target_step": 10}'),
            (17, '"commandType": "LEARNING_RATE", "learningRate": {"factor": 3.0}'),
            (22, '"commandType": "ROLLBACK", "rollbackPayload": {"target_step": 10}'),
            (23, '"commandType": "ROLLBACK", "rollbackPayload": {"data": "replay"}'),
            (30, '"commandType": "ROLLBACK", "rollbackPayload": {"target_step": 999}'),
            (31, '"commandType": "MODE", "mode": {"conservative": true}'),
        ]
    ):
        run.send(f'{{"commandId": "c{number}", {words}}}', at_step=step)
    recorded = run.train()
    assert recorded.timeline == 4
    assert run.outcome("c7").code == "no_checkpoint"
    repeated = again(run.path)
    assert repeated.same_bits
    assert repeated.run.timeline == 4
    assert repeated.run.mode == "conservative"


def test_seeds_are_led_through_their_life_again(make_run, again: Again) -> None:
    run = make_run(job=Slotted())
    live(run)
    run.send('{"commandId": "back", "commandType": "ROLLBACK", "rollbackPayload": '
             '{"target_step": 32}}', at_step=48)  # fmt: skip
    recorded = run.train()
    assert recorded.timeline == 2
    assert again(run.path, job=Slotted()).same_bits


def test_an_automatic_rollback_is_taken_from_the_journal_and_not_decided_again(
    make_run, again: Again
) -> None:
    run = make_run(job=Explodes(times=1))
    recorded = run.train()
    assert recorded.timeline == 2
    # The job that repeats it doesn't explode: the bad step is on no live time line.
    repeated = again(run.path, job=Moons())
    assert repeated.same_bits
    assert repeated.run.timeline == 2


def test_an_emergencys_levels_are_taken_from_the_journal_and_not_decided_again(
    make_run, again: Again
) -> None:
    run = make_run(job=Explodes(times=3), epochs=6, rollback_limit=9, emergency_clean_steps=20)
    recorded = run.train()
    assert {"conservative_mode", "emergency_eased"} <= set(run.events())
    assert recorded.mode == "running"
    repeated = again(run.path, job=Moons())
    assert repeated.same_bits
    assert repeated.run.mode == "running"


def test_pauses_halts_and_stops_take_no_time(make_run, again: Again) -> None:
    class Goes(RecordingOutbound):
        def outcome(self, outcome, delivery) -> None:
            super().outcome(outcome, delivery)
            if outcome.command_id in {"p", "h"} and outcome.code == "ok":
                run.send(f'{{"commandId": "r{outcome.command_id}", "commandType": "RESUME"}}')

    run = make_run()
    run.outbound = Goes()
    run.send('{"commandId": "p", "commandType": "PAUSE"}', at_step=5)
    run.send(
        '{"commandId": "h", "commandType": "EMERGENCY", "emergency": {"level": "HALT"}}', at_step=9
    )
    run.send('{"commandId": "s", "commandType": "STOP"}', at_step=20)
    stopped = run.train()
    assert again(run.path).same_bits
    assert stopped.steps == again(run.path).run.steps == 20
    run = make_run()
    assert again(run.path).run.weights_sha256 == stopped.weights_sha256
    assert run.train().weights_sha256 == again(run.path).run.weights_sha256


def test_a_run_that_was_left_paused_is_repeated_to_there(make_run, again: Again) -> None:
    class Leaves(RecordingOutbound):
        def outcome(self, outcome, delivery) -> None:
            super().outcome(outcome, delivery)
            if outcome.code == "ok":
                run.mailbox.request_stop("signal")

    run = make_run()
    run.outbound = Leaves()
    run.send('{"commandId": "p", "commandType": "PAUSE"}', at_step=21)
    left = run.train()
    assert left.mode == "paused"
    repeated = again(run.path)
    assert (repeated.run.steps, repeated.run.mode, repeated.same_bits) == (21, "paused", True)


def test_a_journal_that_ends_in_the_middle_is_repeated_as_far_as_it_goes(
    make_run, again: Again, tmp_path: Path
) -> None:
    run = make_run("run")
    run.outbound = FailsAtOutcome(Power(run.path, tmp_path / "copy"), 7)
    steer(run)
    run.train()
    repeated = again(tmp_path / "copy")
    assert repeated.run.steps == 11
    assert repeated.same_bits is None
    assert repeated.to_json()["recorded_sha256"] is None


def test_a_torn_tail_is_no_hindrance_and_damage_in_the_middle_is_told(
    make_run, again: Again
) -> None:
    run = make_run(steps=20)
    steer(run)
    run.train()
    path = run.path / "journal-000001.log"
    data = path.read_bytes()
    path.write_bytes(data + b"TJR1 half a record")
    assert again(run.path).same_bits
    middle = len(data) // 2
    path.write_bytes(data[:middle] + bytes([data[middle] ^ 1]) + data[middle + 1 :])
    with pytest.raises(JournalCorrupt, match=r"journal-000001\.log at byte"):
        again(run.path)


def test_a_folder_without_a_journal_is_refused(tmp_path: Path) -> None:
    with pytest.raises(NothingRecorded, match="no such folder"):
        Recording.read(tmp_path / "nowhere")
    with pytest.raises(NothingRecorded, match="no journal"):
        Recording.read(tmp_path)
    Journal.open(tmp_path).close()
    with pytest.raises(NothingRecorded, match="no journal"):
        Recording.read(tmp_path)


def test_what_is_given_must_be_what_was_recorded(make_run, again: Again, monkeypatch) -> None:
    run = make_run(steps=20, seed=3)
    run.train()
    assert again(run.path, seed=3, steps=20, threads=1).same_bits
    with pytest.raises(ReplayRefused, match="setting seed = 4: the run was recorded with seed = 3"):
        again(run.path, seed=4)
    with pytest.raises(ReplayRefused, match="setting epochs = 2: the run was recorded without it"):
        again(run.path, epochs=2)
    with pytest.raises(ReplayRefused, match="threads = 2"):
        again(run.path, threads=2)
    other = Moons()
    other.name = "suns"
    with pytest.raises(ReplayRefused, match="is of moons"):
        again(run.path, job=other)
    with pytest.raises(ReplayRefused, match=r"job\.width = 8: .* no job\.width"):
        recorded_options(Recording.read(run.path), {"width": "8"})
    monkeypatch.setattr(torch, "__version__", "9.0.0")
    with pytest.raises(ReplayRefused, match=r"torch \S+ -> 9\.0\.0"):
        again(run.path)
    inexact = again(run.path, allow_inexact=True)
    assert not inexact.run.exact
    assert inexact.same_bits  # It is the same torch after all.


def test_a_job_whose_model_has_changed_is_found_out_before_the_first_step(
    make_run, again: Again
) -> None:
    class Wider(Moons):
        def model(self) -> torch.nn.Module:
            model = super().model()
            model.register_module("0", torch.nn.Linear(2, 16, bias=False))
            return model

    run = make_run(steps=20)
    run.train()
    with pytest.raises(ReplayRefused, match="before the first step"):
        again(run.path, job=Wider())


def test_a_job_that_learns_otherwise_ends_with_other_bits_and_that_is_told(
    make_run, again: Again
) -> None:
    run = make_run(steps=20)
    run.train()
    assert again(run.path, job=Moons(lr=0.02)).same_bits is False


def test_a_repetition_that_goes_another_way_says_why(make_run, again: Again) -> None:
    run = make_run(steps=40)
    run.train()
    with pytest.raises(Divergence, match=r"timeline 2, .* timeline 1: loss nan at step"):
        again(run.path, job=Explodes(times=1))


def test_a_length_that_a_resume_changed_is_followed_where_no_rate_depends_on_it(
    make_run, again: Again
) -> None:
    class Cosine(Moons):
        schedule = "cosine"

    for job in (Moons(), Cosine()):
        name = type(job).__name__
        make_run(name, job=job, epochs=1).train()
        longer: Run = make_run(name, job=job, steps=STEPS_PER_EPOCH + 5)
        longer.train()
    assert again(make_run("Moons").path).same_bits
    with pytest.raises(ReplayRefused, match=r"another length \(epochs=1: 16 steps; steps=21: "):
        again(make_run("Cosine").path, job=Cosine())


def test_a_length_that_the_job_itself_has_changed_is_noticed(make_run, again: Again) -> None:
    class Cosine(Moons):
        schedule = "cosine"

    make_run(job=Cosine(), epochs=None).train()
    longer = Cosine()
    longer.epochs = 5
    run: Run = make_run(job=longer)
    run.train()
    with pytest.raises(ReplayRefused, match=r"none given: 64 steps; none given: 80 steps"):
        again(run.path, job=longer)


def changes_of_length(run: Run) -> list[tuple[str, dict[str, str]]]:
    return [
        (event.description, dict(event.attributes))
        for packet, _ in run.outbound.packets
        for event in packet.events
        if event.event_id == "length_changed"
    ]


def test_another_length_than_before_is_told_when_a_run_is_resumed(make_run) -> None:
    class Cosine(Moons):
        schedule = "cosine"

    lives = [
        make_run(name, job=job, **length)
        for name, job in (("plain", Moons()), ("cosine", Cosine()))
        for length in ({"epochs": 1}, {"steps": 16}, {"epochs": 3}, {"steps": 40}, {"steps": 50})
    ]
    for run in lives:
        run.train()
    told = [[attributes for _, attributes in changes_of_length(run)] for run in lives]
    expected = [
        {
            "steps": str(steps),
            "epochs": str(epochs),
            "steps_before": str(b),
            "epochs_before": str(e),
        }
        for steps, epochs, b, e in ((48, 3, 16, 1), (40, 3, 48, 3), (50, 4, 40, 3))
    ]
    # The same length, asked for in another way, is no change.
    assert told == [[], [], *([one] for one in expected)] * 2
    ((plain, _),), ((cosine, _),) = changes_of_length(lives[4]), changes_of_length(lives[9])
    assert plain == "resumed with 50 steps (4 epochs), it had 40 (3)"
    assert cosine == f"{plain}; the cosine schedule follows it"


def test_a_repeated_run_can_be_gone_on_with(make_run, tmp_path: Path) -> None:
    run = make_run(steps=20)
    recorded = run.train()
    recording = Recording.read(run.path)
    given, _ = load()
    with closing(RunFolder.open(tmp_path / "branch")) as folder:
        Replay(view(Moons()), recorded_settings(recording, given), recording, folder).run()
    with (
        closing(RunFolder.open(tmp_path / "branch")) as folder,
        pytest.raises(ReplayRefused, match="there is a run in this folder"),
    ):
        Replay(view(Moons()), recorded_settings(recording, given), recording, folder)
    branch = make_run("branch", steps=30).train()
    run = make_run(steps=30)
    assert run.train().weights_sha256 == branch.weights_sha256
    assert recorded.steps == 20
    assert any(record.HasField("stopped") for record in read_records(tmp_path / "branch"))
