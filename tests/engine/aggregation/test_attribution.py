"""Whose samples are: what is taken, what is refused, and by whom it is said."""

from __future__ import annotations

from typing import NamedTuple

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tolaria_bus.tolaria.engine import JobError
from tolaria_bus.tolaria.engine.aggregation.attribution import carried_by, checked, matrix

LOSSES = torch.ones(3)
NAN, INF = float("nan"), float("inf")


def shares(found: object, tasks: tuple[str, ...] = ("a", "b")) -> list[list[float]]:
    clean, _ = checked(matrix(found, tasks, LOSSES, said_by="it"))
    return clean.tolist()


def test_a_mapping_names_seeds_and_the_host_has_what_is_left() -> None:
    a = torch.tensor([0.0, 0.25, 1.0])
    assert shares({"a": a}) == [[1.0, 0.0, 0.0], [0.75, 0.25, 0.0], [0.0, 1.0, 0.0]]
    assert shares({"a": a, "host": 1 - a}) == shares({"a": a})


def test_a_share_of_a_seed_that_is_no_task_now_is_the_hosts() -> None:
    half = torch.full((3,), 0.5)
    expected = [[0.5, 0.5, 0.0]] * 3
    assert shares({"a": half, "gone": half}) == expected
    quarter = torch.full((3,), 0.25)
    assert shares({"a": half, "gone": quarter, "host": quarter}) == expected


def test_a_tensor_has_a_column_for_the_host_and_one_for_each_task() -> None:
    found = torch.tensor([[0.5, 0.5, 0.0], [0.0, 0.0, 1.0], [1.0, 0.0, 0.0]])
    assert shares(found) == found.tolist()
    assert shares(found.half()) == found.tolist()


@pytest.mark.parametrize(
    ("found", "words"),
    [
        (torch.ones(3), r"shape \(3,\); it must be \(3, 3\): samples by host, a, b"),
        (torch.ones(3, 2), r"shape \(3, 2\)"),
        ({"a": torch.ones(4)}, r"of 'a' is \(4,\); it must be a tensor of shape \(3,\)"),
        ({"a": [0.1, 0.2, 0.3]}, "of 'a' is list"),
        ([0.1], "is a list; it must be a mapping of seed ids"),
    ],
)
def test_a_wrong_shape_is_an_error_that_says_what_is_right(found, words) -> None:
    with pytest.raises(JobError, match=f"the job: the batch's attribution {words}|{words}"):
        matrix(found, ("a", "b"), LOSSES, said_by="the batch's attribution")


@pytest.mark.parametrize(
    "row", [[-0.5, 1.5, 0.0], [NAN, 0.0, 1.0], [INF, 0.0, 0.0], [0.5, 0.0, 0.4], [0.0, 0.0, 0.0]]
)
def test_a_sample_with_no_shares_is_the_hosts_and_counted(row) -> None:
    clean, refused = checked(torch.tensor([[0.5, 0.25, 0.25], row]))
    assert clean.tolist() == [[0.5, 0.25, 0.25], [1.0, 0.0, 0.0]]
    assert int(refused) == 1


def test_a_mapping_of_more_than_all_is_counted_too() -> None:
    _, refused = checked(matrix({"a": torch.tensor([0.5, 1.5, NAN])}, ("a",), LOSSES, said_by=""))
    assert int(refused) == 2


@given(st.lists(st.lists(st.floats(0, 1, width=32), min_size=3, max_size=3), min_size=1))
@settings(deadline=None)
def test_whatever_it_is_each_row_comes_out_as_shares(rows) -> None:
    clean, _ = checked(torch.tensor(rows))
    assert bool((clean >= 0).all())
    torch.testing.assert_close(clean.sum(1), torch.ones(len(rows)))


class Named(NamedTuple):
    x: int
    attribution: int


def test_a_batch_carries_it_in_a_field_of_that_name() -> None:
    assert carried_by({"x": 1, "attribution": 2}) == 2
    assert carried_by(Named(1, 2)) == 2
    for without in ({"x": 1}, [1, 2], (1, 2), torch.ones(2)):
        assert carried_by(without) is None
