"""The passes of a step in which seeds are tasks beside the host, and what becomes of them."""

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from tolaria_bus.kasmina import HOST, Kasmina
from tolaria_bus.tolaria.engine.aggregation import attribution
from tolaria_bus.tolaria.engine.aggregation.combining import combine, kept
from tolaria_bus.tolaria.engine.aggregation.handlers import Handler
from tolaria_bus.tolaria.engine.aggregation.watching import TaskWatch
from tolaria_bus.tolaria.engine.job_errors import JobError
from tolaria_bus.tolaria.engine.optimizer import OptimizerManager
from tolaria_bus.tolaria.engine.precision import ATTRIBUTION, StepState
from tolaria_bus.tolaria.engine.seeding import Domain, mix

SampleLosses = Callable[[nn.Module, Any], Tensor]


class _Members(NamedTuple):
    """Whose the optimized parameters are, while the tasks are ``tasks``."""

    version: int
    tasks: tuple[str, ...]
    shared: list[nn.Parameter]
    own: list[list[nn.Parameter]]


class TaskGradients:
    """Gives parameters their gradient (``.grad``) of the losses of several tasks.

    Args:
        kasmina: Whose seeds are the tasks, who weighs them, and whose registry says which parameter
            is whose.
        optimizer: Its parameters get a gradient.
        model: The host.
        sample_losses: The job's.
        device: Where they are.
        seed: The run's.
        handler: Of conflicts; None: one backward pass of the weighted loss.
        engine: Says whether attribution is off, as it was found not to work.

    Attributes:
        watch: Norms, shares and counts, on the device until they are asked for.
    """

    def __init__(
        self,
        kasmina: Kasmina,
        optimizer: OptimizerManager,
        model: nn.Module,
        sample_losses: SampleLosses,
        device: torch.device,
        seed: int,
        *,
        handler: Handler | None = None,
        engine: StepState | None = None,
    ) -> None:
        self.watch = TaskWatch(device)
        self._kasmina = kasmina
        self._manager = optimizer
        self._model = model
        self._sample_losses = sample_losses
        self._seed = seed
        self._handler = handler
        self._engine = engine or StepState()
        self._members: _Members | None = None
        self._gathered: list[list[Tensor | None]] | None = None
        self._spent: dict[int, list[Tensor | None]] = {}

    @property
    def present(self) -> bool:
        """Whether a seed is told apart from the host; all that a step pays where none is."""
        return bool(self._kasmina.tasks) and ATTRIBUTION not in self._engine.fallen

    def objection(self) -> str:
        """Say what of the model's gradients can't be told apart or handled; empty: nothing."""
        for name, parameter in self._model.named_parameters():
            if parameter.is_complex():
                return f"the parameter {name} is complex"
        if self._handler is not None:
            for name, module in self._model.named_modules():
                if isinstance(module, (nn.Embedding, nn.EmbeddingBag)) and module.sparse:
                    return f"the gradient of {name} is sparse, which no handler takes"
        return ""

    def begin(self, *, conservative: bool) -> bool:
        """Begin a step; return whether its tasks' gradients will be handled, by several passes.

        Args:
            conservative: No handler.
        """
        self._gathered = None
        self.watch.begin(self._kasmina.tasks)
        self._find_members()
        return self._handler is not None and not conservative

    def release(self) -> None:
        """Give back what memory is kept for the next step's gradients: there will be none soon."""
        self._spent.clear()

    def backward(
        self,
        batch: Any,
        share: float,
        scaler: torch.amp.GradScaler | None,
        *,
        handled: bool,
        forward_done: Callable[[], object] = lambda: None,
    ) -> Tensor:
        """Make the passes over one batch.

        Args:
            batch: On the device.
            share: Of the step: what the losses are multiplied by.
            scaler: Of fp16 gradients.
            handled: As ``begin`` said; gradients are gathered for ``settle``.
            forward_done: Called when the losses are there, before the first backward pass.

        Returns:
            The mean of the samples' losses, detached: what it would be without seeds.

        Raises:
            JobError: what the job gave can't be used.
        """
        tasks = self._kasmina.tasks
        losses, shares = self._measure(batch, tasks)
        weights = self._weights(tasks)
        forward_done()
        if handled:
            parts = [(losses * column).mean() * share for column in shares.unbind(1)]
            self._gather(parts if scaler is None else [scaler.scale(part) for part in parts])
        else:
            blame = shares[:, 0] * weights[0]
            for column, weight in zip(shares.unbind(1)[1:], weights[1:], strict=True):
                blame = torch.add(blame, column, alpha=weight)
            part = (losses * blame).mean() * share
            (part if scaler is None else scaler.scale(part)).backward()  # type: ignore[no-untyped-call]
        return losses.detach().mean()

    def settle(self, timeline: int, position: int, *, scaled: bool) -> None:
        """Make one gradient of those that were gathered in the step.

        Args:
            timeline: Of the run.
            position: Of the step's first batch.
            scaled: By a ``GradScaler``, which has to see what isn't finite, and skips the step.
        """
        gathered, self._gathered = self._gathered, None
        if gathered is None or self._handler is None or self._members is None:
            return
        members = self._members
        weights = torch.stack([self.watch.scalar(w) for w in self._weights(members.tasks)])
        count = len(members.shared)
        used = [
            index
            for index in range(count)
            if any(gradients[index] is not None for gradients in gathered)
        ]
        found = combine(
            [[gradients[index] for index in used] for gradients in gathered],
            [members.shared[index] for index in used],
            [[g for g in gradients[count:] if g is not None] for gradients in gathered],
            weights,
            self._handler,
            mix(self._seed, Domain.AGGREGATION, timeline, position),
            leave_out=not scaled,
        )
        for index, aggregate in zip(used, found.shared, strict=True):
            members.shared[index].grad = aggregate
        for parameters, gradients, finite in zip(
            members.own, gathered, found.finite.unbind(), strict=True
        ):
            for parameter, gradient in zip(parameters, gradients[count:], strict=True):
                if gradient is not None:
                    parameter.grad = gradient if scaled else kept(gradient, finite)
        if weights.is_cpu:
            self._spent = dict(enumerate(gathered))
        self.watch.note_gradients(found)

    def _measure(self, batch: Any, tasks: tuple[str, ...]) -> tuple[Tensor, Tensor]:
        """The samples' losses, shape (samples,), and their attribution."""
        said_by = f"the batch's {attribution.FIELD}"
        found = attribution.carried_by(batch)
        if found is None:
            said_by = "Kasmina's attribute_batch(batch)"
            found = self._kasmina.attribute_batch(batch)
        probe = self._kasmina.probe() if found is None else None
        with probe or nullcontext():
            losses = _of_samples(self._sample_losses(self._model, batch))
        # Shares in half precision would not sum to 1.
        plain = losses.detach().to(torch.promote_types(losses.dtype, torch.float32))
        if probe is not None:
            found = probe.shares(len(losses))
        shares, refused = attribution.checked(
            attribution.matrix(found, tasks, plain, said_by=said_by)
        )
        self.watch.note_shares(shares, refused)
        return losses, shares

    def _weights(self, tasks: Sequence[str]) -> list[float]:
        given = self._kasmina.task_weights()
        return [1.0, *(given.get(task, 0.0) for task in tasks)]

    def _gather(self, parts: Sequence[Tensor]) -> None:
        members = self._find_members()
        gathered: list[list[Tensor | None]] = []
        for task, part in enumerate(parts):
            # Their memory is there for the new ones: a CPU's is costly to give back and get again.
            self._spent.pop(task, None)
            wanted = [*members.shared, *members.own[task]]
            last = task + 1 == len(parts)
            found = iter(
                torch.autograd.grad(
                    part,
                    [parameter for parameter in wanted if parameter.requires_grad],
                    retain_graph=not last,
                    allow_unused=True,
                )
            )
            gathered.append([next(found) if p.requires_grad else None for p in wanted])
        for row in gathered:
            if any(g is not None and g.layout is not torch.strided for g in row):
                raise JobError(
                    "the job: a gradient is sparse (as of an embedding made with sparse=True); "
                    "only aggregation=none can have such ones"
                )
        before = self._gathered
        self._gathered = gathered if before is None else _sum(before, gathered)

    def _find_members(self) -> _Members:
        manager, tasks = self._manager, self._kasmina.tasks
        known = self._members
        if known is not None and (known.version, known.tasks) == (manager.version, tasks):
            return known
        owner = self._kasmina.registry.owner
        named: list[tuple[str, nn.Parameter]] = [
            (name, parameter)
            for group in manager.param_groups
            for name, parameter in zip(
                manager.parameter_names(group["name"]), group["params"], strict=True
            )
        ]
        for name, parameter in named:
            if parameter.is_complex():
                raise JobError(f"the job: aggregation has no gradient of the complex {name}")
        self._members = _Members(
            manager.version,
            tasks,
            [parameter for name, parameter in named if owner(name) == HOST],
            [[], *([p for name, p in named if owner(name) == task] for task in tasks)],
        )
        self.watch.note_members(self._members.shared, self._members.own)
        return self._members


def _of_samples(losses: object) -> Tensor:
    """One loss a sample: what a sample has several of is its mean."""
    if not isinstance(losses, Tensor) or losses.dim() == 0 or not losses.requires_grad:
        found = (
            f"a tensor of shape {tuple(losses.shape)}, gradient: {losses.requires_grad}"
            if isinstance(losses, Tensor)
            else f"a {type(losses).__name__}"
        )
        raise JobError(
            f"the job: its samples' losses are {found}; they must be a tensor of shape "
            "(samples, ...) that depends on the model's parameters"
        )
    return losses.flatten(1).mean(1) if losses.dim() > 1 else losses


def _sum(
    before: list[list[Tensor | None]], after: list[list[Tensor | None]]
) -> list[list[Tensor | None]]:
    return [
        [
            b if a is None else a if b is None else a + b
            for a, b in zip(row_before, row_after, strict=True)
        ]
        for row_before, row_after in zip(before, after, strict=True)
    ]
