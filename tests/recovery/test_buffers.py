"""Buffers: an exact private copy, in the same memory again as long as it is large enough."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from tests.recovery.states import assert_same
from tolaria_bus.tolaria.recovery.buffers import TensorBuffers, needed_bytes


def mixed(fill: int) -> dict[str, Tensor]:
    return {
        "bytes": torch.full((3,), fill, dtype=torch.uint8),
        "wide": torch.full((5, 7), fill, dtype=torch.float64),
        "turned": torch.arange(12, dtype=torch.float32).reshape(3, 4).t() + fill,
        "empty": torch.empty(0, 4),
        "scalar": torch.tensor(float(fill)),
        "complex": torch.full((2,), fill + 1j, dtype=torch.complex64).conj(),
        "half": nn.Parameter(torch.full((9,), fill, dtype=torch.bfloat16)),
    }


def test_a_copy_is_exact_and_private() -> None:
    buffers = TensorBuffers()
    source = mixed(3)
    buffers.fill(source)
    source["wide"].zero_()
    assert_same(buffers.tensors, mixed(3))
    assert all(tensor.is_contiguous() for tensor in buffers.tensors.values())
    assert not any(tensor.requires_grad for tensor in buffers.tensors.values())


def test_the_same_layout_is_filled_in_place() -> None:
    buffers = TensorBuffers()
    buffers.fill(mixed(1))
    places = [tensor.data_ptr() for tensor in buffers.tensors.values()]
    buffers.fill(mixed(2))
    assert [tensor.data_ptr() for tensor in buffers.tensors.values()] == places
    assert_same(buffers.tensors, mixed(2))


def test_another_layout_takes_the_same_block_while_it_is_large_enough() -> None:
    asked: list[int] = []

    def allocate(size: int) -> Tensor:
        asked.append(size)
        return torch.zeros(size, dtype=torch.uint8)

    buffers = TensorBuffers(allocate)
    larger = {**mixed(1), "seed": torch.ones(1000)}
    buffers.reserve(needed_bytes(larger))
    for tensors in (mixed(1), larger, mixed(2)):
        buffers.fill(tensors)
        assert_same(buffers.tensors, tensors)
    assert asked == [needed_bytes(larger)]
    buffers.fill({"much": torch.ones(100_000)})
    assert asked[1:] == [400_000]
    assert buffers.capacity == 400_000


def test_nothing_is_a_layout_too() -> None:
    buffers = TensorBuffers()
    buffers.fill({})
    assert buffers.tensors == {}


@pytest.mark.parametrize("bad", [torch.eye(2).to_sparse(), torch.empty(2, device="meta")])
def test_what_has_no_plain_bytes_is_refused_and_the_copy_before_stays(bad: Tensor) -> None:
    buffers = TensorBuffers()
    buffers.fill(mixed(1))
    with pytest.raises(ValueError, match=r"'x' is .*: it has no plain bytes"):
        buffers.fill({"x": bad})
    assert_same(buffers.tensors, mixed(1))
