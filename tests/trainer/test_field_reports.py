"""What a command did to the run, told once its window is over."""

from __future__ import annotations

import pytest

from tests.trainer.conftest import STEPS_PER_EPOCH, Run
from tests.trainer.lives import Power
from tests.trainer.test_recovery import FailsAtState
from tolaria_bus.leyline import FieldReport, FieldReportOutcome
from tolaria_bus.leyline.codec import short_name

LR = '{"commandId": "lr", "commandType": "LEARNING_RATE", "learningRate": {"learningRate": %s}}'


def told(run: Run) -> list[tuple[str, str]]:
    return [
        (report.report_id, short_name(FieldReportOutcome, report.outcome))
        for report in run.outbound.reports
    ]


def only(run: Run) -> FieldReport:
    (report,) = run.outbound.reports
    return report


def test_a_report_compares_what_was_before_a_command_with_the_first_whole_epoch_after(
    make_run,
) -> None:
    run = make_run()
    run.send(LR % 0.02, at_step=STEPS_PER_EPOCH + 3, reason="faster")
    run.train()
    report = only(run)
    assert (report.report_id, report.command_id) == ("lr.t1", "lr")
    assert report.training_run_id == "r"
    assert report.observation_window_epochs == 1
    assert report.notes == "LEARNING_RATE (faster)"
    losses = [packet.validation_loss for packet in run.outbound.states]
    # Applied in the second epoch: the third is the first whole one.
    assert report.metrics["steps"] == 2 * STEPS_PER_EPOCH - 3
    assert report.metrics["loss_before"] == losses[0]
    assert report.metrics["loss_after"] == losses[2]
    assert report.metrics["loss_change"] == pytest.approx(losses[2] - losses[0])
    better = losses[2] < 0.99 * losses[0]
    assert (told(run)[0][1] == "SUCCESS") == better
    for name in ("accuracy", "training_loss", "memory_mb", "steps_per_second"):
        assert f"{name}_before" in report.metrics
        assert f"{name}_after" in report.metrics
    assert report.metrics["parameters_change"] == 0


def test_a_command_that_spoils_the_run_is_a_regression(make_run) -> None:
    run = make_run()
    run.send(LR % 30.0, at_epoch=1)
    run.train()
    assert told(run)[0] == ("lr.t1", "REGRESSION")


def test_a_seeds_report_names_it_and_what_it_added(make_run) -> None:
    run = make_run()
    run.send(
        """{"commandId": "g", "commandType": "SEED", "targetSeedId": "s1",
        "seedOperation": {"operation": "GERMINATE", "blueprintId": "low_rank"}}""",
        at_epoch=1,
        observe_epochs=2,
    )
    run.train()
    report = only(run)
    assert (report.seed_id, report.blueprint_id) == ("s1", "low_rank")
    assert report.metrics["parameters_change"] == 2 * 8 * 16
    assert report.metrics["steps"] == 2 * STEPS_PER_EPOCH
    assert report.notes == "SEED GERMINATE"


def test_commands_that_change_no_learning_are_not_reported_and_a_bad_window_is_refused(
    make_run,
) -> None:
    run = make_run()
    run.send('{"commandId": "c", "commandType": "CHECKPOINT"}', at_step=3)
    run.send(LR % 0.02, observe_epochs="many")
    run.train()
    assert run.outbound.reports == []
    assert run.outcome("lr").code == "bad_annotation"
    assert "observe_epochs = 'many'" in run.outcome("lr").reason


def test_a_window_that_the_end_or_a_rollback_cuts_is_reported_aborted(make_run) -> None:
    run = make_run()
    run.send(LR % 0.02, at_step=3 * STEPS_PER_EPOCH + 1)
    run.train()
    assert told(run) == [("lr.t1", "ABORTED")]
    assert "the run ended" in only(run).notes
    run = make_run("rolled")
    run.send(LR % 0.02, at_step=STEPS_PER_EPOCH + 1)
    run.send('{"commandId": "back", "commandType": "ROLLBACK"}', at_step=STEPS_PER_EPOCH + 8)
    run.train()
    assert told(run) == [("lr.t2", "ABORTED")]
    assert "a rollback undid it" in only(run).notes


@pytest.mark.parametrize("nth", [1, 2, 3])
def test_a_run_that_was_killed_in_a_window_reports_at_its_end(make_run, tmp_path, nth) -> None:
    def steer(run: Run) -> None:
        run.send(LR % 0.02, at_step=STEPS_PER_EPOCH - 3, observe_epochs=2)

    run = make_run()
    run.outbound = FailsAtState(Power(run.path, tmp_path / "copy"), nth)
    steer(run)
    run.train()
    again = make_run("copy")
    steer(again)
    again.train()
    whole, resumed = only(run), only(again)
    assert resumed.report_id == whole.report_id
    for name in ("loss_before", "loss_after", "training_loss_before", "training_loss_after"):
        assert resumed.metrics.get(name) == whole.metrics.get(name)
