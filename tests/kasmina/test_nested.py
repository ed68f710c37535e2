"""A seed inside torch's own encoder, which makes nested tensors of a padded batch in eval mode."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tolaria_bus.kasmina import Garden, GateReading, Limits, Moment, SeedSlot
from tolaria_bus.kasmina.slot import Graft, Mode
from tolaria_bus.leyline import SeedOperation as Operation

pytestmark = pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors")

FEATURES, LENGTHS = 16, (7, 3, 5)


class Encoder(nn.Module):
    """Two layers of torch's own."""

    def __init__(self, *, nested: bool) -> None:
        super().__init__()
        layer = nn.TransformerEncoderLayer(FEATURES, 2, 32, dropout=0.1, batch_first=True)
        self.encoder = nn.TransformerEncoder(layer, 2, enable_nested_tensor=nested)

    def forward(self, x: Tensor, padding: Tensor) -> Tensor:
        found: Tensor = self.encoder(x, src_key_padding_mask=padding)
        return found


def padded() -> tuple[Tensor, Tensor]:
    x = torch.randn(3, 7, FEATURES, generator=torch.Generator().manual_seed(1))
    return x.double(), torch.arange(7)[None] >= torch.tensor(LENGTHS)[:, None]


def grown(
    slot: str, blueprint: str, *, nested: bool, values: Any = None
) -> tuple[nn.Module, Garden]:
    """An encoder with a seed that is being blended in, and no longer the identity."""
    torch.default_generator.manual_seed(0)
    model = Encoder(nested=nested).double()
    garden = Garden(model, limits=Limits(side_steps=0, gradient_norm=1e9))
    garden.germinate(
        garden.plan_germinate("s", blueprint, slot=slot, parameters=values or {}), seed=3
    )
    step(garden, Operation.SEED_OP_START_TRAINING)
    x, padding = padded()
    garden.learn("s", lambda: model(x, padding)[~padding].square().mean())
    step(garden, Operation.SEED_OP_START_GRAFTING, blend_steps=4)
    draw = torch.Generator().manual_seed(5)
    owned = garden.registry.of("s")
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name in owned:
                parameter.add_(0.3 * torch.randn(parameter.shape, generator=draw))
    garden.advance(1)
    return model, garden


def step(garden: Garden, operation: Operation.ValueType, **values: float) -> GateReading | None:
    plan = garden.plan("s", operation, values)
    return garden.operate(plan, Moment(0, 0, 1.0, None)).reading


SEEDS = [
    ("encoder.layers.0", "attention", None),
    ("encoder.layers.0", "low_rank", None),
    ("encoder.layers.1", "residual_mlp", None),
    ("encoder.layers.0.linear1", "low_rank", {"rank": 2}),
    ("encoder.layers.1.linear1", "residual_mlp", None),
    ("encoder.layers.0.norm1", "norm_scale", None),
    ("encoder.layers.1.linear2", "channel_scale", None),
]


@pytest.mark.parametrize(("slot", "blueprint", "values"), SEEDS)
@pytest.mark.parametrize("mode", [Mode.BLEND, Mode.WHOLE])
def test_a_padded_batch_gives_what_it_gives_without_nested_tensors(
    slot, blueprint, values, mode
) -> None:
    x, padding = padded()
    found = []
    seen: list[bool] = []
    for nested in (True, False):
        model, garden = grown(slot, blueprint, nested=nested, values=values)
        graft: Graft = garden._places.at(slot).graft  # type: ignore[assignment]
        graft.mode = mode
        through = model.get_submodule(slot).register_forward_hook(
            lambda module, args, out: seen.append(out.is_nested)
        )
        model.eval()
        with torch.no_grad():
            found.append(model(x, padding)[~padding])
        through.remove()
    assert seen == [True, False]
    torch.testing.assert_close(found[0], found[1], rtol=1e-10, atol=1e-10)


def test_probe_and_interface_gate_see_what_they_see_of_the_samples_alone() -> None:
    x, padding = padded()
    model, garden = grown("encoder.layers.0", "low_rank", nested=True)
    model.eval()
    probe = garden.probe()
    with torch.no_grad(), probe:
        model(x, padding)
        together = probe.shares(3)["s"]
    alone = []
    for sample, length in zip(x, LENGTHS, strict=True):
        with torch.no_grad(), garden.probe() as one:
            model(sample[None, :length], padding[:1, :length] & False)
            alone.append(one.shares(1)["s"])
    torch.testing.assert_close(together, torch.cat(alone))

    garden.advance(99)

    def held_out() -> float:
        with torch.no_grad():
            return float(model(x, padding)[~padding].square().mean())

    moment = Moment(99, 0, 1.0, held_out)
    for operation in (Operation.SEED_OP_STABILIZE, Operation.SEED_OP_EVALUATE):
        reading = garden.operate(garden.plan("s", operation), moment).reading
    assert reading is not None
    assert reading.measures["passes"] == 1
    assert 0.1 < reading.measures["scale"] < 10


@pytest.mark.parametrize("layout", [torch.strided, torch.jagged])
def test_nested_tensors_of_either_layout_pass_and_take_their_gradient_back(layout) -> None:
    torch.default_generator.manual_seed(0)
    slot = SeedSlot(4, "sequence")
    slot.seed = nn.Linear(4, 4).double()
    slot.graft = Graft(slot.seed, Mode.BLEND)
    slot.graft.set_alpha(0.3)
    rows = [torch.randn(n, 4, dtype=torch.float64, requires_grad=True) for n in (3, 1)]
    nested = torch.nested.as_nested_tensor(rows, layout=layout)
    out = slot(nested) + nested
    loss = torch.stack([row.square().sum() for row in out.unbind()]).sum()
    for row, found in zip(rows, torch.autograd.grad(loss, rows), strict=True):
        plain = row.detach().clone().requires_grad_()
        alone = (torch.lerp(plain, slot.seed(plain), 0.3) + plain).square().sum()
        torch.testing.assert_close(found, torch.autograd.grad(alone, plain)[0])
