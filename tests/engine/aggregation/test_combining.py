"""Sums of gradients: the CPU's way and an accelerator's are one."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from tolaria_bus.tolaria.engine.aggregation.combining import on_cpu, on_device

SIZES = (5, 200_000, 1, 300)
DTYPES = [torch.float32, torch.float64, torch.bfloat16, torch.float16]


def rows(dtype: torch.dtype, tasks: int = 3) -> list[list[Tensor]]:
    generator = torch.Generator().manual_seed(0)
    return [[torch.randn(n, generator=generator).to(dtype) for n in SIZES] for _ in range(tasks)]


def room(dtype: torch.dtype) -> list[Tensor]:
    return [torch.full((n,), float("nan"), dtype=dtype) for n in SIZES]


@pytest.mark.parametrize("way", [on_cpu, on_device])
@pytest.mark.parametrize("dtype", DTYPES)
def test_it_is_the_sum_and_what_is_not_finite_has_no_part_in_it(way, dtype) -> None:
    found = rows(dtype)
    expected = [2.0 * a - 0.5 * c for a, c in zip(found[0], found[2], strict=True)]
    found[1][1][7], found[1][3][:] = float("nan"), float("inf")
    coefficients = torch.tensor([2.0, 3.0, -0.5], dtype=torch.float64)
    way(found, coefficients, torch.tensor([True, False, True]), into := room(dtype))
    for one, other in zip(into, expected, strict=True):
        torch.testing.assert_close(one, other)


@pytest.mark.parametrize("way", [on_cpu, on_device])
def test_the_first_row_may_be_the_place_and_may_be_left_out(way) -> None:
    coefficients = torch.tensor([2.0, 3.0, 1.0], dtype=torch.float64)
    for finite in ([True, True, True], [False, True, True]):
        found, plain = rows(torch.float32), rows(torch.float32)
        if not finite[0]:
            found[0][1][0] = float("nan")
        # One of the tensors lies elsewhere.
        into = [found[0][0], found[0][1], torch.empty(1), found[0][3]]
        way(found, coefficients, torch.tensor(finite), into)
        for index, each in enumerate(into):
            expected = 3.0 * plain[1][index] + plain[2][index]
            if finite[0]:
                expected = expected + 2.0 * plain[0][index]
            torch.testing.assert_close(each, expected)


@pytest.mark.parametrize("way", [on_cpu, on_device])
def test_a_coefficient_that_is_no_number_spoils_all_of_it(way) -> None:
    coefficients = torch.tensor([float("nan"), 1.0, 1.0], dtype=torch.float64)
    way(rows(torch.float32), coefficients, torch.ones(3).bool(), into := room(torch.float32))
    assert all(each.isnan().all() for each in into)


@pytest.mark.parametrize("dtype", DTYPES)
def test_both_ways_come_to_the_same(dtype) -> None:
    coefficients = torch.tensor([0.25, -1.5, 1.0], dtype=torch.float64)
    here, there = room(dtype), room(dtype)
    for way, into in ((on_cpu, here), (on_device, there)):
        way(rows(dtype), coefficients, torch.ones(3).bool(), into)
    for one, other in zip(here, there, strict=True):
        # Where partial sums are rounded in between differs.
        torch.testing.assert_close(one, other, rtol=0.0, atol=16 * torch.finfo(dtype).eps)
