"""What a run asks of whoever owns its seeds. :class:`~tolaria_bus.kasmina.garden.Garden` is one.

A job may bring its own: ``kasmina(model)`` returns it. Everything is called on the training
thread, at fences, but for ``learn``, ``attribute_batch`` and ``probe``, which are called within a
step, and must not wait for the device. Whatever decides about the
model's weights or structure must follow from the model, the arguments and what ``structure`` wrote
down, and must draw from no global random generator: a run that is recovered or replayed calls the
same methods with the same arguments and must come to the same bits.
"""

from collections.abc import Callable, Mapping
from typing import Any, Protocol

from torch import Tensor

from tolaria_bus.kasmina.operations import Moment
from tolaria_bus.kasmina.probe import Probe
from tolaria_bus.kasmina.pruning import Pruned, PruningPlan
from tolaria_bus.kasmina.records import (
    Germinated,
    GerminationPlan,
    OperationPlan,
    Rebuilt,
    SlotView,
    Transition,
)
from tolaria_bus.kasmina.registry import Registry
from tolaria_bus.leyline import SeedOperation, SeedState


class Kasmina(Protocol):
    """The owner of a model's seeds: their slots, stages and parameters.

    Methods that judge or do raise ``SeedRefused`` where they can't, and have changed nothing then.

    Attributes:
        registry: Which parameter belongs to whom.
        next_step: ``advance`` has something to do once so many steps are done; compared before
            every step.
        side: The seeds that learn on the side; asked at every step.
        tasks: The seeds with a part in the host's output that aren't the host's yet, from BLENDING
            on: each is a task of its own in the gradient. Asked at every step.
    """

    registry: Registry
    next_step: int
    side: tuple[str, ...]
    tasks: tuple[str, ...]

    def slots(self) -> list[SlotView]:
        """Return every slot."""

    def seed_ids(self) -> tuple[str, ...]:
        """Return the ids of the seeds that aren't DORMANT."""

    def plan_germinate(
        self,
        seed_id: str,
        blueprint_id: str,
        *,
        slot: str = "",
        parameters: Mapping[str, Any] | None = None,
    ) -> GerminationPlan:
        """Judge a germination."""

    def germinate(
        self, plan: GerminationPlan, *, seed: int, step: int = 0, epoch: int = 0
    ) -> Germinated:
        """Grow a planned seed and return its parameters, for the optimizer."""

    def plan(
        self,
        seed_id: str,
        operation: SeedOperation.ValueType,
        values: Mapping[str, Any] | None = None,
    ) -> OperationPlan:
        """Judge any other operation, but for its gate."""

    def operate(self, plan: OperationPlan, moment: Moment) -> Transition:
        """Measure the gate, then do what was planned."""

    def plan_prune(
        self, target: str, fraction: float, values: Mapping[str, Any] | None = None
    ) -> PruningPlan:
        """Judge the removal of a layer's output channels."""

    def prune(self, plan: PruningPlan, moment: Moment) -> Pruned:
        """Measure the gate, then remove them."""

    def advance(self, step: int) -> tuple[Transition, ...]:
        """Do what time brings before the step after ``step`` steps done; idempotent."""

    def learn(
        self, seed_id: str, loss: Callable[[], Tensor], *, scale: Tensor | None = None
    ) -> None:
        """Give a seed of ``side`` its gradient of one pass; the host must stay as it is.

        ``scale`` is given with fp16 alone: what the loss has to be multiplied by, a scalar on the
        device. The gradient must be unscaled when this returns.
        """

    def attribute_batch(self, batch: Any) -> Tensor | Mapping[str, Tensor] | None:
        """Return whose a batch's samples are, or None: the probe is to tell.

        Called before the forward pass, where the batch carries no attribution of its own.

        Returns:
            Seed id → share of each sample, shape (samples,); what is left is the host's. Or a
            tensor of shape (samples, 1 + len(tasks)): the host's, then those of ``tasks``.
        """

    def probe(self) -> Probe:
        """Return what measures the attribution of the forward pass that is made in its context."""

    def task_weights(self) -> dict[str, float]:
        """Return the weight of each seed's task in the gradient, the host's being 1."""

    def seed_states(self, step: int = 0, epoch: int = 0) -> list[SeedState]:
        """Return each seed as Leyline tells it."""

    def structure(self) -> dict[str, Any]:
        """Return all but the weights, as JSON values, for a checkpoint."""

    def rebuild(self, structure: Mapping[str, Any]) -> Rebuilt:
        """Make the model what ``structure`` says; the weights are loaded after that."""

    def terminate(self) -> tuple[Transition, ...]:
        """The run is over."""
