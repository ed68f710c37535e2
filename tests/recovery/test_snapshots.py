"""Snapshots: a state comes back bit for bit, in place, whatever was grown or removed since."""

from __future__ import annotations

import random
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from tests.trainer.conftest import Moons
from tolaria_bus.kasmina import Moment
from tolaria_bus.leyline import SeedOperation
from tolaria_bus.settings import load
from tolaria_bus.tolaria.engine.job import view
from tolaria_bus.tolaria.recovery.snapshots import Snapshots
from tolaria_bus.tolaria.recovery.state import TrainingState, capture, restore
from tolaria_bus.tolaria.recovery.tensor_bytes import tensor_bytes
from tolaria_bus.tolaria.start import fresh_state

CPU = torch.device("cpu")


def made() -> TrainingState:
    torch.set_num_threads(1)
    state, _ = fresh_state(view(Moons()), load(device="cpu")[0], CPU)
    return state


def step(state: TrainingState) -> None:
    """A step that draws from every generator."""
    random.random()
    np.random.random()  # noqa: NPY002
    state.learning_rate.apply(state.step)
    loss = Moons().loss(state.model, state.data.next())
    state.optimizer.optimizer.zero_grad()
    loss.backward()  # type: ignore[no-untyped-call]
    state.optimizer.optimizer.step()
    state.step += 1
    state.watch.push(state.step, loss.detach())


def germinate(state: TrainingState, seed_id: str = "s1") -> None:
    plan = state.kasmina.plan_germinate(seed_id, "residual_mlp")
    grown = state.kasmina.germinate(plan, seed=state.seed, step=state.step)
    state.optimizer.add_parameters(f"seed:{seed_id}", grown.parameters)
    state.learning_rate.adopt(f"seed:{seed_id}", state.step)


def cull(state: TrainingState, seed_id: str = "s1") -> None:
    state.optimizer.remove_group(f"seed:{seed_id}")
    state.learning_rate.release(f"seed:{seed_id}")
    plan = state.kasmina.plan(seed_id, SeedOperation.SEED_OP_CULL, {"embargo_steps": 0})
    state.kasmina.operate(plan, Moment(state.step))
    state.kasmina.advance(state.step)


def everything(state: TrainingState) -> Any:
    """Every bit of a state, in a form to compare."""
    tensors, meta = capture(state)
    return {name: bytes(tensor_bytes(name, value)) for name, value in tensors.items()}, meta


def snapshots(keep: int = 3, megabytes: int = 100) -> Snapshots:
    return Snapshots(keep=keep, max_bytes=megabytes * 1_000_000)


def back(state: TrainingState, kept: Snapshots, step: int) -> None:
    found = kept.find(step, 0)
    assert found is not None
    restore(state, found.tensors, found.meta)


actions = st.lists(st.sampled_from(["step", "step", "grow", "cull", "rate", "take"]), max_size=12)


@settings(max_examples=15, deadline=None)
@given(before=actions, after=actions)
def test_going_back_brings_back_every_bit(before: list[str], after: list[str]) -> None:
    state, kept = made(), snapshots()

    def do(action: str) -> None:
        if action == "step":
            step(state)
        elif action == "grow" and not state.kasmina.seed_ids():
            germinate(state)
        elif action == "cull" and state.kasmina.seed_ids():
            cull(state)
        elif action == "rate":
            state.learning_rate.scale(0.5, state.step)

    for action in before:
        do(action)
    expected = everything(state)
    assert kept.take(state, sequence=0)
    at = state.step
    for action in after:
        do(action)
    back(state, kept, at)
    assert everything(state) == expected
    step(state)
    onward = everything(state)
    back(state, kept, at)
    step(state)
    assert everything(state) == onward


def test_the_tensors_of_the_model_and_the_optimizer_stay_the_same_ones() -> None:
    state, kept = made(), snapshots()
    step(state)
    kept.take(state, 0)
    places = {name: p.data_ptr() for name, p in state.model.named_parameters()}
    moments = {n: t.data_ptr() for n, t in state.optimizer.export()[0].items()}
    step(state)
    back(state, kept, 1)
    assert {name: p.data_ptr() for name, p in state.model.named_parameters()} == places
    assert {n: t.data_ptr() for n, t in state.optimizer.export()[0].items()} == moments


def test_the_least_recently_used_makes_room() -> None:
    state, kept = made(), snapshots(keep=2)
    for sequence in range(3):
        kept.take(state, sequence)
    assert [(0, n) in kept for n in range(3)] == [False, True, True]
    assert kept.find(0, 1) is not None  # Used: the other one goes.
    kept.take(state, 3)
    assert [(0, n) in kept for n in range(4)] == [False, True, False, True]


def test_memory_is_made_once_and_used_again() -> None:
    asked: list[int] = []

    def allocate(size: int) -> Tensor:
        asked.append(size)
        return torch.zeros(size, dtype=torch.uint8)

    kept = Snapshots(keep=2, max_bytes=100_000_000, allocate=allocate)
    state = made()
    step(state)
    for _ in range(7):
        step(state)
        kept.take(state, 0)
    assert len(asked) == 3
    assert len(kept) == 2
    assert kept.bytes == 3 * asked[0]


def test_what_does_not_fit_is_refused_once_and_holds_no_memory() -> None:
    kept = Snapshots(keep=3, max_bytes=1000)
    state = made()
    assert not kept.take(state, 0)
    assert "have to fit into" in kept.refused
    assert (len(kept), kept.bytes) == (0, 0)
    assert not kept.take(state, 1)


def test_a_limit_that_has_room_for_fewer_keeps_fewer() -> None:
    state = made()
    probe = snapshots()
    probe.take(state, 0)
    size = probe.find(0, 0).tensors  # type: ignore[union-attr]
    one = sum(t.numel() * t.element_size() for t in size.values())
    kept = Snapshots(keep=10, max_bytes=int(one * 3.5))
    for sequence in range(6):
        kept.take(state, sequence)
    assert len(kept) == 2


def test_no_memory_left_turns_snapshots_off_and_says_so() -> None:
    def allocate(size: int) -> Tensor:
        raise MemoryError(f"no {size} bytes")

    kept = Snapshots(keep=2, max_bytes=10**9, allocate=allocate)
    assert not kept.take(made(), 0)
    assert "no snapshot could be taken: no" in kept.refused


def test_what_a_rollback_undid_is_dropped_and_its_memory_used_again() -> None:
    state, kept = made(), snapshots()
    for sequence in range(3):
        kept.take(state, sequence)
    kept.drop(lambda sequence, step: sequence == 1)
    assert [(0, n) in kept for n in range(3)] == [False, True, False]
    kept.take(state, 4)
    assert len(kept) == 2


@pytest.mark.parametrize("where", ["0.weight", "optimizer"])
def test_a_value_that_is_not_finite_is_found(where: str) -> None:
    state, kept = made(), snapshots()
    step(state)
    kept.take(state, 0)
    found = kept.find(1, 0)
    assert found is not None
    assert found.finite()
    with torch.no_grad():
        if where == "optimizer":
            moments = state.optimizer.export()[0]
            next(t for name, t in moments.items() if t.numel() > 1).view(-1)[3] = float("nan")
        else:
            dict(state.model.named_parameters())[where][0, 0] = float("inf")
    kept.take(state, 1)
    spoiled = kept.find(1, 1)
    assert spoiled is not None
    assert not spoiled.finite()


def test_a_buffer_with_infinities_is_sound() -> None:
    class Masked(Moons):
        def model(self) -> nn.Module:
            model = super().model()
            model.register_buffer("mask", torch.full((4, 4), float("-inf")))
            return model

    state, _ = fresh_state(view(Masked()), load(device="cpu")[0], CPU)
    kept = snapshots()
    kept.take(state, 0)
    found = kept.find(0, 0)
    assert found is not None
    assert found.finite()
