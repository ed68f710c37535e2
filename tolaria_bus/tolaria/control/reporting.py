"""What a run tells of itself while it goes on: numbers at intervals, and a look whenever asked."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from tolaria_bus.tolaria.control.emergencies import Emergencies
from tolaria_bus.tolaria.control.gradients import ToldGradients
from tolaria_bus.tolaria.control.mode import mode_name
from tolaria_bus.tolaria.control.phase_metrics import PhaseMetrics
from tolaria_bus.tolaria.control.standing import Standing
from tolaria_bus.tolaria.control.telemetry import Telemetry
from tolaria_bus.tolaria.recovery.state import TrainingState
from tolaria_bus.tolaria.start import Length
from tolaria_bus.tolaria.summary import Progress


class Reporting:
    """Reports of one run. Training thread only, but for the two properties.

    Args:
        state: Of the run.
        length: How long it is to be.
        telemetry: Publishes.
        gradients: What the tasks' gradients were like; ``None`` where there is one task.
        phase_metrics: The phases' times.
        standing: How the run stands, beside its numbers.
        emergencies: At which level it is.
        accuracy: The newest validation's; ``None`` before the first.
    """

    def __init__(
        self,
        state: TrainingState,
        length: Length,
        telemetry: Telemetry,
        gradients: ToldGradients | None,
        phase_metrics: PhaseMetrics,
        standing: Standing,
        emergencies: Emergencies,
        accuracy: Callable[[], float | None],
    ) -> None:
        self._state = state
        self._length = length
        self._telemetry = telemetry
        self._gradients = gradients
        self._phase_metrics = phase_metrics
        self._standing = standing
        self._emergencies = emergencies
        self._accuracy = accuracy
        self._speed = 0.0
        self._rate = next(iter(state.learning_rate.rates().values()), 0.0)

    def steps(self) -> None:
        """Publish the metrics of the steps since the last time."""
        state = self._state
        self._rate = next(iter(state.learning_rate.rates().values()), 0.0)
        figures = [*state.learning_rate.figures(state.step), *state.optimizer.figures()]
        if self._gradients is not None:
            figures += self._gradients.figures()
        self._speed = self._telemetry.step_metrics(state.last_loss, figures)
        self._phase_metrics.due()
        self._standing.look()

    def fence(self) -> None:
        """Something may have been done at a fence."""
        self._standing.seeds_changed()
        self._standing.look()

    def seeds_changed(self) -> None:
        """Seeds may have gone on by themselves."""
        self._standing.seeds_changed()

    def end(self) -> None:
        """Publish what there is left to say."""
        self.steps()
        self._phase_metrics.publish()
        self._standing.look(anyway=True)

    @property
    def standing(self) -> Mapping[str, Any]:
        """How the run stands, beside its numbers; see :class:`Standing`. For any thread."""
        return self._standing.told

    @property
    def progress(self) -> Progress:
        """Where the run is. For any thread: reads plain values, each by itself up to date."""
        state = self._state
        return Progress(
            step=state.step,
            total_steps=self._length.steps,
            epoch=state.epoch,
            epochs=self._length.epochs,
            loss=state.last_loss,
            accuracy=self._accuracy(),
            lr=self._rate,
            mode=mode_name(state.mode),
            timeline=state.timeline,
            steps_per_second=self._speed,
            emergency=self._emergencies.shown,
        )
