"""A host with two slots, seeds that have a say in it, and its gradients worked out by hand."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812

from tolaria_bus.kasmina import HOST, Garden, Limits, Moment, SeedSlot
from tolaria_bus.leyline import SeedOperation as Operation
from tolaria_bus.tolaria.engine import OptimizerManager, StepOptions, StepState, TrainStep
from tolaria_bus.tolaria.engine.aggregation import TaskGradients, find
from tolaria_bus.tolaria.engine.side import SideTraining

CPU = torch.device("cpu")
WIDE = Limits(side_steps=1, gradient_norm=1e9, scale=1e9, impact=1e9)
LIVES = ("START_TRAINING", "START_GRAFTING", "STABILIZE", "EVALUATE", "FINE_TUNE")


class Given(Garden):
    """Attributes as it is told to."""

    says: Any = None

    def attribute_batch(self, batch: Any) -> Any:
        found = self.says
        return found(batch) if callable(found) else found


def host() -> Any:
    torch.default_generator.manual_seed(0)
    return nn.Sequential(
        nn.Linear(4, 8),
        nn.Tanh(),
        SeedSlot(8, kind="linear"),
        nn.Linear(8, 8),
        nn.Tanh(),
        SeedSlot(8, kind="linear"),
        nn.Linear(8, 3),
    )


def sample_losses(model: nn.Module, batch: Any) -> Tensor:
    x, y = (batch["x"], batch["y"]) if isinstance(batch, dict) else batch
    return F.cross_entropy(model(x), y, reduction="none")


def loss(model: nn.Module, batch: Any) -> Tensor:
    return sample_losses(model, batch).mean()


def batch(position: int = 0, samples: int = 12) -> Any:
    generator = torch.Generator().manual_seed(position)
    return torch.randn(samples, 4, generator=generator), torch.arange(samples) % 3


def mixed(samples: int, tasks: int) -> Tensor:
    """Mostly a class for each task, so that they are in conflict; shape (samples, 1 + tasks).

    Each row sums to 1 to the bit.
    """
    found = torch.full((samples, 1 + tasks), 2)
    rows = torch.arange(samples)
    found[rows, rows % 3 % (1 + tasks)] = 64 - 2 * tasks
    return found / 64


class Scene:
    """Seeds in a host, at stages that are asked for; and the step that trains it."""

    def __init__(
        self,
        stages: Sequence[str] = ("STABILIZE", "STABILIZE"),
        *,
        handler: str = "pcgrad",
        losses: Callable[[nn.Module, Any], Tensor] = sample_losses,
        optimizer: Any = None,
        device: torch.device = CPU,
        **options: Any,
    ) -> None:
        self.model = host().to(device)
        self.device = device
        self.garden = Given(self.model, limits=WIDE)
        self.manager = OptimizerManager(
            optimizer or (lambda p: torch.optim.SGD(p, lr=0.1)), self.model
        )
        self.names: list[str] = []
        for number, stage in enumerate(stages):
            self.grow("ab"[number], "25"[number], stage)
        self.tasks = TaskGradients(
            self.garden, self.manager, self.model, losses, device, 3, handler=find(handler)
        )
        state = StepState(device, fp16=options.get("amp") == "fp16")
        self.scaler = state.scaler

        def loss(model: nn.Module, batch: Any) -> Tensor:
            return losses(model, batch).mean()

        self.step = TrainStep(
            self.model,
            loss,
            self.manager,
            device,
            3,
            SideTraining(self.garden, self.model, loss),
            tasks=self.tasks,
            options=StepOptions(**options),
            state=state,
        )

    def grow(self, seed_id: str, slot: str, until: str) -> None:
        """Lead a seed to where an operation leads; its weights are no identity's."""
        plan = self.garden.plan_germinate(seed_id, "residual_mlp", slot=slot)
        grown = self.garden.germinate(plan, seed=1)
        self.manager.add_parameters(f"seed:{seed_id}", grown.parameters)
        self.names.append(seed_id)
        with torch.no_grad():
            generator = torch.Generator().manual_seed(ord(seed_id))
            for parameter in grown.parameters.values():
                parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.5)
        if until == "GERMINATE":
            return
        for operation in LIVES[: LIVES.index(until) + 1]:
            self.do(operation, seed_id)

    def do(self, operation: str, seed_id: str) -> None:
        number = Operation.Value(f"SEED_OP_{operation}")
        values = {"blend_steps": 4} if operation == "START_GRAFTING" else {}
        if operation == "START_GRAFTING":
            self.garden.learn(seed_id, lambda: loss(self.model, self.there()))
        if operation == "STABILIZE":
            self.garden.advance(1_000)
        moment = Moment(0, loss=1.0, held_out=lambda: loss(self.model, self.there()).item())
        self.garden.operate(self.garden.plan(seed_id, number, values), moment)

    def there(self) -> Any:
        return tuple(each.to(self.device) for each in batch())

    def parameters(self) -> dict[str, nn.Parameter]:
        return dict(self.model.named_parameters())

    def gradients(self) -> dict[str, Tensor]:
        """Those that there are."""
        return {n: p.grad.clone() for n, p in self.parameters().items() if p.grad is not None}

    def without_gradients(self) -> None:
        for parameter in self.model.parameters():
            parameter.grad = None

    def by_task(self, batch: Any, shares: Tensor) -> list[dict[str, Tensor]]:
        """Each task's gradient g_k of every parameter, in float64, by one backward pass each."""
        found = []
        for column in shares.unbind(1):
            self.without_gradients()
            (sample_losses(self.model, batch) * column).mean().backward()  # type: ignore[no-untyped-call]
            found.append(
                {n: p.grad.double() for n, p in self.parameters().items() if p.grad is not None}
            )
        self.without_gradients()
        return found

    def weights(self) -> list[float]:
        given = self.garden.task_weights()
        return [1.0, *(given[name] for name in self.garden.tasks)]


def shared(scene: Scene) -> list[str]:
    """Names of the parameters that no seed owns."""
    owner = scene.garden.registry.owner
    return [name for name in scene.parameters() if owner(name) == HOST]


def flat(gradients: dict[str, Tensor], names: list[str]) -> Tensor:
    return torch.cat([gradients[name].flatten() for name in names])
