"""Losses of samples are good for gradients only where their mean is the loss: found out once."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812

from tests.engine.jobs_for_tests import Line
from tests.engine.test_validation import data
from tolaria_bus.tolaria.engine import JobError, ValidationBatches, view
from tolaria_bus.tolaria.engine.agreement import disagreement
from tolaria_bus.tolaria.engine.passes import Passes
from tolaria_bus.tolaria.engine.precision import StepState

CPU = torch.device("cpu")


class Reduces(Line):
    def model(self) -> Any:
        return nn.Sequential(nn.Linear(2, 8), nn.BatchNorm1d(8), nn.Dropout(0.5), nn.Linear(8, 1))

    def loss(self, model: nn.Module, batch: Any, reduction: str = "mean") -> Tensor:
        # Drawn in eval mode too: the two are compared under the same numbers.
        out = F.dropout(model(batch[0]), 0.5, training=True)
        return F.mse_loss(out, batch[1], reduction=reduction)


class Weighs(Reduces):
    def loss(self, model: nn.Module, batch: Any, reduction: str = "mean") -> Tensor:
        found = super().loss(model, batch, "none")
        return found.sum() / len(found[1:]) if reduction == "mean" else found


class Ignores(Reduces):
    def loss(self, model: nn.Module, batch: Any, reduction: str = "mean") -> Tensor:
        return super().loss(model, batch)


class Fails(Reduces):
    def sample_losses(self, model: nn.Module, batch: Any) -> Tensor:
        raise KeyError("weights")


def look(job: Line, passes: Passes | None = None, model: nn.Module | None = None) -> str:
    batches = ValidationBatches(data(40), 8)
    return disagreement(model or job.model(), view(job), batches, CPU, passes)


def test_a_loss_that_is_the_mean_of_its_samples_losses_agrees() -> None:
    assert look(Reduces()) == ""


def test_another_scale_is_told_with_both_numbers() -> None:
    why = look(Weighs())
    assert why.startswith("on held-out batch 1 its loss is ")
    loss = float(why.split("its loss is ")[1].split()[0])
    mean = float(why.split()[-1])
    assert loss == pytest.approx(mean * 8 / 7, rel=1e-4)


@pytest.mark.parametrize(
    ("job", "words"),
    [
        (Ignores(), r"losses are of shape \(\), not a tensor of shape \(samples, ...\)"),
        (Fails(), "losses can't be had: KeyError: 'weights'"),
    ],
)
def test_losses_of_samples_that_are_none_are_told(job, words) -> None:
    with pytest.raises(AssertionError, match=words):
        assert look(job) == ""


def test_it_leaves_no_trace() -> None:
    job = Reduces()
    model = job.model().train()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    generator = torch.default_generator.get_state()
    assert look(job, model=model) == look(job, model=model)
    assert model.training
    assert all(torch.equal(before[name], t) for name, t in model.state_dict().items())
    assert torch.equal(torch.default_generator.get_state(), generator)


def test_under_autocast_the_losses_are_those_of_half_precision() -> None:
    job = Reduces()
    model = job.model()
    types: list[torch.dtype] = []
    model[0].register_forward_hook(lambda module, args, out: types.append(out.dtype))
    passes = Passes(
        model, lambda batch, share: torch.ones(()), StepState(), CPU, amp=torch.bfloat16
    )
    assert look(job, passes, model) == ""
    assert set(types) == {torch.bfloat16}
    assert look(Weighs(), passes, model) != ""


def test_a_loss_that_fails_is_the_jobs_error() -> None:
    class Broken(Reduces):
        def loss(self, model: nn.Module, batch: Any, reduction: str = "mean") -> Tensor:
            raise ValueError("no")

    with pytest.raises(JobError, match="ValueError: no"):
        look(Broken())
