"""The gradients of host and seeds: in telemetry when it is due, in the state packet at epoch ends.

Only then are they read from the device: no step waits for it.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterator

import torch
from torch import Tensor

from tolaria_bus.tolaria.control.telemetry import Telemetry
from tolaria_bus.tolaria.engine.aggregation import TaskGradients
from tolaria_bus.tolaria.engine.figures import Figure
from tolaria_bus.tolaria.recovery.state import TrainingState


def gradient_metrics(state: TrainingState, tasks: TaskGradients | None) -> dict[str, float]:
    """What a state packet says of gradients, as its ``training_metrics``. Waits for the device.

    ``gradient.norm.OWNER`` is the 2-norm of the newest step's gradient of the parameters of
    ``host`` or of a seed, as the optimizer got it; not of one that got none.
    ``gradient.share.TASK`` and, with a handler, ``gradient.shared_norm.TASK``,
    ``gradient.conflicts.TASK`` and ``gradient.left_out.TASK`` are those of :class:`ToldGradients`.

    Args:
        state: Of the run.
        tasks: What makes the gradients; ``None`` where nothing tells host and seeds apart.
    """
    found = {f"gradient.norm.{owner}": norm for owner, norm in _norms(state)}
    if tasks is None or not tasks.present:
        return found
    for reading in tasks.watch.readings(_scale(state)):
        numbers = {"share": reading.share}
        if not math.isnan(reading.norm):
            numbers |= {
                "shared_norm": reading.norm,
                "conflicts": reading.conflicts,
                "left_out": reading.left_out,
            }
        found |= {f"gradient.{name}.{reading.task}": value for name, value in numbers.items()}
    return found


def _norms(state: TrainingState) -> Iterator[tuple[str, float]]:
    optimizer, owner = state.optimizer, state.kasmina.registry.owner
    gradients: dict[str, list[Tensor]] = defaultdict(list)
    for group in optimizer.param_groups:
        names = optimizer.parameter_names(group["name"])
        for name, parameter in zip(names, group["params"], strict=True):
            gradient = parameter.grad
            if gradient is not None:
                # A sparse one has no norm of its own.
                plain = gradient.coalesce().values() if gradient.is_sparse else gradient
                gradients[owner(name)].append(plain)
    for whose, some in gradients.items():
        yield whose, float(torch.nn.utils.get_total_norm(some))


def _scale(state: TrainingState) -> float:
    """What fp16 gradients are multiplied by before they are unscaled."""
    scaler = state.engine.scaler
    return scaler.get_scale() if scaler is not None else 1.0


class ToldGradients:
    """Tells figures of each task, and raises an alert where something had to be left out.

    Args:
        tasks: What makes the gradients.
        state: Of the run.
        telemetry: Where alerts go.
    """

    def __init__(self, tasks: TaskGradients, state: TrainingState, telemetry: Telemetry) -> None:
        self._tasks = tasks
        self._state = state
        self._telemetry = telemetry
        self._refused = 0
        self._left_out: dict[str, int] = {}

    def figures(self) -> list[Figure]:
        """Return ``tolaria.gradients.*`` by task; none while there is but the host.

        Waits for the device if there are several.
        """
        if self._tasks.present:
            return list(self._figures())
        self._tasks.release()
        return []

    def _figures(self) -> Iterator[Figure]:
        kasmina = self._state.kasmina
        readings = self._tasks.watch.readings(_scale(self._state))
        if not readings:
            return
        weights = kasmina.task_weights()
        alphas = {seed.seed_id: seed.metrics["alpha"] for seed in kasmina.seed_states()}
        for reading in readings:
            about = {"task": reading.task}
            numbers = {
                "weight": weights.get(reading.task, 1.0),
                "share": reading.share,
                "norm": reading.norm,
                "own_norm": reading.own_norm,
                "conflicts": reading.conflicts,
                "left_out": reading.left_out,
                "alpha": alphas.get(reading.task, math.nan),
                "mask": reading.mask,
            }
            for name, value in numbers.items():
                if not math.isnan(value):
                    yield Figure(f"tolaria.gradients.{name}", value, "", about)
            self._tell_left_out(reading.task, reading.left_out)
        refused = self._tasks.watch.refused
        yield Figure("tolaria.gradients.refused", refused)
        self._tell_refused(refused)

    def _tell_left_out(self, task: str, count: int) -> None:
        more = count - self._left_out.get(task, 0)
        self._left_out[task] = count
        if more > 0:
            self._telemetry.alert(
                "gradient_left_out",
                f"the gradient of {task} was not finite in {more} steps, and left out",
                task=task,
            )

    def _tell_refused(self, count: int) -> None:
        more, self._refused = count - self._refused, count
        if more > 0:
            self._telemetry.alert(
                "attribution_refused",
                f"the shares of {more} samples were negative, no numbers, or didn't sum to 1; "
                "they count as the host's",
                samples=more,
            )
