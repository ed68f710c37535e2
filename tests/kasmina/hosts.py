"""Host models of each kind, with what makes bitwise equality hard: dropout, batch statistics."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812

from tolaria_bus.kasmina import HOST, Garden, Moment, SeedSlot, Transition
from tolaria_bus.leyline import SeedOperation as Operation
from tolaria_bus.tolaria.engine import OptimizerManager, TrainStep
from tolaria_bus.tolaria.engine.side import SideTraining

CPU = torch.device("cpu")


class Counts(nn.Module):
    """Replaces its buffer instead of changing it, and draws from every global generator."""

    passes: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("passes", torch.zeros(()))

    def forward(self, x: Tensor) -> Tensor:
        if self.training:
            self.passes = self.passes + 1
            x = x * (1 + 0.01 * random.random() + 0.01 * float(np.random.rand()))  # noqa: NPY002
        return x


def conv(slot: bool = True) -> nn.Module:
    """A convolutional host of images (N, 1, 4, 4), three classes."""
    torch.default_generator.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(1, 4, 3, padding=1),
        SeedSlot(4) if slot else nn.Identity(),
        nn.BatchNorm2d(4),
        nn.ReLU(),
        Counts(),
        nn.Flatten(),
        nn.Dropout(0.2),
        nn.Linear(64, 3),
    )


def linear(slot: bool = True) -> nn.Module:
    """A perceptron of the same images."""
    torch.default_generator.manual_seed(0)
    return nn.Sequential(
        nn.Flatten(),
        nn.Linear(16, 8),
        SeedSlot(8, kind="linear") if slot else nn.Identity(),
        nn.BatchNorm1d(8),
        nn.GELU(),
        nn.Dropout(0.2),
        nn.Linear(8, 3),
    )


class Sequences(nn.Module):
    """A transformer over the rows of an image."""

    def __init__(self, slot: bool = True) -> None:
        super().__init__()
        torch.default_generator.manual_seed(0)
        self.embed = nn.Linear(4, 8)
        self.block = nn.TransformerEncoderLayer(8, 2, 16, dropout=0.1, batch_first=True)
        self.slot = SeedSlot(8, kind="sequence") if slot else nn.Identity()
        self.head = nn.Linear(8, 3)

    def forward(self, images: Tensor) -> Tensor:
        x = self.slot(self.block(self.embed(images.flatten(1, 2))))
        logits: Tensor = self.head(x.mean(1))
        return logits


# Host, its slot's name, a path to grow behind without a slot, blueprints.
HOSTS: dict[str, tuple[Callable[..., nn.Module], str, str, str]] = {
    "conv2d": (conv, "1", "0", "residual_conv"),
    "linear": (linear, "2", "1", "residual_mlp"),
    "sequence": (Sequences, "slot", "block", "attention"),
}


def loss(model: nn.Module, batch: Any) -> Tensor:
    return F.cross_entropy(model(batch[0]), batch[1])


def batch(position: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(position)
    return torch.randn(8, 1, 4, 4, generator=generator), torch.arange(8) % 3


@dataclass
class Training:
    """A garden in a host that trains: what a trainer does for seeds, and nothing else."""

    model: nn.Module
    garden: Garden
    position: int = 0
    told: list[Transition] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.manager = OptimizerManager(lambda p: torch.optim.AdamW(p, lr=0.02), self.model)
        self.side = SideTraining(self.garden, self.model, loss)
        self.step = TrainStep(self.model, loss, self.manager, CPU, seed=2, side=self.side)

    def steps(self, count: int) -> list[Tensor]:
        """Make so many steps, and return their losses."""
        losses = []
        for _ in range(count):
            if self.position >= self.garden.next_step:
                self.told += self.garden.advance(self.position)
            losses.append(self.step(batch(self.position), self.position, 0))
            self.position += 1
        return losses

    def grow(self, seed_id: str, blueprint: str, **options: Any) -> None:
        """Germinate a seed and let the optimizer have it."""
        plan = self.garden.plan_germinate(seed_id, blueprint, **options)
        grown = self.garden.germinate(plan, seed=1, step=self.position)
        self.manager.add_parameters(f"seed:{seed_id}", grown.parameters)

    def do(self, operation: str, seed_id: str = "a", **values: Any) -> Transition:
        """Do an operation, as a trainer would."""
        number = Operation.Value(f"SEED_OP_{operation}")
        moment = Moment(self.position, loss=1.0, held_out=self.held_out)
        passed = self.garden.operate(self.garden.plan(seed_id, number, values), moment)
        if passed.removed:
            self.manager.remove_group(f"seed:{seed_id}")
        return passed

    def to_probation(self, blueprint: str, **options: Any) -> None:
        """Grow seed ``a`` and lead it as far as FOSSILIZE may come next."""
        self.grow("a", blueprint, **options)
        self.do("START_TRAINING")
        self.steps(12)
        self.do("START_GRAFTING", blend_steps=4)
        self.steps(4)
        self.do("STABILIZE")
        self.steps(2)
        self.do("EVALUATE")

    def prune(self, target: str, fraction: float, impact: float = 1e6) -> tuple[Any, Any]:
        """Prune, and let the optimizer follow; the plan, and what was done."""
        plan = self.garden.plan_prune(target, fraction, {"impact": impact})
        done = self.garden.prune(plan, Moment(self.position, held_out=self.held_out))
        for cut in done.narrowed:
            self.manager.narrow(cut.name, cut.dim, cut.keep)
        return plan, done

    def held_out(self) -> float:
        """The loss on a batch that isn't trained on."""
        self.model.eval()
        with torch.no_grad():
            found = float(loss(self.model, batch(1000)))
        self.model.train()
        return found

    def host_tensors(self) -> dict[str, Tensor]:
        """All parameters, buffers and gradients of the host, copied."""
        state = {
            name: tensor.clone()
            for name, tensor in self.model.state_dict().items()
            if ".seed." not in name and ".tolaria_seed." not in name
        }
        for name, parameter in self.model.named_parameters():
            if self.garden.registry.owner(name) == HOST and parameter.grad is not None:
                state[f"gradient of {name}"] = parameter.grad.clone()
        return state


def output(model: nn.Module) -> Tensor:
    """What a model makes of a batch, in eval mode."""
    model.eval()
    with torch.no_grad():
        found: Tensor = model(batch(5)[0])
    model.train()
    return found


def training(kind: str, *, slot: bool = True, limits: Any = None, slots: Any = ()) -> Training:
    """A fresh host of a kind, with a garden."""
    random.seed(0)
    np.random.seed(0)  # noqa: NPY002
    model = HOSTS[kind][0](slot=slot).train()
    return Training(model, Garden(model, slots, limits=limits))
