"""The life cycle against a model of it: whatever is tried, in whatever order."""

from __future__ import annotations

import copy
from typing import Any, get_args

import torch
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule
from torch import nn

from tests.kasmina.hosts import Training
from tolaria_bus.kasmina import HOST, Garden, Limits, SeedRefused, SeedSlot
from tolaria_bus.kasmina.errors import RefusalCode
from tolaria_bus.kasmina.lifecycle import AUTOMATIC, TRANSITIONS, operation_name, stage_name
from tolaria_bus.leyline import SeedLifecycleStage as Stage
from tolaria_bus.leyline import SeedOperation as Operation

SEEDS = ("a", "b")
OPERATIONS = [o for o in Operation.values() if o > Operation.SEED_OP_GERMINATE]
GROWING = range(Stage.SEED_STAGE_GERMINATED, Stage.SEED_STAGE_FOSSILIZED)
IN_OUTPUT = range(Stage.SEED_STAGE_BLENDING, Stage.SEED_STAGE_FOSSILIZED + 1)


class Lives(RuleBasedStateMachine):
    """Two seeds, a slot and a place behind a module."""

    def __init__(self) -> None:
        super().__init__()
        torch.default_generator.manual_seed(0)
        model = nn.Sequential(
            nn.Flatten(), nn.Linear(16, 6), SeedSlot(6, kind="linear"), nn.Tanh(), nn.Linear(6, 3)
        )
        limits = Limits(side_steps=1, impact=1e9, loss_increase=1e9)
        self.run = Training(model, Garden(model, ["1"], limits=limits))
        self.stages = dict.fromkeys(SEEDS, Stage.SEED_STAGE_DORMANT)
        self.folded: set[str] = set()
        self.names = [name for name, _ in model.named_parameters()]

    @rule(seed=st.sampled_from(SEEDS), place=st.sampled_from(["1", "2"]))
    def germinate(self, seed: str, place: str) -> None:
        taken = [view.seed_id for view in self.run.garden.slots() if view.name == place] != [""]
        legal = self.stages[seed] == Stage.SEED_STAGE_DORMANT and not taken
        if self.attempt(legal, lambda: self.run.grow(seed, "low_rank", slot=place)):
            self.stages[seed] = Stage.SEED_STAGE_GERMINATED

    @rule(seed=st.sampled_from(SEEDS), operation=st.sampled_from(OPERATIONS), n=st.integers(1, 4))
    def operate(self, seed: str, operation: Any, n: int) -> None:
        values = {
            Operation.SEED_OP_START_GRAFTING: {"blend_steps": n},
            Operation.SEED_OP_CULL: {"embargo_steps": n},
        }.get(operation, {})
        legal = operation in TRANSITIONS[self.stages[seed]]
        done = []
        if self.attempt(
            legal, lambda: done.append(self.run.do(operation_name(operation), seed, **values))
        ):
            self.stages[seed] = TRANSITIONS[self.stages[seed]][operation]
            if done[0].folded:
                self.folded.add(seed)

    @rule(count=st.integers(1, 3))
    def train(self, count: int) -> None:
        self.run.told.clear()
        self.run.steps(count)
        for passed in self.run.told:
            assert self.stages[passed.seed_id] == passed.before
            assert AUTOMATIC[passed.before] == passed.after
            self.stages[passed.seed_id] = passed.after

    @precondition(lambda self: any(self.stages.values()))
    @rule()
    def write_down_and_rebuild(self) -> None:
        structure = self.run.garden.structure()
        weights = copy.deepcopy(self.run.model.state_dict())
        self.run.garden.rebuild(structure)
        assert self.run.garden.structure() == structure
        found = self.run.model.state_dict()
        assert all(torch.equal(found[name], weights[name]) for name in weights)

    def attempt(self, legal: bool, call: Any) -> bool:
        """Try an operation; True if it was done. Only gates may refuse what is legal."""
        before = self.run.garden.structure()
        code = ""
        try:
            call()
        except SeedRefused as refusal:
            code = refusal.code
            assert self.run.garden.structure() == before
        assert code in ({"", "gate_failed"} if legal else set(get_args(RefusalCode)))
        return not code

    @invariant()
    def the_garden_agrees(self) -> None:
        for seed, stage in self.stages.items():
            assert stage_name(self.run.garden.stage(seed)) == stage_name(stage)

    @invariant()
    def parameters_are_there_owned_and_optimized_while_a_seed_lives_and_never_else(self) -> None:
        garden = self.run.garden
        seeds = [name for name, _ in self.run.model.named_parameters() if "seed." in name]
        assert sorted(self.run.manager.parameter_names()) == sorted(self.names + seeds)
        owned = {seed: garden.registry.of(seed) for seed in SEEDS}
        for seed, stage in self.stages.items():
            assert bool(owned[seed]) == (stage in GROWING)
        fossils = sum(
            stage == Stage.SEED_STAGE_FOSSILIZED and seed not in self.folded
            for seed, stage in self.stages.items()
        )
        living = sum(bool(names) for names in owned.values())
        assert len(seeds) == 2 * (living + fossils)
        assert {garden.registry.owner(name) for name in self.names} == {HOST}

    @invariant()
    def there_is_a_graft_where_a_seed_has_a_say_and_only_there(self) -> None:
        layer, slot = self.run.model[1], self.run.model[2]  # type: ignore[index]
        grafts = len(layer._forward_hooks) + int(slot.graft is not None)
        assert grafts == sum(
            stage in IN_OUTPUT and seed not in self.folded for seed, stage in self.stages.items()
        )


Lives.TestCase.settings = settings(max_examples=25, stateful_step_count=40, deadline=None)
TestLives = Lives.TestCase
