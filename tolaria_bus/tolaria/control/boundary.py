"""The end of an epoch: validate, assemble the state, ask Tamiyo, adapt, check, checkpoint.

Each phase is timed. Validation, the checkpoint's copy, and commands that are work themselves
(structure, rollbacks) are timed apart; assembly, Tamiyo, adaptation and check have to fit the
boundary's budget. Spans say what each took this time, ``tolaria.boundary.*`` what they take at the
median, at p99 and at the most, and how often so many milliseconds were enough.

The budget is of this thread's processor time: a machine that is busy with other things makes an
epoch's end long, and no mode of ours would make it shorter. Of Tamiyo it is the time that passes:
the thread does nothing but wait.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Iterator, Mapping

import psutil
import torch

from tolaria_bus.leyline import HardwareContext, MetricPoint, SystemStatePacket
from tolaria_bus.safety.budget import Durations
from tolaria_bus.tolaria.control.guards import BOUNDARY
from tolaria_bus.tolaria.control.handshake import packet_id
from tolaria_bus.tolaria.control.mode import mode_name
from tolaria_bus.tolaria.control.telemetry import SOURCE, Telemetry
from tolaria_bus.tolaria.engine.optimizer import seed_group
from tolaria_bus.tolaria.engine.validation import Validation
from tolaria_bus.tolaria.recovery.state import TrainingState

GIB = float(1 << 30)
_PHASES = ("validation", "assembly", "tamiyo", "adaptation", "work", "check", "checkpoint")
_PERCENTILES = ((50, "p50"), (99, "p99"), (100, "max"))


class Boundary:
    """Runs the phases of one epoch's end. Training thread only.

    Args:
        run: The run's id.
        job: The job's name.
        state: Of the run.
        device: That it trains on.
        steps_per_epoch: Optimizer steps of an epoch.
        telemetry: Gets the timings.
        validate: Measures the model; ``None`` where the run is being stopped.
        accept: Told the accuracy; False where the run was sent back for it.
        describe: Adds to the state packet what others know.
        ask: Sends the state packet to Tamiyo; returns whether it waited for the answer.
        adapt: Opens the epoch fence; returns seconds that commands' own work and holds took.
        check: Raises where the run's parts have come apart.
        judge: Gets what each phase took of the processor, in milliseconds.
        checkpoint: Copies the state, if it is time to.
        wall_ns: Wall clock.

    Attributes:
        validation_loss: Of the newest validation; NaN before the first.
        validation_accuracy: Likewise, 0 to 1; ``None`` where the job has no accuracy.
        validated_at: Timeline and step of the newest validation in this process.
    """

    def __init__(
        self,
        run: str,
        job: str,
        state: TrainingState,
        device: torch.device,
        *,
        steps_per_epoch: int,
        telemetry: Telemetry,
        validate: Callable[[], Validation | None],
        accept: Callable[[float | None], bool],
        describe: Callable[[SystemStatePacket], None],
        ask: Callable[[SystemStatePacket], bool],
        adapt: Callable[[int], float],
        check: Callable[[], None],
        judge: Callable[[Mapping[str, float]], None],
        checkpoint: Callable[[], None],
        wall_ns: Callable[[], int] = time.time_ns,
    ) -> None:
        self.validation_loss = float("nan")
        self.validation_accuracy: float | None = None
        self.validated_at: tuple[int, int] | None = None
        self._run = run
        self._job = job
        self._state = state
        self._device = device
        self._steps_per_epoch = steps_per_epoch
        self._telemetry = telemetry
        self._validate = validate
        self._accept = accept
        self._describe = describe
        self._ask = ask
        self._adapt = adapt
        self._check = check
        self._judge = judge
        self._durations = {phase: Durations() for phase in _PHASES}
        self._checkpoint = checkpoint
        self._wall_ns = wall_ns

    def cross(self, epoch: int, training_loss: float) -> None:
        """Do what the end of an epoch asks for.

        Args:
            epoch: The epoch that has been completed: 1, 2, ...
            training_loss: Its mean training loss.
        """
        stamps = [time.perf_counter()]
        worked = [time.thread_time()]
        began_ns = self._wall_ns()

        def stamp() -> None:
            stamps.append(time.perf_counter())
            worked.append(time.thread_time())

        if not self._accept(self.validate()):
            return
        stamp()
        packet = self.assemble(epoch, training_loss)
        stamp()
        waited = self._ask(packet)
        stamp()
        work_ms = self._adapt(epoch) * 1e3
        stamp()
        self._check()
        stamp()
        self._checkpoint()
        stamp()
        validated, assembled, asked, adapted, checked, saved = (
            (end - start) * 1e3 for start, end in itertools.pairwise(stamps)
        )
        took_ms = dict(
            zip(
                _PHASES,
                (validated, assembled, asked, adapted - work_ms, work_ms, checked, saved),
                strict=True,
            )
        )
        self._telemetry.spans("tolaria.boundary", _marks(began_ns, took_ms))
        _, assembly, tamiyo, adaptation, check, _ = (
            (end - start) * 1e3 for start, end in itertools.pairwise(worked)
        )
        # A command's own work is processor time as well, and is none of adaptation's.
        adaptation = min(adaptation, took_ms["adaptation"])
        if waited:
            tamiyo = asked
        self._judge(
            {"assembly": assembly, "tamiyo": tamiyo, "adaptation": adaptation, "check": check}
        )
        self._telemetry.publish(self._histograms(took_ms))
        points = self._percentiles()
        points["tolaria.training.epoch_loss"] = (training_loss, "")
        points["tolaria.validation.loss"] = (self.validation_loss, "")
        if self.validation_accuracy is not None:
            points["tolaria.validation.accuracy"] = (self.validation_accuracy, "1")
        self._telemetry.metrics(points)

    def _histograms(self, took_ms: Mapping[str, float]) -> Iterator[MetricPoint]:
        """How often each budgeted phase was over within so many milliseconds, since the start."""
        for phase, durations in self._durations.items():
            durations.add(took_ms[phase])
        for phase in BOUNDARY.limits_ms:
            for bound, count in self._durations[phase].cumulated():
                yield MetricPoint(
                    name=f"tolaria.boundary.{phase}_ms.bucket",
                    value=count,
                    attributes={"le": f"{bound:g}"},
                )

    def _percentiles(self) -> dict[str, tuple[float, str]]:
        points = {}
        for phase, durations in self._durations.items():
            for percent, name in _PERCENTILES:
                points[f"tolaria.boundary.{phase}_ms.{name}"] = (
                    durations.percentile(percent),
                    "ms",
                )
        return points

    def validate(self) -> float | None:
        """Measure the model on the held-out data, unless the run is being stopped.

        Returns:
            The accuracy, ``None`` where there is none.
        """
        measured = self._validate()
        if measured is None:
            return None
        self.validation_loss, self.validation_accuracy = measured
        self.validated_at = self._state.timeline, self._state.step
        return measured.accuracy

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
            packet_id=packet_id(self._run, state.timeline, state.step),
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
            seed.learning_rate = rates.get(seed_group(seed.seed_id), 0.0)
            packet.seed_states.append(seed)
        for group, rate in rates.items():
            packet.training_metrics[f"learning_rate.{group}"] = rate
        for slot in state.kasmina.slots():
            packet.slots.add(
                name=slot.name, kind=slot.kind, features=slot.features, seed_id=slot.seed_id
            )
        metrics = packet.training_metrics
        metrics["loss.running_mean"] = state.watch.mean
        metrics["parameters"] = float(sum(p.numel() for p in state.model.parameters()))
        metrics["steps_per_epoch"] = float(self._steps_per_epoch)
        self._describe(packet)
        return packet


def _marks(began_ns: int, took_ms: Mapping[str, float]) -> list[tuple[str, int]]:
    """Phase and its start, in nanoseconds of the wall clock; at last the end."""
    ends = itertools.accumulate((int(took * 1e6) for took in took_ms.values()), initial=began_ns)
    return list(zip((*took_ms, ""), ends, strict=True))


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
