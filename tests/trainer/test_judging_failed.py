"""An error while a command is judged refuses that command; the run goes on."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import structlog
import torch
from torch import nn

from tests.trainer.conftest import Moons, Run
from tests.trainer.lives import Power
from tests.trainer.test_recovery import FailsAtOutcome
from tolaria_bus.kasmina import Garden, Kasmina
from tolaria_bus.kasmina.pruning import PruningPlan
from tolaria_bus.leyline import TelemetryPacket

PRUNE = """{"commandId": "p", "commandType": "STRUCTURAL_PRUNING",
    "structuralPruning": {"target": "0", "fraction": 0.25}}"""
RATE = """{"commandId": "a", "commandType": "LEARNING_RATE",
    "learningRate": {"learningRate": 0.001}}"""


class Thorny(Garden):
    """Judging a pruning raises."""

    def __init__(self, model: nn.Module, error: BaseException) -> None:
        super().__init__(model)
        self.error = error

    def plan_prune(
        self, target: str, fraction: float, values: Mapping[str, Any] | None = None
    ) -> PruningPlan:
        raise self.error


class Thorns(Moons):
    def __init__(self, error: BaseException | None = None) -> None:
        super().__init__()
        self.error = error or AttributeError("`weight` is not\nan nn.Parameter")

    def kasmina(self, model: nn.Module) -> Kasmina:
        return Thorny(model, self.error)


def alerts(run: Run) -> list[tuple[str, str]]:
    packets: list[TelemetryPacket] = run.outbound.alerts()
    return [(event.event_id, event.description) for packet in packets for event in packet.events]


def test_it_is_refused_with_the_error_in_a_line_and_the_traceback_in_the_log(make_run) -> None:
    run = make_run(job=Thorns())
    run.send(PRUNE, entry="7-1")
    run.send(RATE, at_step=20)
    with structlog.testing.capture_logs() as lines:
        summary = run.train()
    assert run.outcomes() == [("p", "REJECTED", 0), ("a", "DEFERRED", 0), ("a", "APPLIED", 20)]
    outcome = run.outcome("p")
    assert outcome.code == "judging_failed"
    reason = "judging it failed: AttributeError: `weight` is not an nn.Parameter"
    assert outcome.reason == reason
    assert alerts(run) == [("judging_failed", f"STRUCTURAL_PRUNING: {reason}")]
    (line,) = [line for line in lines if line["event"] == "judging_failed"]
    assert line["command_id"] == "p"
    assert line["exc_info"].__traceback__ is not None
    # It has changed nothing.
    other = make_run("other", job=Thorns())
    other.send(RATE, at_step=20)
    assert other.train().weights_sha256 == summary.weights_sha256


def test_once_refused_it_is_not_judged_again_and_the_next_start_is_as_any(make_run) -> None:
    first = make_run(job=Thorns(), steps=20)
    first.send(PRUNE, entry="7-1")
    first.train()
    again = make_run(job=Thorns())
    again.send(PRUNE, entry="7-1")  # Redelivered.
    summary = again.train()
    assert again.outcome("p").code == "judging_failed"
    assert alerts(again) == []
    assert summary.weights_sha256 == make_run("whole", job=Thorns()).train().weights_sha256


def test_one_that_was_put_off_is_refused_at_its_fence_and_stays_so_when_the_fault_is_mended(
    make_run, tmp_path: Path
) -> None:
    run = make_run(job=Thorns())
    run.outbound = FailsAtOutcome(Power(run.path, tmp_path / "copy"), 2)
    run.send(PRUNE, at_step=20)
    expected = run.train().weights_sha256
    assert run.outcomes() == [("p", "DEFERRED", 0), ("p", "REJECTED", 20)]
    assert run.outcome("p").code == "judging_failed"
    mended = make_run("copy")
    assert mended.train().weights_sha256 == expected
    assert set(told(mended)) <= {("p", "judging_failed")}


def told(run: Run) -> list[tuple[str, str]]:
    return [(outcome.command_id, outcome.code) for outcome in run.outbound.outcomes]


@pytest.mark.parametrize(
    "error",
    [MemoryError("none"), torch.OutOfMemoryError("none"), KeyboardInterrupt()],
    ids=lambda error: type(error).__name__,
)
@pytest.mark.parametrize("fence", [{}, {"at_step": 20}], ids=["at_once", "put_off"])
def test_what_says_that_the_process_cannot_go_on_ends_it(make_run, error, fence) -> None:
    run = make_run(job=Thorns(error))
    run.send(PRUNE, **fence)
    with pytest.raises(type(error)):
        run.train()
    assert ("p", "judging_failed") not in told(run)
    # The next one judges it.
    again = make_run(job=Thorns())
    if not fence:
        again.send(PRUNE)
    again.train()
    assert again.outcome("p").code == "judging_failed"
