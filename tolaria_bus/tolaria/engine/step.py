"""One optimizer step, a pure function of (state, batch at a position).

``TrainStep`` does what a bare loop does and seeds the generators; what it does beyond that is asked
for (``StepOptions``). It doesn't wait for the device: what the loss was, and whether it is sound,
is read exactly one step later, from ``LossWatch``, while the device is busy with the next step.
"""

from collections.abc import Callable, Collection, Hashable, Iterable, Mapping
from functools import partial
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from tolaria_bus.tolaria.engine.aggregation import TaskGradients
from tolaria_bus.tolaria.engine.batch import map_tensors, to_device
from tolaria_bus.tolaria.engine.job_errors import JobError, user_error
from tolaria_bus.tolaria.engine.optimizer import HOST_GROUP, OptimizerManager
from tolaria_bus.tolaria.engine.options import StepOptions, amp_dtype
from tolaria_bus.tolaria.engine.passes import Passes
from tolaria_bus.tolaria.engine.phases import (
    AGGREGATION,
    BACKWARD,
    DATA,
    FORWARD,
    OPTIMIZER,
    PREPARE,
    SIDE,
    PhaseClock,
)
from tolaria_bus.tolaria.engine.precision import StepState
from tolaria_bus.tolaria.engine.seeding import StepSeeder
from tolaria_bus.tolaria.engine.side import SideTraining


class Batches(Protocol):
    """Where a step draws from."""

    @property
    def position(self) -> int:
        """How many batches have been drawn since the start of the run."""

    @property
    def steps_per_epoch(self) -> int:
        """Batches of one epoch."""

    def next(self) -> Any:
        """Return the batch at ``position`` and move on by one."""


class TrainStep:
    """Forward, backward, optimizer step.

    Args:
        model: In train mode, on ``device``.
        loss: The job's ``loss(model, batch)``.
        optimizer: The manager of the model's optimizer; asked for it at each step, as it may be
            rebuilt between two.
        device: Where the batches go.
        seed: The run's seed.
        side: Lets seeds learn beside the host, after its backward pass: from the step's last batch.
        tasks: Tells seeds with a part in the output apart in the gradient; None: nobody does.
        options: What is wanted beyond the plain loop.
        state: What of it must survive; one of its own where none is given.
        before_update: Called just before the optimizer's step: sets the learning rates.
        phases: Told which part of the step begins.

    Attributes:
        passes: Forward and backward, with what has failed in them.
    """

    def __init__(
        self,
        model: nn.Module,
        loss: Callable[[nn.Module, Any], Tensor],
        optimizer: OptimizerManager,
        device: torch.device,
        seed: int,
        side: SideTraining | None = None,
        *,
        tasks: TaskGradients | None = None,
        options: StepOptions | None = None,
        state: StepState | None = None,
        before_update: Callable[[], object] | None = None,
        phases: PhaseClock | None = None,
    ) -> None:
        options = options or StepOptions()
        self._enter = (phases or PhaseClock()).enter
        amp, _ = amp_dtype(options, device)
        self._model = model
        self._loss = loss
        self._manager = optimizer
        self._device = None if device.type == "cpu" else device
        self._channels_last = options.channels_last
        self._seed = StepSeeder(seed, device)
        self._accumulate = options.accumulate
        self._compiles = options.compile != "off"
        self._clip = options.clip_norm
        self._before_update = before_update
        state = state or StepState(device, fp16=amp is torch.float16)
        self._scaler = state.scaler
        self._one = torch.ones((), device=device)
        self.passes = Passes(
            model,
            self._run,
            state,
            device,
            backend={"off": "", "on": "inductor"}.get(options.compile, options.compile),
            amp=amp,
        )
        self._side = side
        self._tasks = tasks
        self._forward_done = partial(self._enter, BACKWARD)
        self._handled = False
        self._batch: Any = None
        self._seeded_with = 0

    def __call__(
        self, batch: Any, position: int, timeline: int, *, conservative: bool = False
    ) -> Tensor:
        """Take one step on the batch at ``position`` and return its loss, still on the device.

        Raises:
            JobError: the job's loss failed, or isn't a scalar tensor that depends on the model. The
                weights are as before.
        """
        self._enter(PREPARE)
        optimizer = self._begin(conservative)
        loss = self._pass(batch, position, timeline, 1.0, conservative)
        self._update(optimizer, timeline, position)
        return loss

    def advance(self, data: Batches, timeline: int, *, conservative: bool = False) -> Tensor:
        """Draw the batches of one step and take it; return their mean loss, still on the device.

        With accumulation an epoch's last step has as many batches as are left of it: no step goes
        over an epoch's end.

        Raises:
            JobError: as from a call; or the data couldn't be read.
        """
        self._enter(DATA)
        position = data.position
        if self._accumulate == 1:
            return self(data.next(), position, timeline, conservative=conservative)
        per_epoch = data.steps_per_epoch
        count = min(self._accumulate, per_epoch - position % per_epoch)
        optimizer = self._begin(conservative)
        total: Tensor | None = None
        for place in range(position, position + count):
            self._enter(DATA)
            batch = data.next()
            self._enter(PREPARE)
            loss = self._pass(batch, place, timeline, 1.0 / count, conservative)
            total = loss if total is None else total + loss
        assert total is not None
        self._update(optimizer, timeline, position)
        return total / count

    def _begin(self, conservative: bool) -> Optimizer:
        optimizer = self._manager.optimizer
        optimizer.zero_grad(set_to_none=True)
        tasks = self._tasks
        self._handled = (
            tasks is not None and tasks.present and tasks.begin(conservative=conservative)
        )
        return optimizer

    def _pass(
        self, batch: Any, position: int, timeline: int, share: float, conservative: bool
    ) -> Tensor:
        self._seeded_with = self._seed(timeline, position)
        if self._device is not None:
            batch = to_device(batch, self._device)
        if self._channels_last:
            batch = map_tensors(batch, _channels_last)
        self._batch = batch
        return self.passes(
            batch,
            share,
            lambda: self._seed(timeline, position),
            # What is compiled frees its memory behind the first of several backward passes.
            conservative=conservative or self._handled,
            key=self._structure(),
        )

    def _structure(self) -> Hashable:
        version = self._manager.version
        if not self._compiles or self._side is None:
            return version
        # What is compiled doesn't notice a hook that comes, goes, or does something else.
        return version, self._side.changes

    def _run(self, batch: Any, share: float) -> Tensor:
        loss = None
        self._enter(FORWARD)
        try:
            if self._tasks is not None and self._tasks.present:
                return self._tasks.backward(
                    batch,
                    share,
                    self._scaler,
                    handled=self._handled,
                    forward_done=self._forward_done,
                )
            loss = self._loss(self._model, batch)
            part = loss if share == 1.0 else loss * share
            if self._scaler is not None:
                part = self._scaler.scale(part)
            self._enter(BACKWARD)
            part.backward()  # type: ignore[no-untyped-call]
        except Exception as error:
            raise _explain(loss, error) from error
        return loss.detach()

    def _update(self, optimizer: Optimizer, timeline: int, position: int) -> None:
        scaler = self._scaler
        if self._handled and self._tasks is not None:
            self._enter(AGGREGATION)
            self._tasks.settle(timeline, position, scaled=scaler is not None)
        self._enter(OPTIMIZER)
        if scaler is not None:
            scaler.unscale_(optimizer)
        if self._side is not None and self._side.waits:
            # Behind the unscaling, which looks for overflows: its own skip no step of the host.
            self._enter(SIDE)
            scale = None if scaler is None else scaler.scale(self._one)
            with self.passes.eager(), self.passes.autocast():
                self._side(self._batch, self._seeded_with, scale)
            self._enter(OPTIMIZER)
        self._batch = None
        if self._before_update is not None:
            self._before_update()
        try:
            if self._clip is not None:
                learning = () if self._side is None else self._side.learning
                clip_gradients(self._manager.param_groups, self._clip, learning)
            if scaler is None:
                optimizer.step()
            else:
                scaler.step(optimizer)
                scaler.update()
        except Exception as error:
            # Such as sparse gradients, which few optimizers take.
            raise user_error("the job", f"the step of {self._manager.name}", error) from error


def clip_gradients(
    groups: Iterable[Mapping[str, Any]], norm: float, learning: Collection[str]
) -> None:
    """Scale gradients down to a 2-norm of at most ``norm``, without waiting for the device.

    The host's parameters count together, fossils among them, and those of each seed that learns by
    themselves: a seed beside the host must not change the host's steps.

    Args:
        groups: Of the optimizer.
        norm: The largest.
        learning: Names of the groups of seeds that learn and aren't the host's.
    """
    together: dict[str, list[Tensor]] = {}
    for group in groups:
        name = group["name"]
        owner = name if name in learning else HOST_GROUP
        together.setdefault(owner, []).extend(group["params"])
    for parameters in together.values():
        nn.utils.clip_grad_norm_(parameters, norm)


def _channels_last(tensor: Tensor) -> Tensor:
    return tensor.contiguous(memory_format=torch.channels_last) if tensor.dim() == 4 else tensor


def _explain(loss: object, error: Exception) -> JobError:
    """Say what is wrong with the loss, where torch's own words for it are hard to read."""
    if loss is None or (isinstance(loss, Tensor) and loss.dim() == 0 and loss.requires_grad):
        return user_error("the job", "loss(model, batch)", error)
    if not isinstance(loss, Tensor):
        found = f"a {type(loss).__name__}"
    elif loss.dim():
        found = f"a tensor of shape {tuple(loss.shape)}"
    else:
        found = "a tensor that needs no gradient"
    return JobError(
        f"the job: loss(model, batch) returned {found}; it must be a scalar tensor that depends on "
        "the model's parameters"
    )
