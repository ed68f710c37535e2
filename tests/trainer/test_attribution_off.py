"""A job whose samples' losses can't stand for its loss: seeds are its own, or aren't grafted."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812

from tests.trainer.conftest import Run
from tests.trainer.lives import Power
from tests.trainer.test_aggregation import Sampled, figures
from tests.trainer.test_recovery import FailsAtState
from tests.trainer.test_seeds import Slotted, live, seed
from tolaria_bus.kasmina import SeedSlot

WEIGHTS = torch.tensor([1.0, 9.0])


class Weighted(Slotted):
    """Weighs its classes: torch's mean divides by the weights, the mean of samples doesn't."""

    def loss(self, model: nn.Module, batch: Any, reduction: str = "mean") -> Tensor:
        x, y = batch
        return F.cross_entropy(model(x), y, weight=WEIGHTS, reduction=reduction)


class WeightedAlone(Weighted):
    """The same job, that gives no losses of samples."""

    def loss(self, model: nn.Module, batch: Any) -> Tensor:  # type: ignore[override]
        return super().loss(model, batch)


class Unreduced(Sampled):
    """Takes ``reduction``, and doesn't heed it."""

    def loss(self, model: nn.Module, batch: Any, reduction: str = "mean") -> Tensor:
        return super().loss(model, batch)


class Complex(Sampled):
    """Has a complex parameter."""

    def model(self) -> nn.Module:
        class Filter(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.weight = nn.Parameter(torch.ones(9, dtype=torch.cfloat))

            def forward(self, x: Tensor) -> Tensor:
                found: Tensor = torch.fft.irfft(torch.fft.rfft(x) * self.weight, n=16)
                return found

        return nn.Sequential(
            nn.Linear(2, 16), Filter(), nn.ReLU(), SeedSlot(16, "linear"), nn.Linear(16, 2)
        )


class Sparse(Sampled):
    """Its embedding has sparse gradients."""

    def model(self) -> nn.Module:
        class Bags(nn.EmbeddingBag):
            def forward(self, x: Tensor) -> Tensor:  # type: ignore[override]
                return super().forward((x.abs() * 4).long().clamp_max(9))

        return nn.Sequential(Bags(10, 16, sparse=True), SeedSlot(16, "linear"), nn.Linear(16, 2))

    def optimizer(self, params: Any) -> torch.optim.Optimizer:
        return torch.optim.SGD(params, lr=0.01)


def told(run: Run) -> list[str]:
    return [
        event.description
        for packet, _ in run.outbound.packets
        for event in packet.events
        if event.event_id == "attribution_off"
    ]


@pytest.mark.parametrize(
    ("job", "words"),
    [
        (Weighted, "on held-out batch 1 its loss is "),
        (Unreduced, "its samples' losses are of shape ()"),
        (Complex, "the parameter 1.weight is complex"),
    ],
)
def test_without_a_handler_seeds_are_trained_by_the_jobs_loss_and_it_is_told(
    make_run, job, words
) -> None:
    run = make_run(job=job())
    live(run)
    run.train()
    assert run.outcome("START_GRAFTING-20").code == "ok"
    assert words in run.outcome("START_GRAFTING-20").details["attribution"]
    (description,) = told(run)
    assert words in description
    assert "give sample_losses" in description
    assert figures(run, "weight") == {}


def test_such_a_run_is_that_of_a_job_without_losses_of_samples(make_run) -> None:
    runs = [make_run(name, job=job()) for name, job in [("a", Weighted), ("b", WeightedAlone)]]
    for run in runs:
        live(run)
    first, second = (run.train().weights_sha256 for run in runs)
    assert first == second
    assert (len(told(runs[0])), len(told(runs[1]))) == (1, 0)


@pytest.mark.parametrize(
    ("job", "words"),
    [
        (Weighted, "the mean of its samples' losses"),
        (Unreduced, "its samples' losses are of shape ()"),
        (Complex, "the parameter 1.weight is complex"),
        (Sparse, "the gradient of 0 is sparse"),
    ],
)
def test_with_a_handler_grafting_is_refused_and_the_run_goes_on(make_run, job, words) -> None:
    run = make_run(job=job(), aggregation="pcgrad", steps=24)
    live(run, until="START_GRAFTING")
    assert run.train().steps == 24
    outcome = run.outcome("START_GRAFTING-20")
    assert outcome.code == "gate_failed"
    assert words in outcome.reason
    assert "aggregation=none" in outcome.reason
    assert told(run) == []


class Scaled(Weighted):
    """Gives its samples' losses on the scale of its loss."""

    def sample_losses(self, model: nn.Module, batch: Any) -> Tensor:
        losses = self.loss(model, batch, "none")
        return losses * len(losses) / WEIGHTS[batch[1]].sum()


@pytest.mark.parametrize("job", [Sampled, Scaled])
def test_losses_that_go_together_leave_attribution_on(make_run, job) -> None:
    run = make_run(job=job(), steps=24)
    live(run, until="START_GRAFTING")
    run.train()
    assert told(run) == []
    assert "attribution" not in run.outcome("START_GRAFTING-20").details
    assert figures(run, "weight").keys() == {"host", "s1"}


# Before the seed is grafted, and after that: it has to be found, and to be remembered.
@pytest.mark.parametrize("nth", [1, 2, 3])
def test_power_lost_before_or_after_it_was_found_ends_in_the_same_bits(
    make_run, tmp_path, nth
) -> None:
    settings = {"checkpoint_every_steps": 5, "checkpoint_keep": 99}
    run = make_run("run", job=Weighted(), **settings)
    run.outbound = FailsAtState(Power(run.path, tmp_path / "copy"), nth)
    live(run)
    reference = run.train()
    again = make_run("copy", job=Weighted(), **settings)
    live(again)
    resumed = again.train()
    assert resumed.resumed_from
    assert resumed.weights_sha256 == reference.weights_sha256
    assert figures(again, "weight") == {}


def test_a_rollback_to_before_the_grafting_turns_attribution_on_again(make_run) -> None:
    run = make_run(job=Weighted(), steps=40, checkpoint_every_steps=5, checkpoint_keep=99)
    live(run, until="START_GRAFTING")
    back = (
        '{"commandId": "back", "commandType": "ROLLBACK", "rollbackPayload": {"target_step": 15}}'
    )
    run.send(back, at_step=30)
    seed(run, "START_GRAFTING", 32)
    run.train()
    assert run.outcome("back").code == "ok"
    assert run.outcome("START_GRAFTING-32").code == "ok"
    # It was found anew: with what was known it wouldn't have been told again.
    assert len(told(run)) == 2
