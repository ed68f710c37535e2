"""What owners of a part of the state put into a checkpoint comes back as it was."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tests.trainer.conftest import Moons
from tolaria_bus.settings import load
from tolaria_bus.tolaria.engine.job import view
from tolaria_bus.tolaria.recovery.sections import Section, pack, unpack
from tolaria_bus.tolaria.recovery.state import StateMismatch, TrainingState, capture, restore
from tolaria_bus.tolaria.start import fresh_state

leaves = st.none() | st.booleans() | st.integers() | st.text() | st.binary()
trees = st.recursive(
    leaves,
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.tuples(inner, inner)
        | st.dictionaries(st.text() | st.integers() | st.sampled_from(["$tuple", "$x"]), inner)
    ),
    max_leaves=12,
)


@given(trees)
def test_any_nested_state_comes_back(tree: Any) -> None:
    value, tensors = pack(tree, "section.x")
    assert unpack(json.loads(json.dumps(value)), tensors) == tree


def test_tensors_and_arrays_come_back_as_copies() -> None:
    state: dict[str, Any] = {
        "t": torch.arange(3),
        "deep": [(np.arange(4.0).reshape(2, 2), np.float32(2))],
    }
    value, tensors = pack(state, "data")
    assert set(tensors) == {"data.t", "data.deep.0.0"}
    found = unpack(json.loads(json.dumps(value)), tensors)
    state["t"].zero_()
    assert found["t"].tolist() == [0, 1, 2]
    array, scalar = found["deep"][0]
    assert array.tolist() == [[0, 1], [2, 3]]
    assert scalar == 2.0


@pytest.mark.parametrize("bad", [object(), {"a": [{1}]}, np.array([object()])])
def test_what_cannot_be_saved_is_named(bad: Any) -> None:
    with pytest.raises(ValueError, match=r"^section\.x.* can't be saved"):
        pack(bad, "section.x")


def moons() -> TrainingState:
    settings, _ = load(device="cpu")
    return fresh_state(view(Moons()), settings, torch.device("cpu"))[0]


def scaler(found: list[tuple[Any, int]], version: int = 1) -> Section:
    return Section(
        version,
        lambda: {"scale": torch.tensor(65536.0), "growth": 3},
        lambda state, was: found.append((state, was)),
    )


def test_a_section_is_saved_and_given_back_with_its_version() -> None:
    state, found = moons(), []  # type: ignore[var-annotated]
    state.sections["scaler"] = scaler(found, version=2)
    tensors, meta = capture(state)
    other = moons()
    other.sections["scaler"] = scaler(found, version=3)
    restore(other, tensors, json.loads(json.dumps(meta)))
    ((value, version),) = found
    assert (value["scale"].item(), value["growth"], version) == (65536.0, 3, 2)


def test_a_checkpoint_older_than_a_section_leaves_it_alone() -> None:
    tensors, meta = capture(moons())
    for name in ("sections", "data"):  # As the first program wrote it.
        del meta[name]
    found: list[tuple[Any, int]] = []
    state = moons()
    state.sections["scaler"] = scaler(found)
    restore(state, tensors, meta)
    assert not found


def test_a_section_of_a_newer_program_or_of_nobody_is_refused_before_anything_changes() -> None:
    state = moons()
    state.sections["scaler"] = scaler([], version=2)
    state.step = 9
    tensors, meta = capture(state)
    other = moons()
    with pytest.raises(StateMismatch, match=r"a section 'scaler'; this run has \[\]"):
        restore(other, tensors, meta)
    other.sections["scaler"] = scaler([], version=1)
    with pytest.raises(StateMismatch, match="is of version 2; this program reads 1"):
        restore(other, tensors, meta)
    assert other.step == 0
