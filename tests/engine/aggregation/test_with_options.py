"""Tasks together with what else a step can do."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch.utils.data import TensorDataset

from tests.engine.aggregation.scene import CPU, Scene, batch, mixed, sample_losses
from tests.engine.test_passes import Backend, named
from tolaria_bus.kasmina import HOST
from tolaria_bus.tolaria.engine import BatchStream
from tolaria_bus.tolaria.engine.activation import checkpoint_activations

HANDLERS = ["none", "pcgrad"]


def stream(samples: int) -> BatchStream:
    x, y = batch(0, samples)
    return BatchStream(TensorDataset(x, y), 4, 0, timeline=1)


def by_label(whole: Any) -> Any:
    """One class for each task: what a sample's shares are doesn't depend on its batch."""
    return torch.nn.functional.one_hot(whole[1], 3).float()


@pytest.mark.parametrize("handler", HANDLERS)
def test_accumulated_batches_are_handled_as_the_one_that_they_make(handler) -> None:
    by_three, at_once = Scene(handler=handler, accumulate=3), Scene(handler=handler)
    for scene in (by_three, at_once):
        scene.garden.says = by_label
    parts = stream(12)
    drawn = [parts.next() for _ in range(3)]
    whole = tuple(torch.cat([part[place] for part in drawn]) for place in (0, 1))
    loss = by_three.step.advance(stream(12), 1)
    torch.testing.assert_close(loss, at_once.step(whole, 0, 1))
    expected = at_once.gradients()
    assert expected
    for name, gradient in by_three.gradients().items():
        torch.testing.assert_close(gradient, expected[name], rtol=1e-4, atol=1e-6)


def test_clipping_comes_behind_the_aggregation() -> None:
    free, clipped = Scene(), Scene(clip_norm=0.01)
    for scene in (free, clipped):
        scene.garden.says = mixed(12, 2)
        scene.step(batch(), 0, 1)
    found, plain = clipped.gradients(), free.gradients()
    owner = free.garden.registry.owner
    for task in (HOST, "a", "b"):
        names = [name for name in plain if owner(name) == task]
        norm = torch.cat([plain[name].flatten() for name in names]).norm()
        assert norm > 0.01
        for name in names:
            torch.testing.assert_close(
                found[name], plain[name] * 0.01 / (norm + 1e-6), rtol=1e-4, atol=1e-8
            )


@pytest.mark.parametrize("handler", HANDLERS)
@pytest.mark.parametrize("amp", ["bf16", "fp16"])
def test_under_autocast_it_is_the_same_to_half_precision(amp, handler) -> None:
    scene, plain = Scene(handler=handler, amp=amp), Scene(handler=handler)
    for each in (scene, plain):
        each.garden.says = mixed(12, 2)
        each.step(batch(), 0, 1)
    found, expected = scene.gradients(), plain.gradients()
    assert found.keys() == expected.keys()
    for name, gradient in found.items():
        assert gradient.dtype == torch.float32
        torch.testing.assert_close(gradient, expected[name], rtol=0.1, atol=2e-3)
    assert not scene.step.passes.fallbacks


@pytest.mark.parametrize("handler", HANDLERS)
def test_gradients_that_overflow_in_fp16_skip_the_step_and_lower_the_scale(handler) -> None:
    factor = torch.ones(12)
    factor[0] = 1e6  # Of a sample that is the host's: a seed's own gradient doesn't overflow.
    scene = Scene(
        handler=handler, amp="fp16", losses=lambda model, of: sample_losses(model, of) * factor
    )
    scene.garden.says = torch.tensor([[1.0, 0.0, 0.0], *[[0.5, 0.25, 0.25]] * 11])
    assert scene.scaler is not None
    before = {name: p.detach().clone() for name, p in scene.parameters().items()}
    scene.step(batch(), 0, 1)
    assert scene.scaler.get_scale() == 2.0**15
    for name, parameter in scene.parameters().items():
        assert torch.equal(parameter, before[name])
    factor[0] = 1.0
    scene.step(batch(), 1, 1)
    assert scene.scaler.get_scale() == 2.0**15
    assert any(not torch.equal(p, before[name]) for name, p in scene.parameters().items())


def test_with_a_handler_the_passes_of_tasks_are_eager_and_without_one_compiled() -> None:
    with named(backend := Backend()):
        compiled = Scene(handler="none", compile="probe")
        plain = Scene(handler="none")
        for position in range(3):
            for scene in (compiled, plain):
                scene.step(batch(position), position, 1)
        assert backend.compiled > 0
        assert not compiled.step.passes.fallbacks
        for name, parameter in compiled.parameters().items():
            assert torch.equal(parameter, plain.parameters()[name])
    with named(backend := Backend()):
        scene, plain = Scene(compile="probe"), Scene()
        for position in range(2):
            for each in (scene, plain):
                each.step(batch(position), position, 1)
        assert (backend.compiled, scene.step.passes.fallbacks) == (0, [])
        scene.step(batch(2), 2, 1, conservative=True)
        assert backend.compiled == 0


@pytest.mark.parametrize("handler", HANDLERS)
def test_activations_that_are_made_again_are_the_same_to_the_bit(handler) -> None:
    scene, plain = Scene(handler=handler), Scene(handler=handler)
    checkpoint_activations(scene.model, "[25]")
    for position in range(2):
        for each in (scene, plain):
            each.step(batch(position), position, 1)
    for name, parameter in scene.parameters().items():
        assert torch.equal(parameter, plain.parameters()[name])


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("handler", [*HANDLERS, "mgda", "config"])
def test_on_cuda_it_comes_to_the_same(handler) -> None:
    device = torch.device("cuda", 0)
    here, there = Scene(handler=handler), Scene(handler=handler, device=device)
    for position in range(3):
        here.step(batch(position), position, 1)
        there.step(batch(position), position, 1)
    for name, parameter in there.parameters().items():
        torch.testing.assert_close(parameter.to(CPU), here.parameters()[name], rtol=1e-3, atol=1e-4)
    for one, other in zip(here.tasks.watch.readings(), there.tasks.watch.readings(), strict=True):
        assert one.conflicts == other.conflicts
        assert one.share == pytest.approx(other.share, rel=1e-3)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("handler", HANDLERS)
def test_on_cuda_a_step_waits_for_nothing(handler) -> None:
    scene = Scene(handler=handler, device=torch.device("cuda", 0))
    whole = tuple(each.pin_memory() for each in batch())
    scene.step(whole, 0, 1)
    torch.cuda.set_sync_debug_mode("error")
    try:
        scene.step(whole, 1, 1)
    finally:
        torch.cuda.set_sync_debug_mode("default")
