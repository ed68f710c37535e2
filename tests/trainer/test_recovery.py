"""What a run that was killed comes back to: the same bits, each command's effect once."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils.data import TensorDataset

from tests.trainer.conftest import STEPS_PER_EPOCH, Moons, Run
from tests.trainer.lives import Power
from tolaria_bus.leyline import CommandOutcome, EmergencyLevel, SystemStatePacket
from tolaria_bus.tolaria.control.mailbox import Delivery, RecordingOutbound
from tolaria_bus.tolaria.recovery.journal import read_records

TOTAL = 4 * STEPS_PER_EPOCH


class FailsAtOutcome(RecordingOutbound):
    """The power goes when the nth outcome is handed out."""

    def __init__(self, power: Power, nth: int) -> None:
        super().__init__()
        self.power = power
        self.nth = nth

    def outcome(self, outcome: CommandOutcome, delivery: Delivery | None) -> None:
        super().outcome(outcome, delivery)
        if len(self.outcomes) == self.nth:
            self.power.fails()


class FailsAtState(RecordingOutbound):
    """The power goes at the end of the nth epoch, before its checkpoint."""

    def __init__(self, power: Power, nth: int) -> None:
        super().__init__()
        self.power = power
        self.nth = nth

    def state(self, packet: SystemStatePacket) -> None:
        super().state(packet)
        if len(self.states) == self.nth:
            self.power.fails()


def steer(run: Run) -> None:
    """One of every command that can change a weight, each at its step."""
    run.send(
        """{"commandId": "lr", "commandType": "LEARNING_RATE",
        "learningRate": {"learningRate": 0.004}}""",
        at_step=7,
    )
    run.send(
        """{"commandId": "opt", "commandType": "OPTIMIZER", "optimizerAdjustment":
        {"values": {"weight_decay": 0.2}}}""",
        at_step=11,
    )
    run.send(
        """{"commandId": "seed", "commandType": "SEED", "targetSeedId": "s1",
        "seedOperation": {"operation": "GERMINATE", "blueprintId": "residual_mlp"}}""",
        at_step=19,
    )
    run.send(
        """{"commandId": "back", "commandType": "ROLLBACK",
        "rollbackPayload": {"lr_factor": 0.5}}""",
        at_step=37,
    )
    run.send(
        """{"commandId": "warm", "commandType": "LEARNING_RATE",
        "learningRate": {"factor": 2.0, "warmupSteps": 10}}""",
        at_step=41,
    )


def test_two_runs_of_the_same_commands_have_the_same_bits(make_run) -> None:
    runs = [make_run(name) for name in ("one", "two")]
    for run in runs:
        steer(run)
    first, second = (run.train() for run in runs)
    assert first.weights_sha256 == second.weights_sha256
    assert runs[0].outcomes() == runs[1].outcomes()


@pytest.mark.parametrize("nth", range(1, 11))
def test_power_lost_at_any_outcome_ends_in_the_same_bits(make_run, tmp_path, nth: int) -> None:
    run = make_run("run")
    run.outbound = FailsAtOutcome(Power(run.path, tmp_path / "copy"), nth)
    steer(run)
    reference = run.train()
    assert len(run.outbound.outcomes) == 10
    again = make_run("copy")
    steer(again)  # Redelivered: their entries were not acknowledged, or are sent again.
    resumed = again.train()
    assert resumed.weights_sha256 == reference.weights_sha256
    assert (resumed.steps, resumed.timeline) == (reference.steps, reference.timeline)


@pytest.mark.parametrize("nth", [5, 6, 8, 10])
def test_an_answer_in_the_journal_that_nobody_was_told_is_told_by_the_next_process(
    make_run, tmp_path, nth: int
) -> None:
    """Commands that were put off have no entry that would be delivered again."""
    run = make_run("run")
    run.outbound = FailsAtOutcome(Power(run.path, tmp_path / "copy"), nth)
    steer(run)
    run.train()
    before = run.outcomes()[: nth - 1]
    again = make_run("copy")
    again.train()
    assert before + again.outcomes() == run.outcomes()


def test_one_that_stopped_in_good_order_has_told_everything(make_run) -> None:
    run = make_run(steps=10)
    run.send('{"commandId": "a", "commandType": "CONTINUE"}', at_step=5)
    run.train()
    again = make_run(steps=20)
    again.train()
    assert again.outcomes() == []


@pytest.mark.parametrize("nth", [1, 2, 3, 4])
def test_power_lost_before_a_checkpoint_ends_in_the_same_bits(make_run, tmp_path, nth: int) -> None:
    run = make_run("run")
    run.outbound = FailsAtState(Power(run.path, tmp_path / "copy"), nth)
    steer(run)
    reference = run.train()
    again = make_run("copy")
    assert again.train().weights_sha256 == reference.weights_sha256


def test_every_command_has_one_effect_however_often_the_run_is_killed(make_run, tmp_path) -> None:
    reference = make_run("reference")
    steer(reference)
    expected = reference.train().weights_sha256
    name = "life-0"
    for life in range(1, 11):
        run = make_run(name)
        run.outbound = FailsAtOutcome(Power(run.path, tmp_path / f"life-{life}"), 1 + life % 3)
        steer(run)
        run.train()
        if not (tmp_path / f"life-{life}").exists():
            break
        name = f"life-{life}"
    last = make_run(name)
    steer(last)
    assert last.train().weights_sha256 == expected
    applied = [
        record.result.command_id
        for record in read_records(last.path)
        if record.HasField("result") and record.result.outcome.code == "ok"
    ]
    assert sorted(applied) == ["back", "lr", "opt", "seed", "warm"]


def test_a_run_stopped_and_started_again_has_the_bits_of_one_that_went_through(make_run) -> None:
    through = make_run("through").train()
    for steps in (5, 16, 17, 33, None):
        stopped = make_run("stopped", epochs=4)
        if steps is not None:
            stopped.send(f'{{"commandId": "s{steps}", "commandType": "STOP"}}', at_step=steps)
        summary = stopped.train()
    assert summary.weights_sha256 == through.weights_sha256


class OwnLoader(Moons):
    """Brings a loader that is gone through as it is."""

    def __init__(self, stateful: bool) -> None:
        super().__init__()
        self.stateful = stateful

    def train_data(self) -> Any:
        return (TellingLoader if self.stateful else Loader)(super().train_data(), self.batch_size)


class Loader:
    """Shuffles by the global generator, and adds noise from it to each batch."""

    def __init__(self, data: TensorDataset, batch_size: int) -> None:
        self.data = data.tensors
        self.batch_size = batch_size
        self.order = torch.empty(0)
        self.place = 0
        self.loaded = False

    def __len__(self) -> int:
        return len(self.data[0]) // self.batch_size

    def __iter__(self) -> Any:
        if not self.loaded:
            self.order, self.place = torch.randperm(len(self.data[0])), 0
        self.loaded = False
        while self.place < len(self):
            rows = self.order[self.place * self.batch_size :][: self.batch_size]
            self.place += 1
            yield self.data[0][rows] + 0.01 * torch.randn(len(rows), 2), self.data[1][rows]


class TellingLoader(Loader):
    """The same, with a state."""

    def state_dict(self) -> Any:
        return {"order": self.order, "place": self.place}

    def load_state_dict(self, state: Any) -> None:
        self.order, self.place, self.loaded = state["order"], state["place"], True


@pytest.mark.parametrize("stateful", [True, False])
def test_a_run_with_a_loader_of_the_users_own_is_exact_too(make_run, stateful: bool) -> None:
    def steered(folder: str) -> Run:
        run: Run = make_run(folder, job=OwnLoader(stateful))
        for name, data, at_step in (("skip", "skip", 21), ("replay", "replay", 36)):
            run.send(
                f"""{{"commandId": "{name}", "commandType": "ROLLBACK",
                "rollbackPayload": {{"data": "{data}", "target_step": 16}}}}""",
                at_step=at_step,
            )
        return run

    uninterrupted = steered("through")
    through = uninterrupted.train()
    assert through.timeline == 3
    for steps in (5, 16, 17, 33, 40, None):
        stopped = steered("stopped")
        if steps is not None:
            stopped.send(f'{{"commandId": "s{steps}", "commandType": "STOP"}}', at_step=steps)
        summary = stopped.train()
    assert (summary.weights_sha256, summary.timeline) == (through.weights_sha256, 3)
    assert ("data_caution" in stopped.events()) is not stateful


def test_what_is_said_of_the_end_is_of_the_end_wherever_the_run_was_stopped(make_run) -> None:
    steps = STEPS_PER_EPOCH + 7
    through = make_run("through", steps=steps).train()
    run = make_run("stopped", steps=steps)
    run.send('{"commandId": "s", "commandType": "STOP"}', at_step=STEPS_PER_EPOCH + 3)
    run.train()
    resumed = make_run("stopped", steps=steps).train()
    assert (resumed.loss, resumed.accuracy) == (through.loss, through.accuracy)


def test_a_rollback_goes_back_on_a_new_timeline_and_names_what_it_undid(make_run) -> None:
    run = make_run()
    run.send(
        """{"commandId": "lr", "commandType": "LEARNING_RATE",
        "learningRate": {"learningRate": 0.004}}""",
        at_step=20,
    )
    run.send('{"commandId": "back", "commandType": "ROLLBACK"}', at_step=25)
    summary = run.train()
    assert ("lr", "ROLLED_BACK", STEPS_PER_EPOCH) in run.outcomes()
    assert run.outcomes()[-1] == ("back", "APPLIED", STEPS_PER_EPOCH)
    assert run.outcome("back").timeline == 2
    assert summary.timeline == 2
    # The data since is skipped: nine steps fewer in the same four epochs.
    assert summary.steps == TOTAL - 9


def test_a_rollback_that_replays_the_data_is_as_if_nothing_had_been(make_run) -> None:
    run = make_run()
    run.send(
        """{"commandId": "back", "commandType": "ROLLBACK",
        "rollbackPayload": {"data": "replay"}}""",
        at_step=25,
    )
    summary = run.train()
    assert summary.steps == TOTAL


class Explodes(Moons):
    """Its loss is not finite from a given batch on, a given number of times."""

    def __init__(self, times: int) -> None:
        super().__init__()
        self.calls = 0
        self.times = times

    def loss(self, model: torch.nn.Module, batch: object) -> Tensor:
        loss = super().loss(model, batch)
        if model.training:
            self.calls += 1
            if self.calls > 20 and self.times > 0:
                self.times -= 1
                return loss * float("nan")
        return loss


def test_a_loss_that_is_not_finite_rolls_back_by_itself_with_a_critical_alert(make_run) -> None:
    run = make_run(job=Explodes(times=1))
    summary = run.train()
    assert [packet.events[0].event_id for packet in run.outbound.alerts()] == ["loss_not_finite"]
    assert summary.timeline == 2
    assert summary.stopped_by == "finished"
    assert summary.accuracy is not None
    assert summary.accuracy > 0.8


def test_a_loss_that_stays_bad_halts_the_run_instead_of_looping(make_run) -> None:
    run = make_run(job=Explodes(times=10_000), rollback_limit=2)

    class Stops(RecordingOutbound):
        def emergency(self, signal) -> None:
            super().emergency(signal)
            if signal.level == EmergencyLevel.EMERGENCY_LEVEL_HALT:
                run.mailbox.request_stop("signal")

    run.outbound = Stops()
    summary = run.train()
    assert summary.mode == "halted"
    assert "didn't help" in run.outbound.signals[-1].reason
    assert summary.timeline == 3


def test_a_run_under_other_threads_is_refused_unless_inexact_is_allowed(make_run) -> None:
    make_run(steps=5).train()
    with pytest.raises(RuntimeError, match="threads 1 -> 2"):
        make_run(steps=9, threads=2).train()
    torch.set_num_threads(1)
    run = make_run(steps=9, threads=2, allow_inexact=True)
    summary = run.train()
    torch.set_num_threads(1)
    assert not summary.exact
    assert "inexact" in run.events()
