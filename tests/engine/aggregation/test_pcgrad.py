"""PCGrad on the Gramian, against the paper's own algorithm on the vectors."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from torch import Tensor
from torchjd.aggregation import PCGradWeighting

from tests.engine.aggregation.vectors import conflicts, paper
from tolaria_bus.tolaria.engine.aggregation.handlers import PCGrad
from tolaria_bus.tolaria.engine.aggregation.pcgrad import orders, project


def ours(gradients: Tensor, meets: list[list[int]]) -> Tensor:
    return project(gradients @ gradients.T, meets) @ gradients


@given(conflicts())
@settings(deadline=None, max_examples=200)
def test_each_gradient_is_projected_as_in_the_paper(case) -> None:
    gradients, meets = case
    torch.testing.assert_close(
        ours(gradients, meets), torch.stack(paper(gradients, meets)), rtol=1e-9, atol=1e-9
    )


def test_two_gradients_by_hand() -> None:
    # g1 = (1, 0) meets g2 = (-1, 1): (1, 0) + 1/2 (-1, 1). g2 meets g1: (-1, 1) + (1, 0).
    gradients = torch.tensor([[1.0, 0.0], [-1.0, 1.0]], dtype=torch.float64)
    assert ours(gradients, [[1], [0]]).tolist() == [[0.5, 0.5], [0.0, 1.0]]


def test_it_is_the_original_gradients_that_are_met() -> None:
    # The second is met as it was, though its own projection has come out as (0, 1) by then.
    gradients = torch.tensor([[-1.0, 1.0], [1.0, 0.0], [0.0, -1.0]], dtype=torch.float64)
    assert ours(gradients, [[1, 2], [0, 2], [0, 1]])[0].tolist() == [0.0, 0.0]


@given(conflicts())
@settings(deadline=None)
def test_gradients_that_are_in_no_conflict_stay(case) -> None:
    gradients, meets = case
    assert torch.equal(
        project((gradients @ gradients.T).abs(), meets), torch.eye(len(gradients)).double()
    )


@given(conflicts())
@settings(deadline=None)
def test_it_is_linear_in_a_task_of_its_own_and_blind_to_the_others_lengths(case) -> None:
    gradients, meets = case
    before = ours(gradients, meets)
    factors = torch.arange(1.0, len(gradients) + 1, dtype=torch.float64)
    after = ours(gradients * factors.unsqueeze(1), meets)
    torch.testing.assert_close(after, before * factors.unsqueeze(1), rtol=1e-9, atol=1e-9)


@given(conflicts())
@settings(deadline=None)
def test_renaming_the_tasks_renames_what_comes_out(case) -> None:
    gradients, meets = case
    new = list(reversed(range(len(gradients))))  # Task i is called new[i] from now on.
    renamed = ours(gradients.flip(0), [[new[j] for j in meets[new[i]]] for i in new[::-1]])
    torch.testing.assert_close(renamed.flip(0), ours(gradients, meets), rtol=1e-9, atol=1e-9)


@given(conflicts())
@settings(deadline=None)
def test_two_tasks_are_out_of_conflict_afterwards_and_the_order_doesnt_matter(case) -> None:
    gradients, _ = case
    first, second = ours(gradients[:2], [[1], [0]])
    tiny = 1e-9 * float(gradients.square().sum())
    assert float(first @ gradients[1]) >= -tiny
    assert float(second @ gradients[0]) >= -tiny


def test_a_task_of_zeros_neither_changes_nor_is_changed() -> None:
    gradients = torch.tensor([[1.0, 0.0], [0.0, 0.0], [-1.0, 0.5]], dtype=torch.float64)
    found = ours(gradients, [[1, 2], [0, 2], [1, 0]])
    alone = ours(gradients[[0, 2]], [[1], [0]])
    assert torch.equal(found[[0, 2]], alone)
    assert not found[1].any()


def test_torchjd_comes_to_the_same_where_the_order_doesnt_matter() -> None:
    generator = torch.Generator().manual_seed(4)
    for _ in range(50):
        gradients = torch.randn(2, 5, generator=generator, dtype=torch.float64)
        gram = gradients @ gradients.T
        with torch.random.fork_rng():
            theirs = PCGradWeighting()(gram)
        torch.testing.assert_close(PCGrad().coefficients(gram, 1), theirs)


def test_the_order_is_drawn_anew_from_a_seed_and_from_no_global_generator() -> None:
    torch.manual_seed(0)
    before = torch.get_rng_state()
    gram = torch.tensor(
        [[1.0, -0.5, -0.4], [-0.5, 1.0, -0.3], [-0.4, -0.3, 1.0]], dtype=torch.float64
    )
    handler = PCGrad()
    by_seed = [handler.coefficients(gram, seed) for seed in range(20)]
    assert torch.equal(before, torch.get_rng_state())
    assert all(torch.equal(PCGrad().coefficients(gram, s), by_seed[s]) for s in range(20))
    assert len({tuple(each.tolist()) for each in by_seed}) > 1


@pytest.mark.parametrize("tasks", [1, 2, 4])
def test_each_task_meets_each_other_once_in_every_possible_order(tasks) -> None:
    generator = torch.Generator().manual_seed(0)
    seen = set()
    for _ in range(200):
        drawn = orders(tasks, generator)
        for task, others in enumerate(drawn):
            assert sorted([task, *others]) == list(range(tasks))
        seen.add(tuple(drawn[0]))
    assert len(seen) == math.factorial(tasks - 1)
