"""The end of an epoch: validate, assemble the state, adapt, checkpoint; each phase timed.

Validation and the checkpoint's copy are work; assembly and adaptation have to fit the boundary's
budget (``tolaria.boundary.*_ms`` says what they took).
"""

from __future__ import annotations

import time
from collections.abc import Callable

import psutil
import torch

from tolaria_bus.leyline import HardwareContext, SystemStatePacket
from tolaria_bus.tolaria.control.mailbox import Outbound
from tolaria_bus.tolaria.control.mode import mode_name
from tolaria_bus.tolaria.control.seeds import group_of
from tolaria_bus.tolaria.control.telemetry import SOURCE, Telemetry
from tolaria_bus.tolaria.engine.validation import Validation
from tolaria_bus.tolaria.recovery.state import TrainingState

GIB = float(1 << 30)


class Boundary:
    """Runs the phases of one epoch's end. Training thread only.

    Attributes:
        validation_loss: Of the newest validation; NaN before the first.
        validation_accuracy: Likewise, 0 to 1; ``None`` where the job has no accuracy.
    """

    def __init__(
        self,
        run: str,
        job: str,
        state: TrainingState,
        device: torch.device,
        *,
        outbound: Outbound,
        telemetry: Telemetry,
        validate: Callable[[], Validation | None],
        adapt: Callable[[int], None],
        checkpoint: Callable[[], None],
        wall_ns: Callable[[], int] = time.time_ns,
    ) -> None:
        self.validation_loss = float("nan")
        self.validation_accuracy: float | None = None
        self._run = run
        self._job = job
        self._state = state
        self._device = device
        self._outbound = outbound
        self._telemetry = telemetry
        self._validate = validate
        self._adapt = adapt
        self._checkpoint = checkpoint
        self._wall_ns = wall_ns

    def cross(self, epoch: int, training_loss: float) -> None:
        """Do what the end of an epoch asks for.

        Args:
            epoch: The epoch that has been completed: 1, 2, ...
            training_loss: Its mean training loss.
        """
        stamps = [time.perf_counter()]

        def stamp() -> None:
            stamps.append(time.perf_counter())

        self.validate()
        stamp()
        self._outbound.state(self.assemble(epoch, training_loss))
        stamp()
        self._adapt(epoch)
        stamp()
        self._checkpoint()
        stamp()
        phases = ("validation", "assembly", "adaptation", "checkpoint")
        points = {
            f"tolaria.boundary.{phase}_ms": ((end - start) * 1e3, "ms")
            for phase, start, end in zip(phases, stamps, stamps[1:], strict=False)
        }
        points["tolaria.training.epoch_loss"] = (training_loss, "")
        points["tolaria.validation.loss"] = (self.validation_loss, "")
        if self.validation_accuracy is not None:
            points["tolaria.validation.accuracy"] = (self.validation_accuracy, "1")
        self._telemetry.metrics(points)

    def validate(self) -> None:
        """Measure the model on the held-out data, unless the run is being stopped."""
        measured = self._validate()
        if measured is not None:
            self.validation_loss, self.validation_accuracy = measured

    def assemble(self, epoch: int, training_loss: float) -> SystemStatePacket:
        """The state of the run, as Tamiyo gets it."""
        state = self._state
        now = self._wall_ns()
        packet = SystemStatePacket(
            version=1,
            current_epoch=epoch,
            validation_accuracy=self.validation_accuracy or 0.0,
            validation_loss=self.validation_loss,
            timestamp_ns=now,
            hardware_context=hardware(self._device),
            packet_id=f"{self._run}.t{state.timeline}.s{state.step}",
            global_step=state.step,
            training_loss=training_loss,
            source_subsystem=SOURCE,
            training_run_id=self._run,
            experiment_name=self._job,
            timeline=state.timeline,
            mode=mode_name(state.mode),
        )
        rates = state.learning_rate.rates()
        for seed in state.kasmina.seed_states(state.step, state.epoch):
            seed.learning_rate = rates.get(group_of(seed.seed_id), 0.0)
            packet.seed_states.append(seed)
        for group, rate in rates.items():
            packet.training_metrics[f"learning_rate.{group}"] = rate
        packet.training_metrics["loss.running_mean"] = state.watch.mean
        return packet


def hardware(device: torch.device) -> HardwareContext:
    """The device's memory (GiB) and load, as far as they can be read without waiting."""
    if device.type == "cuda":
        free, total = torch.cuda.mem_get_info(device)
        major, minor = torch.cuda.get_device_capability(device)
        return HardwareContext(
            device_type="cuda",
            device_id=str(device.index or 0),
            total_memory_gb=total / GIB,
            available_memory_gb=free / GIB,
            compute_capability=major * 10 + minor,
        )
    memory = psutil.virtual_memory()
    return HardwareContext(
        device_type="cpu",
        device_id="0",
        total_memory_gb=memory.total / GIB,
        available_memory_gb=memory.available / GIB,
        # Since the last call: no waiting.
        utilization_percent=psutil.cpu_percent(interval=None),
    )
