"""The gradient of a step with seeds: each parameter gets what its owner's tasks say."""

from __future__ import annotations

import math
from typing import Any, ClassVar

import pytest
import torch
from torch import Tensor, nn

from tests.engine.aggregation.scene import (
    CPU,
    Scene,
    batch,
    flat,
    loss,
    mixed,
    sample_losses,
    shared,
)
from tests.engine.aggregation.vectors import paper
from tolaria_bus.tolaria.engine import JobError, TrainStep
from tolaria_bus.tolaria.engine.aggregation.pcgrad import orders
from tolaria_bus.tolaria.engine.seeding import Domain, mix
from tolaria_bus.tolaria.engine.side import SideTraining

STAGES = [("START_GRAFTING", "FINE_TUNE"), ("STABILIZE",), ("EVALUATE", "STABILIZE")]
POSITION = 7


@pytest.mark.parametrize("stages", STAGES)
def test_without_a_handler_every_parameter_gets_the_gradient_of_the_weighted_losses(stages) -> None:
    scene = Scene(stages, handler="none")
    shares = mixed(12, len(stages))
    by_task, weights = scene.by_task(batch(), shares), scene.weights()
    scene.garden.says = shares
    scene.step(batch(), POSITION, 1)
    for name, gradient in scene.gradients().items():
        expected = sum(w * g[name] for w, g in zip(weights, by_task, strict=True))
        torch.testing.assert_close(gradient.double(), expected, rtol=1e-4, atol=1e-7)


@pytest.mark.parametrize("stages", STAGES)
def test_pcgrad_is_the_papers_on_shared_parameters_and_a_seeds_own_get_its_task_alone(
    stages,
) -> None:
    scene = Scene(stages)
    count = 1 + len(stages)
    shares = mixed(12, len(stages))
    by_task, weights = scene.by_task(batch(), shares), scene.weights()
    scene.garden.says = shares
    scene.step(batch(), POSITION, 2)
    found = {name: g.double() for name, g in scene.gradients().items()}

    names = shared(scene)
    generator = torch.Generator().manual_seed(mix(3, Domain.AGGREGATION, 2, POSITION))
    rows = [flat(each, names) for each in by_task]
    projected = paper(rows, orders(count, generator))
    expected = sum(w * g for w, g in zip(weights, projected, strict=True))
    torch.testing.assert_close(flat(found, names), expected, rtol=1e-4, atol=1e-7)
    for task, seed_id in enumerate(scene.garden.tasks, 1):
        for name in scene.garden.registry.of(seed_id):
            assert torch.equal(found[name].float(), by_task[task][name].float())
    gram = torch.stack(rows) @ torch.stack(rows).T
    assert bool((gram < 0).any()), "no conflict: this scene tells nothing"


def test_a_handler_of_torchjd_gets_the_weighted_gradients() -> None:
    scene = Scene(handler="sum")
    other = Scene(handler="none")
    for each in (scene, other):
        each.garden.says = mixed(12, 2)
        each.step(batch(), POSITION, 1)
    found, expected = scene.gradients(), other.gradients()
    for name in shared(scene):
        torch.testing.assert_close(found[name], expected[name], rtol=1e-4, atol=1e-7)
    assert shared(scene)


@pytest.mark.parametrize("handler", ["mgda", "config"])
def test_torchjds_aggregate_is_what_the_optimizer_gets(handler) -> None:
    import torchjd.aggregation

    scene = Scene(handler=handler)
    shares = mixed(12, 2)
    names, weights = shared(scene), torch.tensor(scene.weights(), dtype=torch.float64)
    rows = torch.stack([flat(each, names) for each in scene.by_task(batch(), shares)])
    scene.garden.says = shares
    scene.step(batch(), POSITION, 1)
    name = {"mgda": "MGDA", "config": "ConFIG"}[handler]
    expected = getattr(torchjd.aggregation, name)()(rows * weights.unsqueeze(1))
    found = flat({n: g.double() for n, g in scene.gradients().items()}, names)
    torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-6)


def test_where_no_seed_is_a_task_the_step_is_the_plain_one_to_the_bit() -> None:
    scene = Scene(("GERMINATE", "START_TRAINING"))
    plain = Scene(("GERMINATE", "START_TRAINING"))
    side = SideTraining(plain.garden, plain.model, loss)
    step = TrainStep(plain.model, loss, plain.manager, CPU, 3, side)
    for position in range(4):
        one = scene.step(batch(position), position, 1)
        assert torch.equal(one, step(batch(position), position, 1))
    for name, parameter in scene.parameters().items():
        assert torch.equal(parameter, plain.parameters()[name])


def test_a_batch_that_is_all_the_hosts_gives_the_plain_gradient() -> None:
    scene = Scene(handler="none")
    scene.garden.says = {}
    scene.without_gradients()
    loss(scene.model, batch()).backward()  # type: ignore[no-untyped-call]
    plain = scene.gradients()
    found = scene.step(batch(), 0, 1)
    for name, gradient in scene.gradients().items():
        torch.testing.assert_close(gradient, plain[name])
    assert not found.requires_grad


def test_the_loss_that_is_told_is_the_plain_mean() -> None:
    for handler in ("none", "pcgrad"):
        scene = Scene(handler=handler)
        expected = loss(scene.model, batch()).detach()
        torch.testing.assert_close(scene.step(batch(), 0, 1), expected)


def test_what_the_batch_carries_comes_before_what_kasmina_says() -> None:
    x, y = batch()
    whole = {"x": x, "y": y, "attribution": {"a": torch.ones(12)}}
    scene = Scene(handler="none")
    scene.garden.says = {"b": torch.ones(12)}
    scene.step(whole, 0, 1)
    assert [r.share for r in scene.tasks.watch.readings()] == [0.0, 1.0, 0.0]


def not_finite_for(row: int) -> Any:
    """One sample's gradient overflows, where there is any of it."""

    def losses(model: nn.Module, batch: Any) -> Tensor:
        found = sample_losses(model, batch)
        huge = torch.ones_like(found)
        huge[row] = 1e38
        found.register_hook(lambda gradient: gradient * huge * huge)  # type: ignore[no-untyped-call]
        return found

    return losses


@pytest.mark.parametrize("handler", ["pcgrad", "config"])
def test_a_gradient_that_is_not_finite_is_left_out_and_counted(handler) -> None:
    # Sample 3 is the first seed's alone, so that its task alone is spoilt.
    shares = torch.zeros(12, 3)
    shares[:, 0], shares[6:, 0], shares[6:, 2] = 1.0, 0.5, 0.5
    shares[3] = torch.tensor([0.0, 1.0, 0.0])
    spoilt = Scene(handler=handler, losses=not_finite_for(3))
    spoilt.garden.says = shares
    spoilt.step(batch(), POSITION, 1)
    without = Scene(handler=handler)
    empty = shares.clone()
    empty[3, 1] = 1.0
    without.garden.says = empty
    weights = without.garden.task_weights()
    without.garden.task_weights = lambda: {**weights, "a": 0.0}  # type: ignore[method-assign]
    without.step(batch(), POSITION, 1)
    found, expected = spoilt.gradients(), without.gradients()
    for name, gradient in found.items():
        owner = spoilt.garden.registry.owner(name)
        if owner == "a":
            assert not gradient.any()
        else:
            torch.testing.assert_close(gradient, expected[name], rtol=1e-4, atol=1e-7)
    assert [r.left_out for r in spoilt.tasks.watch.readings()] == [0, 1, 0]
    assert [r.left_out for r in without.tasks.watch.readings()] == [0, 0, 0]


def test_samples_with_no_shares_are_the_hosts_and_counted() -> None:
    scene = Scene()
    shares = mixed(12, 2)
    shares[2] = float("nan")
    shares[5, 1] = -1.0
    scene.garden.says = shares
    scene.step(batch(), 0, 1)
    scene.step(batch(), 1, 1)
    assert scene.tasks.watch.refused == 4
    assert all(torch.isfinite(p).all() for p in scene.model.parameters())


def test_what_a_handler_draws_is_seeded_by_the_runs_seed_the_timeline_and_the_position() -> None:
    class Notes:
        name = "notes"
        scales = True
        seeds: ClassVar[list[int]] = []

        def coefficients(self, gram: Tensor, seed: int) -> Tensor:
            self.seeds.append(seed)
            return torch.ones(len(gram), dtype=torch.float64)

    scene = Scene()
    scene.tasks._handler = Notes()
    places = [(1, 0), (1, 1), (2, 1)]
    for timeline, position in places:
        scene.step(batch(), position, timeline)
    assert Notes.seeds == [mix(3, Domain.AGGREGATION, *place) for place in places]


def test_readings_tell_of_each_task() -> None:
    scene = Scene()
    shares = mixed(12, 2)
    by_task = scene.by_task(batch(), shares)
    scene.garden.says = shares
    scene.step(batch(), POSITION, 1)
    names = shared(scene)
    rows = torch.stack([flat(each, names) for each in by_task])
    readings = scene.tasks.watch.readings()
    assert [r.task for r in readings] == ["host", "a", "b"]
    for task, reading in enumerate(readings):
        assert reading.share == pytest.approx(float(shares[:, task].mean()), rel=1e-5)
        assert reading.norm == pytest.approx(float(rows[task].norm()), rel=1e-4)
        assert reading.conflicts == int(bool((rows @ rows[task] < 0).any()))
    assert math.isnan(readings[0].own_norm)
    own = scene.garden.registry.of("a")
    assert readings[1].own_norm == pytest.approx(
        float(flat(by_task[1], list(own)).norm()), rel=1e-4
    )
    assert readings[1].mask == sum(scene.parameters()[name].numel() for name in own)
    assert readings[0].mask == sum(scene.parameters()[name].numel() for name in names)
    # Counts go on where a seed stays a task, and begin with one that becomes it.
    before = {r.task: r.conflicts for r in readings}
    scene.do("EVALUATE", "a")
    scene.step(batch(), POSITION + 1, 1)
    assert all(r.conflicts >= before[r.task] for r in scene.tasks.watch.readings())


def test_without_a_handler_nobody_knows_a_tasks_norm() -> None:
    scene = Scene(("STABILIZE",), handler="none")
    assert scene.tasks.watch.readings() == []
    scene.step(batch(), 0, 1)
    host, seed = scene.tasks.watch.readings()
    assert math.isnan(host.norm)
    assert math.isnan(seed.norm)
    assert seed.own_norm > 0
    assert seed.mask > 0


def test_in_conservative_mode_there_is_no_handler() -> None:
    careful, plain = Scene(), Scene(handler="none")
    for position in range(3):
        careful.step(batch(position), position, 1, conservative=True)
        plain.step(batch(position), position, 1)
    for name, parameter in careful.parameters().items():
        assert torch.equal(parameter, plain.parameters()[name])


@pytest.mark.parametrize(
    ("losses", "words"),
    [
        (loss, r"a tensor of shape \(\), gradient: True; they must be .* \(samples, ...\)"),
        (lambda model, batch: [1.0], "are a list"),
        (lambda model, batch: torch.ones(12), r"shape \(12,\), gradient: False"),
    ],
)
def test_losses_of_samples_that_are_none_are_an_error_of_one_line(losses, words) -> None:
    scene = Scene(("STABILIZE",), losses=lambda model, batch: losses(model, batch))
    before = scene.model[0].weight.detach().clone()
    with pytest.raises(JobError, match=words):
        scene.step(batch(), 0, 1)
    assert torch.equal(scene.model[0].weight, before)


def test_an_attribution_of_a_wrong_shape_is_an_error_of_one_line() -> None:
    scene = Scene(("STABILIZE",))
    scene.garden.says = torch.ones(12, 5)
    with pytest.raises(JobError, match=r"Kasmina's attribute_batch\(batch\) is a tensor of shape"):
        scene.step(batch(), 0, 1)


def test_losses_of_several_dimensions_are_each_samples_mean() -> None:
    def per_class(model: nn.Module, batch: Any) -> Tensor:
        return sample_losses(model, batch).unsqueeze(1) * torch.tensor([0.5, 1.5])

    one, other = Scene(losses=per_class), Scene()
    for scene in (one, other):
        scene.garden.says = mixed(12, 2)
        scene.step(batch(), 0, 1)
    for name, parameter in one.parameters().items():
        torch.testing.assert_close(parameter, other.parameters()[name])
