"""A model's fingerprint changes with every bit of it, and with nothing else."""

from __future__ import annotations

import hashlib
import struct

import pytest
import torch
from torch import nn

from tolaria_bus.tolaria.recovery.weights import weights_sha256


class Small(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.arange(6, dtype=torch.float32).reshape(2, 3))
        self.register_buffer("count", torch.tensor(7), persistent=True)
        self.register_buffer("window", torch.ones(2, dtype=torch.bfloat16), persistent=False)


def test_the_byte_layout_is_as_documented() -> None:
    def text(value: str) -> bytes:
        return struct.pack("<q", len(value)) + value.encode()

    expected = b"".join(
        [
            text("count") + b"b" + text("int64") + struct.pack("<qqq", 0, 8, 7),
            text("weight") + b"p" + text("float32") + struct.pack("<qqqq", 2, 2, 3, 24),
            struct.pack("<6f", 0, 1, 2, 3, 4, 5),
            text("window") + b"b" + text("bfloat16") + struct.pack("<qqq", 1, 2, 4),
            b"\x80\x3f\x80\x3f",
        ]
    )
    assert weights_sha256(Small()) == hashlib.sha256(expected).hexdigest()


def test_one_bit_is_enough() -> None:
    model, before = Small(), weights_sha256(Small())
    with torch.no_grad():
        model.weight[1, 2] = torch.nextafter(model.weight[1, 2], torch.tensor(9.0))
    assert weights_sha256(model) != before


def test_zero_and_minus_zero_differ() -> None:
    one, other = nn.Linear(1, 1, bias=False), nn.Linear(1, 1, bias=False)
    with torch.no_grad():
        one.weight.fill_(0.0)
        other.weight.fill_(-0.0)
    assert weights_sha256(one) != weights_sha256(other)


@pytest.mark.parametrize("name", ["count", "window"])
def test_buffers_count_persistent_or_not(name: str) -> None:
    model, before = Small(), weights_sha256(Small())
    model.get_buffer(name).add_(1)
    assert weights_sha256(model) != before


def test_names_dtypes_and_shapes_count() -> None:
    def model(name: str, tensor: torch.Tensor) -> str:
        module = nn.Module()
        module.register_buffer(name, tensor)
        return weights_sha256(module)

    zeros = torch.zeros(4, dtype=torch.int32)
    found = {
        model("a", zeros),
        model("b", zeros),
        model("a", zeros.reshape(2, 2)),
        model("a", zeros.view(torch.float32)),
        model("a", torch.zeros(0, 4)),
        model("a", torch.zeros(0, 5)),
    }
    assert len(found) == 6


def test_order_of_registration_strides_and_gradients_do_not_count() -> None:
    one, other = nn.Module(), nn.Module()
    data = torch.arange(12.0).reshape(3, 4)
    one.register_parameter("a", nn.Parameter(data))
    one.register_parameter("b", nn.Parameter(torch.ones(1)))
    other.register_parameter("b", nn.Parameter(torch.ones(1), requires_grad=False))
    other.register_parameter("a", nn.Parameter(data.t().contiguous().t()))
    assert weights_sha256(one) == weights_sha256(other)


def test_tied_weights_count_under_each_name() -> None:
    tied, untied = nn.Module(), nn.Module()
    weight = nn.Parameter(torch.ones(2))
    tied.register_parameter("a", weight)
    tied.register_parameter("b", weight)
    untied.register_parameter("a", weight)
    assert weights_sha256(tied) != weights_sha256(untied)


def test_a_model_without_real_weights_is_refused() -> None:
    with pytest.raises(ValueError, match="is on the meta device"):
        weights_sha256(nn.Linear(2, 2, device="meta"))
