"""With fp16 a seed learns from gradients that are scaled, and overflows by itself."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tests.kasmina.hosts import CPU, Training, batch, training
from tests.kasmina.hosts import loss as job_loss
from tests.kasmina.test_side import assert_equal
from tolaria_bus.kasmina import Garden
from tolaria_bus.kasmina.frozen import FrozenParameters
from tolaria_bus.kasmina.side import Health, learn
from tolaria_bus.tolaria.engine import TrainStep
from tolaria_bus.tolaria.engine.options import StepOptions
from tolaria_bus.tolaria.engine.precision import StepState

CUDA = torch.device("cuda", 0)


class Half(nn.Module):
    """What passes is rounded to half precision, and so is the gradient that comes back."""

    def forward(self, x: Tensor) -> Tensor:
        return x.half().float()


def halved() -> tuple[Training, Any]:
    run = training("linear")
    model: Any = run.model
    model[4] = Half()
    run.grow("a", "norm_scale", slot="2")
    return run, model


def gradients(times: float, health: Health, scale: float | None) -> list[Tensor]:
    run, model = halved()
    place = run.garden._places.at("2")
    torch.manual_seed(5)
    learn(
        model,
        place,
        lambda: job_loss(model, batch(0)) * times,
        health,
        FrozenParameters(model),
        None if scale is None else torch.tensor(scale),
    )
    return [parameter.grad for parameter in model[2].seed.parameters()]


def test_what_would_be_too_small_for_half_precision_is_not_lost() -> None:
    plain = torch.cat([g.flatten() for g in gradients(1.0, Health(), None)])
    lost = torch.cat([g.flatten() for g in gradients(1e-9, Health(), None)])
    kept = torch.cat([g.flatten() for g in gradients(1e-9, Health(), 65536.0 * 1024)])
    assert not lost.any()
    torch.testing.assert_close(kept * 1e9, plain, rtol=1e-2, atol=1e-3)


def test_health_is_that_of_the_gradients_unscaled() -> None:
    scaled, plain = Health(), Health()
    gradients(1.0, scaled, 1024.0)
    gradients(1.0, plain, None)
    assert scaled.numbers() == pytest.approx(plain.numbers(), rel=1e-2)


def test_an_overflow_gives_zeros_lowers_the_seeds_own_scale_and_counts_for_nothing() -> None:
    health = Health()
    limits = []
    for _ in range(40):
        found = gradients(100.0, health, 65536.0)
        steps, bad, *_, limit = health.numbers()
        limits.append(limit)
        if steps:
            break
        assert not any(gradient.any() for gradient in found)
        health = Health(health.numbers())
    assert len(limits) > 2
    assert limits[:-1] == [65536.0 / 2 ** (n + 1) for n in range(len(limits) - 1)]
    assert limits[-1] == limits[-2]
    assert bad == 0
    plain = gradients(100.0, Health(), None)
    for kept, wanted in zip(found, plain, strict=True):
        torch.testing.assert_close(kept, wanted, rtol=1e-2, atol=0.1)


def test_what_is_not_finite_without_a_scale_counts_as_before() -> None:
    health = Health()
    gradients(float("nan"), health, 65536.0)
    assert health.numbers()[:2] == [1, 1]
    for _ in range(3):
        gradients(1e9, health, 2.0)
    # At a scale of 2 it was the scale; at 1 it is the gradient.
    assert health.numbers()[:2] == [3, 3]
    assert health.numbers()[4] == 1.0


@pytest.mark.parametrize("factor", [1.0, 1e6])
def test_the_host_trains_to_the_same_bits_whatever_a_seed_overflows(factor) -> None:
    runs = []
    for grows in (False, True):
        run = training("linear")
        state = StepState(CPU, fp16=True)
        options = StepOptions(amp="fp16", clip_norm=0.5)
        run.step = TrainStep(
            run.model, job_loss, run.manager, CPU, 2, run.side, options=options, state=state
        )
        if grows:
            run.grow("a", "residual_mlp", slot="2")
            run.do("START_TRAINING")
            seed: Any = run.model.get_submodule("2.seed")
            for parameter in seed.parameters():
                nn.init.normal_(parameter, generator=torch.Generator().manual_seed(1))
            seed.register_forward_hook(lambda module, args, out: out * factor)
        run.steps(8)
        runs.append((run, state.state_dict()))
    (alone, scale), (beside, same) = runs
    assert scale == same
    assert_equal(alone.host_tensors(), beside.host_tensors())
    assert beside.side.failed == {}


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_on_cuda_nothing_waits_once_the_frozen_parameters_are_known() -> None:
    model: Any = training("linear").model
    model[4] = Half()
    model[1].requires_grad_(False)
    model.cuda()
    run = Training(model, Garden(model))
    run.grow("a", "norm_scale", slot="2")
    place, health, frozen = run.garden._places.at("2"), Health(device=CUDA), FrozenParameters(model)
    where = tuple(each.cuda() for each in batch(0))
    scale = torch.tensor(1024.0, device=CUDA)
    for wait in (True, False, False):
        torch.cuda.set_sync_debug_mode("default" if wait else "error")
        try:
            learn(model, place, lambda: job_loss(model, where), health, frozen, scale)
        finally:
            torch.cuda.set_sync_debug_mode("default")
    assert health.numbers()[:2] == [3, 0]
