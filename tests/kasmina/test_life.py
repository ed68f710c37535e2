"""A seed's whole life in a host that trains, gate by gate."""

from __future__ import annotations

import gc
import json
import weakref
from typing import Any

import pytest
import torch
from torch import nn

from tests.kasmina.hosts import HOSTS, Training, batch, training
from tolaria_bus.kasmina import (
    HOST,
    Garden,
    Limits,
    Parameter,
    SeedRefused,
    SlotShape,
    blueprints,
)
from tolaria_bus.kasmina.blend import ramp, task_weight
from tolaria_bus.kasmina.lifecycle import stage_name
from tolaria_bus.leyline import SeedLifecycleStage as Stage

WIDE = Limits(impact=10.0, loss_increase=10.0)


def stage(run: Training, seed_id: str = "a") -> str:
    return stage_name(run.garden.stage(seed_id))


@pytest.mark.parametrize("slot", [True, False], ids=["slot", "hook"])
@pytest.mark.parametrize("kind", HOSTS)
def test_a_seed_goes_the_whole_way_and_becomes_a_part_of_the_host(kind, slot) -> None:
    _, name, path, blueprint = HOSTS[kind]
    run = training(kind, slot=slot, limits=WIDE)
    run.to_probation(blueprint, slot=name if slot else path)
    run.do("FINE_TUNE")
    assert run.garden.task_weights() == {"a": 1.0}
    passed = run.do("FOSSILIZE")
    assert passed.reading is not None
    assert passed.reading.passed
    assert set(passed.reading.measures) == {"loss_with", "loss_without", "impact"}
    assert stage(run) == "FOSSILIZED"
    grown = [n for n, _ in run.model.named_parameters() if "seed." in n]
    assert grown
    assert {run.garden.registry.owner(n) for n in grown} == {HOST}
    before = {n: p.detach().clone() for n, p in run.model.named_parameters()}
    run.steps(1)
    assert all(not torch.equal(before[n], p) for n, p in run.model.named_parameters())
    (ended,) = run.garden.terminate()
    assert stage_name(ended.after) == "TERMINATED"


def test_blending_moves_the_output_from_the_hosts_to_the_seeds() -> None:
    run = training("linear", limits=WIDE)
    run.grow("a", "residual_mlp")
    run.do("START_TRAINING")
    run.steps(12)
    slot: Any = run.model.get_submodule("2")
    x = torch.randn(3, 8)
    assert slot(x) is x
    run.do("START_GRAFTING", blend_steps=4)
    shares = []
    for _ in range(4):
        run.steps(1)
        out, whole = slot(x).detach(), slot.seed(x).detach()
        share = float(((out - x) / (whole - x)).median())
        shares.append(share)
        torch.testing.assert_close(out, x + share * (whole - x), rtol=1e-4, atol=1e-5)
    assert shares == pytest.approx([ramp(n, 4) for n in (1, 2, 3, 4)], abs=1e-4)
    assert torch.equal(slot(x), slot.seed(x))


def test_the_ramp_is_a_stretched_logistic_curve() -> None:
    assert [ramp(n, 8) for n in (-1, 0, 8, 9)] == [0.0, 0.0, 1.0, 1.0]
    assert ramp(4, 8) == pytest.approx(0.5)
    # By hand: (S(-2) - S(-4)) / (1 - 2 S(-4)), with S(-2) = 0.1192029, S(-4) = 0.0179862.
    assert ramp(2, 8) == pytest.approx((0.1192029 - 0.0179862) / (1 - 2 * 0.0179862), rel=1e-6)
    values = [ramp(n, 100) for n in range(101)]
    assert values == sorted(values)
    assert all(a + b == pytest.approx(1) for a, b in zip(values, values[::-1], strict=True))


def test_each_stage_has_its_weight() -> None:
    weights = {stage_name(number): task_weight(number, 0.3) for number in Stage.values() if number}
    assert weights == {
        "DORMANT": 0,
        "GERMINATED": 0.01,
        "TRAINING": 0,
        "BLENDING": 0.3,
        "SHADOWING": 0.5,
        "PROBATIONARY": 0.5,
        "FOSSILIZED": 0,
        "CULLED": 0,
        "EMBARGOED": 0,
        "RESETTING": 0,
        "TERMINATED": 0,
    }
    assert task_weight(Stage.SEED_STAGE_PROBATIONARY, 1.0, fine_tuning=True) == 1


def refused(run: Training, operation: str, gate: str) -> str:
    before = run.garden.structure()
    with pytest.raises(SeedRefused) as error:
        run.do(operation)
    assert error.value.code == "gate_failed"
    assert error.value.reading is not None
    assert error.value.reading.name == gate
    assert run.garden.structure() == before
    return error.value.reason


def test_every_gate_refuses_what_it_is_there_for_and_then_nothing_has_changed() -> None:
    run = training("linear", limits=Limits(scale=1.000001, impact=-0.9))
    run.grow("a", "residual_mlp")
    run.do("START_TRAINING")
    run.steps(3)
    why = refused(run, "START_GRAFTING", "G1_GRADIENT_HEALTH")
    assert "trained for 3 steps; needed: 10" in why
    run.steps(9)
    run.do("START_GRAFTING", blend_steps=5)
    run.steps(2)
    assert "blending goes on" in refused(run, "STABILIZE", "G2_STABILITY")
    run.steps(3)
    run.do("STABILIZE")
    run.steps(1)
    assert "allowed: 0.999999 to" in refused(run, "EVALUATE", "G3_INTERFACE")
    run.garden._limits = Limits(impact=-0.9)
    run.do("EVALUATE")
    run.steps(1)
    assert "without it" in refused(run, "FOSSILIZE", "G4_SYSTEM_IMPACT")
    assert run.do("CULL").removed


def test_a_rising_loss_and_a_sick_gradient_close_their_gates() -> None:
    from tolaria_bus.kasmina.gates import gradient_health, interface, stability

    limits = Limits()
    assert "rose from 1 to 2" in stability(1.0, 1.0, 2.0, limits).why
    assert stability(1.0, -1.0, -0.6, limits).passed  # Of a loss that is below zero, too.
    assert stability(1.0, 1.0, float("nan"), limits).why
    assert "wasn't finite in 1 of 20" in gradient_health(20, 1, 1.0, 1.0, limits).why
    assert "gradient_norm is 0" in gradient_health(20, 0, 0.0, 1.0, limits).why
    assert gradient_health(20, 0, float("nan"), 1.0, limits).why
    assert "didn't use the slot" in interface([], limits).why
    one = torch.ones(2, 3)
    assert "another shape" in interface([(one, one[:1])], limits).why
    assert interface([(one, one * float("inf"))], limits).why
    assert "scale is 50" in interface([(one, one * 50)], limits).why


def test_a_culled_seed_leaves_nothing_behind_a_module_and_its_slot_is_closed_for_a_while() -> None:
    run = training("conv2d", slot=False, limits=WIDE)
    before = [name for name, _ in run.model.named_parameters()]
    run.to_probation("bottleneck", slot="0")
    holder = run.model.get_submodule("0")
    seed: Any = holder.tolaria_seed
    refs = [weakref.ref(seed)]
    refs += [weakref.ref(p) for p in seed.parameters()]
    refs += [weakref.ref(p.grad) for p in seed.parameters()]
    refs += [weakref.ref(run.manager.optimizer.state[p]["exp_avg"]) for p in seed.parameters()]
    assert len(holder._forward_hooks) == 1
    del seed
    run.do("CULL", embargo_steps=5)
    gc.collect()
    assert [ref() for ref in refs] == [None] * len(refs)
    assert not holder._forward_hooks
    assert [name for name, _ in run.model.named_parameters()] == before
    assert run.manager.group_names() == ["host"]
    assert run.garden.structure()["seeds"][0]["health"] == []
    culled_at = run.position
    with pytest.raises(SeedRefused, match="which has the seed 'a'"):
        run.garden.plan_germinate("b", "bottleneck", slot="0")
    run.steps(4)
    assert stage(run) == "EMBARGOED"
    (state,) = run.garden.seed_states(run.position)
    assert state.metrics["embargo_left"] == 1
    run.steps(1)
    assert run.position == culled_at + 5
    assert [(stage_name(t.before), stage_name(t.after)) for t in run.told] == [
        ("CULLED", "EMBARGOED"),
        ("EMBARGOED", "RESETTING"),
        ("RESETTING", "DORMANT"),
    ]
    assert run.told[-1].reading is not None
    assert run.told[-1].reading.measures == {"modules": 0, "grafts": 0, "owned": 0}
    run.grow("a", "bottleneck", slot="0")


def test_what_is_left_of_a_seed_keeps_its_slot_closed() -> None:
    run = training("conv2d")
    run.grow("a", "residual_conv")
    run.do("CULL", embargo_steps=0)
    run.garden.registry.give("a", ["forgotten"])
    run.steps(3)
    assert stage(run) == "RESETTING"
    run.garden.registry.release("a")
    run.steps(1)
    assert stage(run) == "DORMANT"


def test_a_cancelled_seed_is_gone_at_once() -> None:
    run = training("linear")
    run.grow("a", "residual_mlp")
    run.do("START_TRAINING")
    run.steps(1)
    passed = run.do("CANCEL")
    assert stage_name(passed.after) == "DORMANT"
    assert passed.reading is not None
    assert passed.reading.name == "G5_RESET"
    run.grow("a", "low_rank")


FOLDED = [
    ("conv2d", "0", "low_rank"),
    ("conv2d", "0", "channel_scale"),
    ("linear", "1", "low_rank"),
    ("linear", "1", "channel_scale"),
]


@pytest.mark.parametrize(("kind", "path", "blueprint"), FOLDED)
def test_a_linear_seed_behind_a_linear_layer_is_folded_into_its_weights(
    kind, path, blueprint
) -> None:
    run = training(kind, slot=False, limits=WIDE)
    names = [name for name, _ in run.model.named_parameters()]
    run.to_probation(blueprint, slot=path)
    run.model.eval()
    with torch.no_grad():
        before = run.model(batch(1)[0])
    run.model.train()
    passed = run.do("FOSSILIZE")
    assert passed.folded
    assert [name for name, _ in run.model.named_parameters()] == names
    assert not run.model.get_submodule(path)._forward_hooks
    run.model.eval()
    with torch.no_grad():
        torch.testing.assert_close(run.model(batch(1)[0]), before, rtol=1e-5, atol=1e-6)
    run.model.train()
    # Its slot is the host's own again, and takes another seed.
    run.grow("b", blueprint, slot=path)


def test_what_is_not_linear_or_not_to_be_folded_stays_as_a_module() -> None:
    for blueprint, fold in (("residual_mlp", 1), ("low_rank", 0)):
        run = training("linear", slot=False, limits=WIDE)
        run.to_probation(blueprint, slot="1")
        assert not run.do("FOSSILIZE", fold=fold).folded
        assert run.model.get_submodule("1.tolaria_seed") is not None


@pytest.mark.parametrize("slot", [True, False], ids=["slot", "hook"])
def test_a_life_that_is_written_down_and_rebuilt_at_any_point_goes_on_with_the_same_bits(
    slot,
) -> None:
    def live(cut: int) -> dict[str, torch.Tensor]:
        run = training("linear", slot=slot, limits=WIDE)
        events = {
            2: lambda r: r.grow("a", "residual_mlp", slot="2" if slot else "1"),
            3: lambda r: r.do("START_TRAINING"),
            14: lambda r: r.do("START_GRAFTING", blend_steps=6),
            20: lambda r: r.do("STABILIZE"),
            22: lambda r: r.do("EVALUATE"),
            24: lambda r: r.do("CULL", embargo_steps=3),
            28: lambda r: r.grow("b", "low_rank", slot="2" if slot else "1"),
        }
        for position in range(32):
            if position == cut:
                again = training("linear", slot=slot, limits=WIDE)
                again.garden.rebuild(json.loads(json.dumps(run.garden.structure())))
                again.model.load_state_dict(run.model.state_dict())
                again.manager.load(*run.manager.export())
                again.position = run.position
                run = again
            if position in events:
                events[position](run)
            run.steps(1)
        return {n: t.clone() for n, t in run.model.state_dict().items()}

    whole = live(-1)
    for cut in (3, 8, 15, 17, 23, 25):
        found = live(cut)
        assert found.keys() == whole.keys()
        assert all(torch.equal(found[name], whole[name]) for name in whole), cut


def test_a_structure_of_the_first_version_is_understood() -> None:
    run = training("linear")
    entry = {
        "seed_id": "a",
        "slot": "2",
        "blueprint_id": "low_rank",
        "parameters": {"rank": 2},
        "init_seed": 5,
        "stage": "SEED_STAGE_GERMINATED",
        "born_step": 3,
        "born_epoch": 0,
    }
    run.garden.rebuild({"version": 1, "seeds": [entry]})
    assert stage(run) == "GERMINATED"


class Doubles(nn.Module):
    """A block of a user's own, which returns its state as well."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(8, 8)

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, str]:
        return self.layer(x), "state"


def test_places_are_found_by_path_told_by_class_or_declared() -> None:
    model = nn.ModuleDict(
        {
            "blocks": nn.Sequential(nn.Linear(8, 8), nn.Sequential(nn.ReLU(), nn.Linear(8, 5))),
            "own": Doubles(),
            "empty": nn.Sequential(),
            "list": nn.ModuleList([nn.Linear(1, 1)]),
        }
    )
    garden = Garden(model, {"own": SlotShape("linear", 8)})
    assert [(s.name, s.kind, s.features) for s in garden.slots()] == [("own", "linear", 8)]
    # The seed of a Sequential is its last child's.
    plan = garden.plan_germinate("a", "low_rank", slot="blocks")
    grown = garden.germinate(plan, seed=0)
    assert grown.names[0] == "blocks.1.1.tolaria_seed.down.weight"
    with pytest.raises(SeedRefused, match="has the seed 'a'"):
        garden.plan_germinate("b", "low_rank", slot="blocks.1.1")
    for slot, words in [
        ("nowhere", r"own \(linear\).* or the path of a module that returns a tensor"),
        ("list", "or the path of a module"),
        ("empty", "or the path of a module"),
        ("blocks.1.0", "a ReLU: .* must declare it in seed_slots, as"),
    ]:
        with pytest.raises(SeedRefused, match=words) as error:
            garden.plan_germinate("b", "low_rank", slot=slot)
        assert error.value.code == "unknown_slot"
    for wrong in ({"own": ("graph", 3)}, {"own": ("linear", 0)}, ["blocks.1.0"], ["x"]):
        with pytest.raises(ValueError, match=r"own|x|blocks"):
            Garden(model, wrong)


def test_a_seed_stands_behind_a_module_that_returns_a_tuple() -> None:
    model = Doubles()
    holder = nn.ModuleDict({"own": model})
    garden = Garden(holder, {"own": ("linear", 8)})
    garden.germinate(garden.plan_germinate("a", "low_rank"), seed=0)
    structure = garden.structure()
    structure["seeds"][0]["stage"] = "SEED_STAGE_SHADOWING"
    garden.rebuild(structure)
    out, state = model(torch.ones(2, 8))
    assert state == "state"
    assert torch.equal(out, model.layer(torch.ones(2, 8)))
    assert len(model._forward_hooks) == 1


class Entry:
    """What importlib.metadata gives for an entry point."""

    def __init__(self, name: str, value: object) -> None:
        self.name, self.value, self._loads = name, f"theirs:{name}", value

    def load(self) -> object:
        if isinstance(self._loads, Exception):
            raise self._loads
        return self._loads


def test_a_package_adds_blueprints_and_a_broken_one_is_refused_by_name(monkeypatch) -> None:
    class Shift(nn.Module):
        def __init__(self, features: int, kind: str, *, start: float) -> None:
            super().__init__()
            self.shift = nn.Parameter(torch.full((features,), start))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x + self.shift

    theirs = blueprints.Blueprint(
        ("linear",), Shift, {"start": Parameter(0.0, 0.0, 1.0, whole=False)}
    )
    entries = [
        Entry("shift", theirs),
        Entry("odd", 3),
        Entry("broken", ImportError("no\nsuch")),
        Entry("low_rank", 3),
    ]
    monkeypatch.setattr(blueprints, "entry_points", lambda group: entries)
    blueprints._added.cache_clear()
    try:
        assert blueprints.known()[-3:] == ("shift", "odd", "broken")
        garden = Garden(nn.Sequential(nn.Linear(3, 4)))
        plan = garden.plan_germinate("a", "shift", slot="0", parameters={"start": 0.5})
        grown = garden.germinate(plan, seed=0)
        assert grown.reading is not None
        assert grown.reading.measures["deviation"] == pytest.approx(0.5, abs=1e-6)
        for name, words in [("odd", "is a int; it must be"), ("broken", "ImportError: no such")]:
            with pytest.raises(SeedRefused, match=words):
                blueprints.find(name)
        assert blueprints.find("low_rank") is blueprints.LIBRARY["low_rank"]
    finally:
        blueprints._added.cache_clear()
        blueprints._load.cache_clear()
