import gc
import json
import weakref
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional as F  # noqa: N812

from tolaria_bus.kasmina import HOST, Garden, Limits, Moment, SeedRefused, SeedSlot
from tolaria_bus.leyline import SeedLifecycleStage as Stage
from tolaria_bus.leyline import SeedOperation as Operation
from tolaria_bus.tolaria.engine import OptimizerManager, TrainStep

CPU = torch.device("cpu")


def host() -> Any:
    torch.default_generator.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(1, 4, 3, padding=1),
        SeedSlot(4),
        nn.BatchNorm2d(4),
        nn.ReLU(),
        SeedSlot(4),
        nn.Flatten(),
        nn.Dropout(0.2),
        nn.Linear(64, 6),
        SeedSlot(6, kind="linear"),
        nn.Linear(6, 3),
    )


def grow(garden: Garden, seed_id: str, blueprint: str = "residual_conv", **options: Any) -> Any:
    step = options.pop("step", 0)
    return garden.germinate(garden.plan_germinate(seed_id, blueprint, **options), seed=1, step=step)


def cull(garden: Garden, seed_id: str) -> tuple[str, ...]:
    """Cull a seed, with no embargo, and let time pass until its slot is free."""
    plan = garden.plan(seed_id, Operation.SEED_OP_CULL, {"embargo_steps": 0})
    gone = garden.operate(plan, Moment(step=9)).removed
    garden.advance(9)
    return gone


def refused(code: str, call: Any) -> str:
    with pytest.raises(SeedRefused) as error:
        call()
    assert error.value.code == code
    assert "\n" not in error.value.reason
    return error.value.reason


def loss(model: nn.Module, batch: Any) -> torch.Tensor:
    return F.cross_entropy(model(batch[0]), batch[1])


def batch(position: int) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(position)
    return torch.randn(8, 1, 4, 4, generator=generator), torch.arange(8) % 3


def test_slots_are_known_by_their_place_in_the_model():
    garden = Garden(host())
    assert [(s.name, s.kind, s.features, s.seed_id) for s in garden.slots()] == [
        ("1", "conv2d", 4, ""),
        ("4", "conv2d", 4, ""),
        ("8", "linear", 6, ""),
    ]


def test_a_seed_grows_in_the_first_free_slot_that_fits_or_where_it_is_told():
    model = host()
    garden = Garden(model)
    assert grow(garden, "a").slot == "1"
    assert grow(garden, "b", "depthwise").slot == "4"
    grown = grow(garden, "c", "low_rank", slot="8", parameters={"rank": 2})
    assert grown.names == ("8.seed.down.weight", "8.seed.up.weight")
    assert grown.parameter_count == 24
    assert dict(model.named_parameters())["8.seed.up.weight"] is grown.parameters[grown.names[1]]
    assert [s.seed_id for s in garden.slots()] == ["a", "b", "c"] == list(garden.seed_ids())


def test_ownership_is_known_by_name():
    model = host()
    garden = Garden(model)
    grown = grow(garden, "a")
    owners = {name: garden.registry.owner(name) for name, _ in model.named_parameters()}
    assert {name for name, owner in owners.items() if owner == "a"} == set(grown.names)
    assert owners["0.weight"] == HOST
    with pytest.raises(ValueError, match="owned already"):
        garden.registry.give("b", grown.names)
    cull(garden, "a")
    assert garden.registry.owner(grown.names[0]) == HOST


def trained(germinate_at: int | None, cull_at: int | None = None) -> dict[str, torch.Tensor]:
    model = host()
    garden = Garden(model)
    manager = OptimizerManager(None, model)
    step = TrainStep(model, loss, manager, CPU, seed=2)
    tensors = {}
    for position in range(9):
        if position == germinate_at:
            manager.add_parameters("seed:a", grow(garden, "a").parameters)
        if position == cull_at:
            manager.remove_group("seed:a")
            cull(garden, "a")
        tensors[f"loss {position}"] = step(batch(position), position, 0)
        for name, parameter in model.named_parameters():
            if garden.registry.owner(name) == HOST:
                assert parameter.grad is not None
                tensors[f"gradient {position} {name}"] = parameter.grad.clone()
    weights = {n: t.clone() for n, t in model.state_dict().items() if ".seed." not in n}
    return {**tensors, **weights}


@pytest.mark.parametrize("cull_at", [None, 6])
def test_a_germinated_seed_changes_no_bit_of_the_hosts_training(cull_at):
    without, with_seed = trained(None), trained(3, cull_at)
    assert without.keys() == with_seed.keys()
    assert all(torch.equal(without[name], with_seed[name]) for name in without)


def test_growing_draws_nothing_from_the_global_generator():
    garden = Garden(host())
    before = torch.default_generator.get_state()
    grow(garden, "a")
    assert torch.equal(torch.default_generator.get_state(), before)


def test_first_weights_depend_on_the_runs_seed_and_on_the_seeds_id_alone():
    def weight(seed_id: str, seed: int, disturb: int = 0) -> torch.Tensor:
        garden = Garden(host())
        torch.rand(disturb)
        grown = garden.germinate(garden.plan_germinate(seed_id, "depthwise"), seed=seed)
        return grown.parameters["1.seed.depthwise.weight"].detach()

    assert torch.equal(weight("a", 1), weight("a", 1, disturb=3))
    assert not torch.equal(weight("a", 1), weight("b", 1))
    assert not torch.equal(weight("a", 1), weight("a", 2))


def test_a_seed_has_its_hosts_type_and_mode():
    model = host().double().eval()
    grown = grow(Garden(model), "a")
    assert {p.dtype for p in grown.parameters.values()} == {torch.float64}
    assert not model[1].seed.training


def test_a_cull_leaves_nothing():
    model = host()
    names = [name for name, _ in model.named_parameters()]
    keys = list(model.state_dict())
    garden = Garden(model)
    manager = OptimizerManager(lambda p: torch.optim.AdamW(p, lr=0.1), model)
    grown = grow(garden, "a")
    manager.add_parameters("seed:a", grown.parameters)
    for parameter in grown.parameters.values():
        parameter.grad = torch.ones_like(parameter)
    manager.optimizer.step()
    watched = [weakref.ref(p) for p in grown.parameters.values()]
    watched += [weakref.ref(t) for p in grown.parameters.values() for t in [p.grad]]
    watched.append(weakref.ref(model[1].seed))
    state = [weakref.ref(manager.optimizer.state[p]["exp_avg"]) for p in grown.parameters.values()]
    gone = cull(garden, "a")
    assert gone == grown.names
    manager.remove_parameters(gone)
    del grown, parameter
    gc.collect()
    assert [ref() for ref in watched + state] == [None] * len(watched + state)
    assert [name for name, _ in model.named_parameters()] == names
    assert list(model.state_dict()) == keys
    assert manager.group_names() == ["host"]
    assert garden.structure()["seeds"] == []
    assert garden.seed_states() == []
    for module in model.modules():
        assert not module._forward_hooks
        assert not module._forward_pre_hooks
        assert not module._backward_hooks
    assert grow(garden, "a").slot == "1"


def test_the_structure_rebuilds_the_same_names_and_shapes_in_the_same_order():
    model, fresh = host(), host()
    garden, other = Garden(model), Garden(fresh)
    grow(garden, "z", "low_rank", slot="8", parameters={"rank": 3}, step=5)
    grow(garden, "gone")
    grow(garden, "a", "depthwise", slot="4", step=7)
    cull(garden, "gone")
    structure = json.loads(json.dumps(garden.structure()))
    rebuilt = other.rebuild(structure)
    assert [g.seed_id for g in rebuilt.germinated] == ["z", "a"]
    shapes = [(n, p.shape) for n, p in model.named_parameters()]
    assert [(n, p.shape) for n, p in fresh.named_parameters()] == shapes
    assert other.structure() == garden.structure()
    assert other.seed_states(9) == garden.seed_states(9)
    assert other.registry.of("a") == garden.registry.of("a")
    assert all(
        torch.equal(p, q) for p, q in zip(model.parameters(), fresh.parameters(), strict=True)
    )


def test_a_rebuild_in_a_garden_that_grew_on_changes_only_what_differs():
    model = host()
    garden = Garden(model)
    kept = grow(garden, "kept")
    lost = grow(garden, "lost", "low_rank", slot="4")
    structure = garden.structure()
    cull(garden, "lost")
    later = grow(garden, "later", "residual_mlp", slot="8")
    rebuilt = garden.rebuild(structure)
    assert rebuilt.removed == {"later": later.names}
    assert [g.names for g in rebuilt.germinated] == [lost.names]
    assert model[1].seed.expand.weight is kept.parameters["1.seed.expand.weight"]
    assert garden.structure() == structure


def test_a_structure_that_does_not_fit_is_refused_and_nothing_changed():
    garden = Garden(host())
    grow(garden, "a")
    structure = garden.structure()
    structure["seeds"].append({**structure["seeds"][0], "seed_id": "b", "slot": "99"})
    assert "slot is '99'" in refused("unknown_slot", lambda: garden.rebuild(structure))
    assert garden.seed_ids() == ("a",)
    with pytest.raises(ValueError, match="version 7"):
        garden.rebuild({"version": 7, "seeds": []})


def test_seed_states_tell_stage_place_size_and_age():
    garden = Garden(host())
    grow(garden, "a", "low_rank", slot="8", step=100)
    (state,) = garden.seed_states(step=130, epoch=2)
    assert (state.seed_id, state.stage, state.slot) == ("a", Stage.SEED_STAGE_GERMINATED, "8")
    assert (state.layer_depth, state.parameter_count) == (2, 96)
    assert (state.age_steps, state.age_epochs) == (30, 2)
    assert state.blueprint_id == "low_rank"


def test_what_cannot_be_grown_is_refused_with_its_code():
    garden = Garden(host(), limits=Limits(parameters=300))
    grow(garden, "a", "depthwise")
    before = garden.structure()
    plan = garden.plan_germinate
    for code, words, call in [
        ("bad_parameter", "target_seed_id is 'a b'", lambda: plan("a b", "depthwise")),
        ("bad_parameter", "target_seed_id is ''", lambda: plan("", "depthwise")),
        ("bad_parameter", "not host", lambda: plan("host", "depthwise")),
        ("illegal_transition", "legal is: START_TRAINING", lambda: plan("a", "depthwise")),
        ("unknown_blueprint", "'oak'", lambda: plan("b", "oak")),
        ("unknown_blueprint", "allowed: residual_mlp", lambda: plan("b", "depthwise", slot="8")),
        ("unknown_slot", "1 (conv2d), 4 (conv2d)", lambda: plan("b", "depthwise", slot="x")),
        ("slot_taken", "has the seed 'a'; free: 4", lambda: plan("b", "depthwise", slot="1")),
        ("bad_parameter", "rank is 0", lambda: plan("b", "low_rank", parameters={"rank": 0})),
        (
            "gate_failed",
            "gate G0_SANITY: the seed has 1200 parameters; allowed: 1 to 300",
            lambda: plan("b", "low_rank", slot="8", parameters={"rank": 100}),
        ),
        ("unknown_seed", "'b'; allowed: a", lambda: cull(garden, "b")),
    ]:
        assert words in refused(code, call)
    assert garden.structure() == before
    grow(garden, "b", "depthwise")
    assert "every conv2d slot" in refused("slot_taken", lambda: plan("c", "depthwise"))
    bare = Garden(nn.Linear(1, 1))
    assert "no conv2d slot" in refused(
        "unknown_slot", lambda: bare.plan_germinate("a", "depthwise")
    )


def test_a_plan_changes_and_draws_nothing_and_is_judged_again_when_it_is_carried_out():
    model = host()
    garden = Garden(model)
    before = torch.default_generator.get_state()
    first, second = (garden.plan_germinate(seed_id, "depthwise") for seed_id in "ab")
    assert torch.equal(torch.default_generator.get_state(), before)
    assert garden.seed_ids() == ()
    garden.germinate(first, seed=0)
    refused("slot_taken", lambda: garden.germinate(second, seed=0))
    refused("illegal_transition", lambda: garden.germinate(first, seed=0))


def test_what_is_not_legal_is_refused_naming_what_is():
    garden = Garden(host())
    grow(garden, "a")
    for code, words, seed_id, operation in [
        ("illegal_transition", "legal is: START_TRAINING, CULL, CANCEL", "a", "FOSSILIZE"),
        ("illegal_transition", "START_TRAINING, CULL", "a", "STABILIZE"),
        ("unknown_seed", "'x'; allowed: a", "x", "START_TRAINING"),
        ("unsupported_operation", "operation is UNKNOWN", "a", "UNKNOWN"),
    ]:
        number = Operation.Value(f"SEED_OP_{operation}")
        assert words in refused(code, lambda s=seed_id, o=number: garden.check(s, o))
    why = refused("unsupported_operation", lambda: garden.check("a", Operation.ValueType(77)))
    assert "operation is 77" in why
