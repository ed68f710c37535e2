"""A fossil is folded into a layer that is plain and its own; elsewhere it stays. Either way the
model's output is what it was."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrizations, spectral_norm, weight_norm
from torch.nn.utils.prune import identity

from tests.kasmina.hosts import Training, output
from tolaria_bus.kasmina import Garden, Limits

pytestmark = pytest.mark.filterwarnings("ignore:.*torch.nn.utils.weight_norm.*:FutureWarning")

WIDE = Limits(impact=10.0, loss_increase=10.0, scale=1e6)


class Net(nn.Module):
    """A seed stands behind ``layer``; ``other`` is of its shape."""

    def __init__(self) -> None:
        super().__init__()
        torch.default_generator.manual_seed(0)
        self.first = nn.Linear(16, 8)
        self.layer: nn.Module = nn.Linear(8, 8)
        self.other = nn.Linear(8, 8)
        self.head = nn.Linear(8, 3)

    def forward(self, images: Tensor) -> Tensor:
        x = torch.tanh(self.layer(torch.tanh(self.first(images.flatten(1)))))
        logits: Tensor = self.head(torch.tanh(self.other(x)))
        return logits


def fossilized(model: nn.Module, blueprint: str = "low_rank") -> tuple[bool, Tensor, Tensor]:
    """Whether the seed was folded, and the output before and after."""
    run = Training(model.train(), Garden(model, {"layer": ("linear", 8)}, limits=WIDE))
    run.to_probation(blueprint, slot="layer")
    before = output(model)
    folded = run.do("FOSSILIZE").folded
    assert folded is (getattr(model.layer, "tolaria_seed", None) is None)
    return folded, before, output(model)


def _tied(model: Any) -> None:
    model.other.weight = model.layer.weight


def _tied_bias(model: Any) -> None:
    model.other.bias = model.layer.bias


def _of_one_memory(model: Any) -> None:
    model.other.weight.data = model.layer.weight.data


def _buffer_of_one_memory(model: Any) -> None:
    model.other.register_buffer("before", model.layer.weight.detach())


def _weight_norm(model: Any) -> None:
    weight_norm(model.layer)


def _spectral_norm(model: Any) -> None:
    spectral_norm(model.layer)


def _parametrized(model: Any) -> None:
    parametrizations.weight_norm(model.layer)


def _parametrized_bias(model: Any) -> None:
    nn.utils.parametrize.register_parametrization(model.layer, "bias", nn.Tanh())


def _masked(model: Any) -> None:
    identity(model.layer, "weight")  # type: ignore[no-untyped-call]


def _hooked(model: Any) -> None:
    model.layer.register_forward_hook(lambda module, args, out: torch.relu(out) * 3)


def _pre_hooked(model: Any) -> None:
    model.layer.register_forward_pre_hook(lambda module, args: (args[0] * 2,))


def _hooked_backwards(model: Any) -> None:
    model.layer.register_full_backward_hook(lambda module, into, out: (into[0] * 2,))


def _own_forward(model: Any) -> None:
    plain = model.layer.forward
    model.layer.forward = lambda x: torch.relu(plain(x))


def _derived(model: Any) -> None:
    class Rectified(nn.Linear):
        def forward(self, x: Tensor) -> Tensor:
            return torch.relu(super().forward(x))

    model.layer = Rectified(8, 8)


ODD: list[Callable[[Any], None]] = [
    _tied,
    _tied_bias,
    _of_one_memory,
    _buffer_of_one_memory,
    _weight_norm,
    _spectral_norm,
    _parametrized,
    _parametrized_bias,
    _masked,
    _hooked,
    _pre_hooked,
    _hooked_backwards,
    _own_forward,
    _derived,
]


@pytest.mark.parametrize("blueprint", ["low_rank", "channel_scale"])
@pytest.mark.parametrize("make_odd", ODD, ids=lambda make_odd: make_odd.__name__[1:])
def test_a_layer_that_is_not_plain_keeps_its_fossil_and_its_output(make_odd, blueprint) -> None:
    model = Net()
    make_odd(model)
    folded, before, after = fossilized(model, blueprint)
    assert not folded
    torch.testing.assert_close(after, before, rtol=1e-5, atol=1e-5)


def _two_names(model: Any) -> None:
    model.again = model.layer


def _odd_elsewhere(model: Any) -> None:
    weight_norm(model.other)
    model.first.register_forward_hook(lambda module, args, out: out * 2)
    model.head.weight.register_hook(lambda gradient: gradient * 2)


def _called_twice(model: Any) -> None:
    model.other = model.layer


@pytest.mark.parametrize("change", [_two_names, _odd_elsewhere, _called_twice])
def test_a_plain_layer_takes_its_fossil_in_whatever_the_rest_of_the_model_is(change) -> None:
    model = Net()
    change(model)
    folded, before, after = fossilized(model)
    assert folded
    torch.testing.assert_close(after, before, rtol=1e-5, atol=1e-5)
