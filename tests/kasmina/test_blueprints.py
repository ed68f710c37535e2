import math

import pytest
import torch
from torch import nn

from tolaria_bus.kasmina import SeedRefused, SeedSlot, UnknownBlueprint
from tolaria_bus.kasmina.blueprints import LIBRARY, build, settle
from tolaria_bus.kasmina.gates import Limits, sanity

SHAPES = {"conv2d": (2, 12, 5, 7), "linear": (2, 12), "sequence": (2, 3, 12)}
EVERY = [(name, kind) for name, found in LIBRARY.items() for kind in found.kinds]


@pytest.mark.parametrize(("name", "kind"), EVERY)
def test_a_new_seed_is_the_identity_and_can_learn(name, kind):
    module = build(name, kind, 12, {})
    x = torch.randn(SHAPES[kind], requires_grad=True)
    output = module(x)
    assert torch.equal(output, x)
    output.square().sum().backward()
    gradients = [p.grad for p in module.parameters()]
    assert any(g is not None and bool(g.abs().sum() > 0) for g in gradients)


@pytest.mark.parametrize(
    ("name", "parameters", "count"),
    [
        ("residual_conv", {"expansion": 0.5, "kernel_size": 3.0}, 12 * 6 * 9 * 2 + 12 + 12),
        ("depthwise", {"kernel_size": 5}, 12 * 25 + 12 + 12 * 12 + 12),
        ("norm_scale", {}, 24),
        ("residual_mlp", {"expansion": 2}, 12 * 24 * 2 + 24 + 12),
        ("low_rank", {"rank": 2}, 12 * 2 * 2),
        ("bottleneck", {"reduction": 4}, 12 * 3 * 2 + 12 + 3 * 3 * 9 + 4 * 3),
        ("attention", {"heads": 2, "width": 5}, 24 + 12 * 30 + 10 * 12 + 12),
        ("channel_scale", {}, 24),
    ],
)
def test_parameters_decide_the_size(name, parameters, count):
    module = build(name, LIBRARY[name].kinds[-1], 12, parameters)
    assert sum(p.numel() for p in module.parameters()) == count


@pytest.mark.parametrize(
    ("name", "parameters", "words"),
    [
        ("residual_conv", {"kernel_size": 4}, "an odd whole number from 1 to 11"),
        ("residual_conv", {"kernel_size": 2.5}, "kernel_size is 2.5"),
        ("residual_conv", {"expansion": math.nan}, "expansion is nan; allowed: a number from 0.05"),
        ("low_rank", {"rank": 0}, "rank is 0; allowed: a whole number from 1 to 4096"),
        ("low_rank", {"rank": "many"}, "rank is 'many'"),
        ("low_rank", {"rank": True}, "rank is True"),
        ("low_rank", {"ranks": 1}, "'ranks' is no parameter .* allowed: rank"),
        ("norm_scale", {"x": 1}, "allowed: none"),
    ],
)
def test_a_wrong_parameter_is_refused_naming_it(name, parameters, words):
    with pytest.raises(SeedRefused, match=words) as error:
        settle(name, parameters)
    assert error.value.code == "bad_parameter"


def test_an_unknown_or_unfitting_blueprint_is_told_those_there_are():
    with pytest.raises(UnknownBlueprint, match="'oak'; allowed: residual_conv, ") as error:
        build("oak", "conv2d", 4, {})
    assert error.value.code == "unknown_blueprint"
    with pytest.raises(UnknownBlueprint, match="linear; allowed: residual_mlp, low_rank"):
        build("depthwise", "linear", 4, {})


def test_an_attention_head_sees_nothing_that_comes_later_unless_it_is_told_to():
    x = torch.randn(1, 6, 8)
    later = torch.cat([x[:, :4], torch.randn(1, 2, 8)], dim=1)
    for causal in (1, 0):
        head = build("attention", "sequence", 8, {"causal": causal})
        for parameter in head.parameters():
            nn.init.normal_(parameter)
        assert torch.equal(head(x)[:, :4], head(later)[:, :4]) == bool(causal)


class Odd(nn.Module):
    def __init__(self, value: float, cut: int) -> None:
        super().__init__()
        self.value = nn.Parameter(torch.tensor(value))
        self.cut = cut

    def forward(self, x):
        return x[..., self.cut :] * self.value


def test_gate_g0_wants_a_finite_output_of_the_inputs_shape():
    reading = sanity(Odd(1.0, 0), "linear", 4, Limits())
    assert reading.passed
    assert reading.measures == {"parameters": 1.0, "deviation": 0.0}
    for module, words in [(Odd(1.0, 1), "that shape"), (Odd(math.inf, 0), "isn't finite")]:
        with pytest.raises(SeedRefused, match=words) as error:
            sanity(module, "linear", 4, Limits()).require()
        assert error.value.code == "gate_failed"
    with pytest.raises(SeedRefused, match="has 1 parameters; allowed: 1 to 0"):
        sanity(Odd(1.0, 0), "linear", 4, Limits(parameters=0)).require()


def test_a_slot_is_nothing_while_it_is_empty():
    slot = SeedSlot(3)
    x = torch.randn(1, 3, 2, 2)
    assert slot(x) is x
    assert not list(slot.parameters())
    assert not slot.state_dict()
    assert "3, kind='conv2d'" in repr(slot)
    for wrong in ({"features": 0}, {"features": 3, "kind": "graph"}):
        with pytest.raises(ValueError, match="allowed"):
            SeedSlot(**wrong)
