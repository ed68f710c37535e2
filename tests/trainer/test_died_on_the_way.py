"""What a process that died had not said or not counted, the next one says and counts."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from tests.trainer.conftest import Run
from tests.trainer.lives import Power
from tests.trainer.test_recovery import FailsAtOutcome
from tolaria_bus.leyline import CommandOutcome, EmergencySignal
from tolaria_bus.tolaria.control.mailbox import Delivery, RecordingOutbound

ALARM = """{"commandId": "alarm", "commandType": "EMERGENCY",
    "emergency": {"level": "ELEVATED"}}"""
GERMINATE = """{"commandId": "%s", "commandType": "SEED", "targetSeedId": "s1",
    "seedOperation": {"operation": "GERMINATE", "blueprintId": "residual_mlp"}}"""
MODE = '{"commandId": "%s", "commandType": "MODE", "mode": {"conservative": %s}}'


class Died(BaseException):
    """Stands for the end of the process: nothing that comes after is done."""


class DiesAtASignal(RecordingOutbound):
    """The process dies when it broadcasts an emergency: before that is safe, or after."""

    def __init__(self, *, said: bool) -> None:
        super().__init__()
        self.said = said

    def emergency(self, signal: EmergencySignal) -> None:
        if self.said:
            super().emergency(signal)
        raise Died


@pytest.mark.parametrize("said", [False, True])
def test_a_signal_is_broadcast_though_the_process_dies_at_it_and_is_known_again(
    make_run, said: bool
) -> None:
    run = make_run(steps=10)
    run.outbound = DiesAtASignal(said=said)
    run.send(ALARM, at_step=5)
    with pytest.raises(Died):
        run.train()
    again = make_run(steps=10)
    again.train()
    signals = run.outbound.signals + again.outbound.signals
    assert len(signals) == 1 + said
    assert len({signal.attributes["signal_id"] for signal in signals}) == 1


def test_a_signal_that_was_broadcast_is_not_when_its_steps_are_run_again(
    make_run, tmp_path: Path
) -> None:
    run = make_run(steps=10)
    run.outbound = FailsAtOutcome(Power(run.path, tmp_path / "copy"), 2)
    run.send(ALARM, at_step=5)
    run.train()
    again = make_run("copy", steps=10)
    again.train()
    assert len(run.outbound.signals) == 1
    assert again.outbound.signals == []


class GrowsAtTheEnd(FailsAtOutcome):
    """Sends one more seed to grow as soon as conservative mode is over."""

    def __init__(self, run: Run, power: Power, nth: int) -> None:
        super().__init__(power, nth)
        self.run = run

    def outcome(self, outcome: CommandOutcome, delivery: Delivery | None) -> None:
        super().outcome(outcome, delivery)
        if (outcome.command_id, outcome.code) == ("normal", "ok"):
            self.run.send(GERMINATE % "last")


def test_refusals_before_a_death_count_for_the_breaker_as_those_after_it(
    make_run, tmp_path: Path
) -> None:
    run = make_run(steps=40)
    # Five are put off; conservative mode, then two refusals; the third opens the breaker.
    run.outbound = GrowsAtTheEnd(run, Power(run.path, tmp_path / "copy"), 8)
    run.send(MODE % ("careful", "true"), at_step=5)
    for step in (7, 8, 9):
        run.send(GERMINATE % f"g{step}", at_step=step)
    run.send(MODE % ("normal", "false"), at_step=10)
    whole = run.train()
    assert run.outcome("last").code == "breaker_open"
    again = make_run("copy", steps=40)
    again.outbound = GrowsAtTheEnd(again, Power(again.path, tmp_path / "unused"), 99)
    assert again.train().weights_sha256 == whole.weights_sha256
    assert again.outcome("last").code == "breaker_open"


class Blocks(FailsAtOutcome):
    """Where the checkpoint of the command would be written, there is something in the way."""

    def outcome(self, outcome: CommandOutcome, delivery: Delivery | None) -> None:
        super().outcome(outcome, delivery)
        if outcome.code == "deferred":
            for sequence in range(20):
                name = f"checkpoints/step-00000005-t1-s{sequence}.tmp"
                (self.power.source / name).touch()


def test_a_checkpoint_that_could_not_be_written_then_and_can_be_now_is_no_divergence(
    make_run, tmp_path: Path
) -> None:
    run = make_run(steps=10)
    run.outbound = Blocks(Power(run.path, tmp_path / "copy"), 2)
    run.send('{"commandId": "save", "commandType": "CHECKPOINT"}', at_step=5)
    whole = run.train()
    assert run.outcome("save").code == "checkpoint_failed"
    for path in (tmp_path / "copy" / "checkpoints").glob("*.tmp"):
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    assert make_run("copy", steps=10).train().weights_sha256 == whole.weights_sha256
