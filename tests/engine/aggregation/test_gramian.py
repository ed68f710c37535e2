"""The Gramian, by blocks, against one matrix in float64."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from tolaria_bus.tolaria.engine.aggregation.blocks import as_rows, blocks
from tolaria_bus.tolaria.engine.aggregation.gramian import gramian, matrix_of

SHAPES = [(700, 300), (300,), (3, 8, 3, 3), (1,), (90_000,), ()]


def gradients(tasks: int, dtype: torch.dtype = torch.float32) -> list[list[Tensor]]:
    generator = torch.Generator().manual_seed(0)
    return [
        [(torch.randn(shape, generator=generator) + 0.3).to(dtype) for shape in SHAPES]
        for _ in range(tasks)
    ]


def exact(rows: list[list[Tensor]]) -> Tensor:
    matrix = torch.stack([torch.cat([each.flatten() for each in row]) for row in rows]).double()
    return matrix @ matrix.T


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16])
def test_it_is_that_of_one_matrix_in_float64(dtype) -> None:
    found = gradients(4, dtype)
    gram = gramian(as_rows(found, found[0]))
    assert gram.dtype == torch.float64
    assert torch.equal(gram, gram.T)
    scale = torch.outer(exact(found).diagonal().sqrt(), exact(found).diagonal().sqrt())
    assert float(((gram - exact(found)).abs() / scale).max()) < 1e-6


def test_the_way_of_an_accelerator_comes_to_the_same() -> None:
    rows = as_rows(gradients(3), gradients(1)[0])
    found = matrix_of([torch.cat(row) for row in rows])
    assert torch.equal(found, found.T)
    torch.testing.assert_close(found, gramian(rows), rtol=1e-6, atol=1e-3)


def test_it_stays_exact_over_millions() -> None:
    generator = torch.Generator().manual_seed(0)
    rows = [[torch.rand(4_000_000, generator=generator)] for _ in range(2)]
    torch.testing.assert_close(gramian(rows), exact(rows), rtol=2e-6, atol=0.0)


def test_what_is_not_finite_is_seen_on_the_diagonal_and_leaves_the_others_alone() -> None:
    found = gradients(3)
    expected = exact(found)
    found[1][4][77] = float("nan")
    gram = gramian(as_rows(found, found[0]))
    assert torch.isfinite(gram.diagonal()).tolist() == [True, False, True]
    assert gram[0, 2] == pytest.approx(float(expected[0, 2]), rel=1e-5)


def test_how_a_gradient_lies_in_memory_does_not_matter() -> None:
    plain = gradients(2)
    odd: list[Any] = [
        [
            plain[0][0].t().contiguous().t(),
            torch.ones(()).expand(300),
            plain[0][2].contiguous(memory_format=torch.channels_last),
            *plain[0][3:],
        ],
        [*plain[1][:2], None, *plain[1][3:]],
    ]
    same = [
        [plain[0][0], torch.ones(300), *plain[0][2:]],
        [*plain[1][:2], torch.zeros(SHAPES[2]), *plain[1][3:]],
    ]
    for like in (plain[0], odd[0][:1] + plain[0][1:2] + odd[0][2:]):
        rows = as_rows(odd, like)
        torch.testing.assert_close(gramian(rows), exact(same), rtol=1e-6, atol=1e-3)
        assert all(each.dim() == 1 and each.is_contiguous() for row in rows for each in row)


def test_blocks_are_views_of_everything_once_and_in_order() -> None:
    rows = as_rows(gradients(2), gradients(1)[0])
    pieces: list[list[Tensor]] = [[], []]
    sizes = []
    for block in blocks(rows):
        for row, parts in zip(pieces, block, strict=True):
            row += parts
        sizes.append(sum(part.numel() for part in block[0]))
    for row, parts in zip(rows, pieces, strict=True):
        assert torch.equal(torch.cat(row), torch.cat(parts))
        storages = {each.untyped_storage().data_ptr() for each in row}
        assert {each.untyped_storage().data_ptr() for each in parts} == storages
    assert 1 < max(sizes) <= 1 << 17


def test_tensors_of_two_dtypes_are_in_no_block_together() -> None:
    rows = [[torch.ones(5), torch.ones(5, dtype=torch.float64), torch.ones(3)] for _ in range(2)]
    assert [[part.dtype for part in block[0]] for block in blocks(rows)] == [
        [torch.float32],
        [torch.float64],
        [torch.float32],
    ]
    assert gramian(rows).tolist() == [[13.0, 13.0], [13.0, 13.0]]


def test_without_parameters_it_is_zero() -> None:
    assert gramian([[], [], []]).tolist() == [[0.0] * 3] * 3
