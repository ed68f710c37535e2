"""The probe: how much each seed moved the features of its slot."""

from __future__ import annotations

import pytest
import torch

from tests.engine.aggregation.scene import (
    Scene,
    batch,
)


def test_the_probe_measures_by_how_much_a_seed_moved_its_slots_features() -> None:
    scene = Scene(("START_GRAFTING", "STABILIZE"), handler="none")
    scene.garden.advance(1)
    model, x = scene.model, batch()[0]
    alpha = scene.garden.task_weights()["a"]
    assert 0 < alpha < 1
    first = model[1](model[0](x))
    moved = alpha * (model[2].seed(first) - first).norm(dim=1) / first.norm(dim=1)
    second = model[4](model[3](model[2](first)))
    whole = (model[5].seed(second) - second).norm(dim=1) / second.norm(dim=1)
    with scene.garden.probe() as probe:
        model(x)
    found = probe.shares(12)
    torch.testing.assert_close(found["a"], (moved / (1 + moved + whole)).detach())
    torch.testing.assert_close(found["b"], (whole / (1 + moved + whole)).detach())
    # Nothing is kept of a pass outside.
    model(x)
    assert model[2].graft.tap is None
    scene.step(batch(), 0, 1)
    host = 1 - sum(float(each.mean()) for each in found.values())
    assert scene.tasks.watch.readings()[0].share == pytest.approx(host, rel=1e-5)


def test_a_seed_that_is_still_the_identity_has_no_share_and_one_without_samples_first_a_mean() -> (
    None
):
    scene = Scene(("STABILIZE", "STABILIZE"))
    with torch.no_grad():
        for parameter in scene.model[2].seed.parameters():
            parameter.zero_()
    with scene.garden.probe() as probe:
        scene.model(batch()[0])
    assert not probe.shares(12)["a"].any()
    spread = probe.shares(4)["b"]
    assert spread.shape == (4,)
    assert bool((spread == spread[0]).all())
    assert spread[0] > 0


def test_a_slot_that_nothing_passed_through_has_no_share() -> None:
    scene = Scene()
    with scene.garden.probe() as probe:
        pass
    assert probe.shares(12) == {}
