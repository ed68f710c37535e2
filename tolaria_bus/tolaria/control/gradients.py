"""The gradients of host and seeds in telemetry, read from the device only when it is due."""

from __future__ import annotations

import math
from collections.abc import Iterator

from tolaria_bus.tolaria.control.telemetry import Telemetry
from tolaria_bus.tolaria.engine.aggregation import TaskGradients
from tolaria_bus.tolaria.engine.figures import Figure
from tolaria_bus.tolaria.recovery.state import TrainingState


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
        kasmina, scaler = self._state.kasmina, self._state.engine.scaler
        readings = self._tasks.watch.readings(scaler.get_scale() if scaler is not None else 1.0)
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
