"""The end of an epoch as the trainer passes it: the boundary, and what belongs around it."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

from tolaria_bus.leyline import SystemStatePacket
from tolaria_bus.settings import Settings
from tolaria_bus.tolaria.control.boundary import Boundary
from tolaria_bus.tolaria.control.handshake import Handshake
from tolaria_bus.tolaria.control.observing import Observations
from tolaria_bus.tolaria.control.profiling import Profiling
from tolaria_bus.tolaria.control.seeds import SeedWork
from tolaria_bus.tolaria.control.steering import Steering
from tolaria_bus.tolaria.control.telemetry import Telemetry
from tolaria_bus.tolaria.control.validating import Validating
from tolaria_bus.tolaria.engine import phases
from tolaria_bus.tolaria.engine.phases import PhaseClock
from tolaria_bus.tolaria.engine.validation import Validation
from tolaria_bus.tolaria.start import steps_per_epoch


class EpochEnd:
    """Passes the ends of one run's epochs. Training thread only.

    Args:
        run: The run's id.
        job: The job's name.
        settings: How often a checkpoint is made, and how many batches make a step.
        steering: Has the state, its health, its fence.
        validating: Measures the model.
        observations: What becomes of commands' effects.
        handshake: Asks Tamiyo.
        seeds: Publishes how seeds are.
        gradients: What the state packet says of gradients.
        profiling: Is told of a validation.
        clock: Times the phases.
        telemetry: Publishes.
        wall_ns: Nanoseconds since the epoch, for messages.

    Attributes:
        boundary: What was measured last, and when.
    """

    def __init__(
        self,
        run: str,
        job: str,
        settings: Settings,
        steering: Steering,
        validating: Validating,
        *,
        observations: Observations,
        handshake: Handshake,
        seeds: SeedWork,
        gradients: Callable[[], Mapping[str, float]],
        profiling: Profiling,
        clock: PhaseClock,
        telemetry: Telemetry,
        wall_ns: Callable[[], int],
    ) -> None:
        self._every = settings.checkpoint_every_epochs
        self._steering = steering
        self._validating = validating
        self._observations = observations
        self._handshake = handshake
        self._seeds = seeds
        self._gradients = gradients
        self._measured: Mapping[str, float] = {}
        self._profiling = profiling
        self._clock = clock
        self._telemetry = telemetry
        self.boundary = Boundary(
            run,
            job,
            steering.state,
            validating.device,
            steps_per_epoch=steps_per_epoch(settings, steering.state.data.steps_per_epoch),
            telemetry=telemetry,
            validate=self._validate,
            accept=steering.health.check_accuracy,
            describe=self._describe,
            ask=self._ask,
            adapt=self._adapt,
            check=steering.check_parts,
            judge=steering.guards.judge_boundary,
            checkpoint=self._save,
            wall_ns=wall_ns,
        )

    def cross(self) -> bool:
        """Do what the end of an epoch asks for; false: the run has gone back instead."""
        state = self._steering.state
        self._clock.enter(phases.BOUNDARY)
        epoch = state.epoch
        if not self._steering.health.check():
            return False
        self._observations.stop_clock()
        # The device has been waited for. Here, as large gradients take longer than a packet may.
        self._measured = self._gradients()
        self.boundary.cross(epoch, state.end_epoch())
        self._seeds.publish()
        self._telemetry.metrics(self._handshake.tell())
        self._observations.start_clock()
        return True

    def _describe(self, packet: SystemStatePacket) -> None:
        self._handshake.describe(packet)
        packet.training_metrics.update(self._measured)

    def _validate(self) -> Validation | None:
        self._profiling.before_validation(len(self._validating.held_out))
        before = self._clock.enter(phases.VALIDATION)
        measured = self._validating.whole()
        self._clock.enter(before)
        return measured

    def _ask(self, packet: SystemStatePacket) -> bool:
        self._clock.enter(phases.TAMIYO)
        waited = self._handshake.ask(packet)
        self._clock.enter(phases.BOUNDARY)
        return waited

    def _adapt(self, epoch: int) -> float:
        """Open the fence; seconds of it that aren't the boundary's own."""
        fence, boundary = self._steering.fence, self.boundary
        measured = Validation(boundary.validation_loss, boundary.validation_accuracy)
        self._observations.end_epoch(epoch, None if math.isnan(measured.loss) else measured)
        apart = fence.apart_seconds
        self._clock.enter(phases.FENCE)
        fence.open(epoch_ended=epoch)
        self._clock.enter(phases.BOUNDARY)
        return fence.apart_seconds - apart

    def _save(self) -> None:
        if self._steering.state.epoch % self._every == 0 and not self._steering.stopping:
            self._clock.enter(phases.CHECKPOINT)
            self._steering.checkpoints.save_later()
            self._clock.enter(phases.BOUNDARY)
