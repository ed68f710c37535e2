"""Recording a trace of a run's next steps: asked for, recorded, written, told.

The first step that is asked for is recorded for itself and thrown away: the profiler warms up, and
how many events a step has says how many steps fit. Then the steps are recorded, with what lies
between them. Ending a recording costs the training thread microseconds for each event; the file is
written and summed up by a thread of its own (the profiler's library holds the interpreter's lock
while it collects and while it writes, which is why a trace is kept small). A report then goes out
as telemetry: it has all that somebody on another machine needs, and says where the trace is.

Nothing of it is part of the run's state, and no weight depends on it. A command that was answered
is not done again by recovery; what a process that died was recording is lost, and told.
"""

from __future__ import annotations

import platform
import threading
import time
from dataclasses import dataclass
from typing import Any, Final

import structlog
import torch

from tolaria_bus.leyline import ProfileReport
from tolaria_bus.tolaria.control.telemetry import Telemetry
from tolaria_bus.tolaria.engine.phases import PhaseClock
from tolaria_bus.tolaria.engine.trace_table import tabulate
from tolaria_bus.tolaria.engine.tracing import Tracing
from tolaria_bus.tolaria.recovery.profile_folder import ProfileFolder, TraceNotKept
from tolaria_bus.tolaria.recovery.state import TrainingState

MOST_STEPS: Final = 10_000
"""That may be asked for at once."""
EVENT_BYTES: Final = 400
"""Of a trace's file, for each event; about 300 were measured with operators of short names."""


class ProfileFailed(RuntimeError):
    """A recording can't begin. One line says why."""


@dataclass
class _Asked:
    """What is to be recorded, or is being recorded."""

    report: ProfileReport
    tracing: Tracing | None = None
    probed: bool = False
    steps: int = 0
    left: int = 0
    since: float = 0.0


class Profiling:
    """Records one trace at a time. Training thread only; no method raises but ``ask``.

    Args:
        state: Of the run.
        folder: Where traces go.
        clock: Whose phases are named in it.
        telemetry: Gets the report.
        device: That the run trains on.

    Attributes:
        active: The trainer has to call :meth:`at_step` before each step.
    """

    def __init__(
        self,
        state: TrainingState,
        folder: ProfileFolder,
        clock: PhaseClock,
        telemetry: Telemetry,
        device: torch.device,
    ) -> None:
        self.active = False
        self._state = state
        self._folder = folder
        self._clock = clock
        self._telemetry = telemetry
        self._device = device
        self._asked: _Asked | None = None
        self._writer: threading.Thread | None = None
        self._written: ProfileReport | None = None
        self._per_step = 0

    @property
    def busy(self) -> str:
        """What is being recorded, in words; empty if nothing is."""
        if self._asked is not None:
            steps = self._asked.report.asked_steps
            return f"{self._asked.report.profile}, of {steps} steps, is being recorded"
        if self._writer is not None:
            return "the trace before is still being written"
        return ""

    def ask(self, steps: int, command_id: str = "") -> dict[str, Any]:
        """Record the next steps.

        Args:
            steps: How many, from 1.
            command_id: Of the command that wants it.

        Returns:
            What to tell whoever wants it: ``profile``, ``steps``, ``folder``.

        Raises:
            ProfileFailed: One is being recorded, or the folder can't be written.
        """
        if self.busy:
            raise ProfileFailed(self.busy)
        state = self._state
        name = f"s{state.step}-t{state.timeline}-{time.strftime('%Y%m%dT%H%M%S')}"
        try:
            self._folder.begin({"profile": name, "command_id": command_id, "steps": steps})
        except OSError as error:
            raise ProfileFailed(f"the folder of traces: {error}") from error
        report = ProfileReport(
            profile=name,
            command_id=command_id,
            asked_steps=steps,
            device=str(self._device),
            host=platform.node(),
        )
        self._asked = _Asked(report)
        self.active = True
        return {"profile": name, "steps": steps, "folder": str(self._folder.path)}

    def at_step(self) -> None:
        """Another step is about to be made."""
        self._count()
        if self._asked is None:
            self._settle()
        elif self._state.mode.conservative:
            self._finish("conservative mode began")
        elif self._asked.tracing is None:
            if not self._telemetry.replaying:  # What is run again isn't what was asked for.
                self._begin()
        elif not self._asked.probed:
            self._judge_probe()
        elif self._asked.left <= 0:
            self._finish("")

    def before_validation(self, batches: int) -> None:
        """So many batches are about to be gone through, between two steps."""
        asked = self._asked
        if asked is None or asked.tracing is None:
            return
        if not asked.probed:
            self._judge_probe()
        elif (asked.steps + 1 + batches) * self._per_step > self._most_events:
            self._count()
            self._finish("the validation that follows would make the trace too large")

    def begin_run(self, steps: int | None, *, after_crash: bool) -> None:
        """A process begins to train.

        Args:
            steps: To be recorded at the start, by a setting.
            after_crash: The process before died: what it was recording when it did is told, and the
                start isn't recorded once more.
        """
        self._tell_lost()
        if steps is None:
            return
        if after_crash:
            told = "profile_steps: not recorded, this start recovers from a crash; send profile"
            self._telemetry.event("profile_skipped", told)
            return
        try:
            self.ask(steps)
        except ProfileFailed as error:
            self._telemetry.event("profile_failed", str(error))

    def _tell_lost(self) -> None:
        try:
            left = self._folder.left_over()
        except OSError as error:
            self._telemetry.event("profile_failed", f"the folder of traces: {error}")
            return
        if left is not None:
            self._telemetry.event(
                "profile_lost",
                "the process ended while a trace was recorded; ask again",
                profile=left.get("profile", ""),
                command_id=left.get("command_id", ""),
            )

    def close(self, seconds: float) -> None:
        """The run ends here: write what there is, within so many seconds."""
        self._count()
        if self._asked is not None:
            self._finish("the run ended" if self._asked.left else "")
        if self._writer is not None:
            self._writer.join(seconds)
        self._settle()

    # One recording

    def _count(self) -> None:
        """A step was made since this was asked last."""
        if self._asked is not None and self._asked.probed:
            self._asked.steps += 1
            self._asked.left -= 1

    @property
    def _most_events(self) -> int:
        return self._folder.max_bytes // EVENT_BYTES

    def _begin(self) -> None:
        asked = self._asked
        assert asked is not None
        asked.tracing = Tracing(self._clock, self._device)
        try:
            asked.tracing.start()
        except Exception as error:  # noqa: BLE001 - training goes on; it is told
            self._give_up(f"it could not begin: {error}")

    def _judge_probe(self) -> None:
        """One step was recorded: how many fit? Then begin anew, with those."""
        asked = self._asked
        assert asked is not None
        assert asked.tracing is not None
        try:
            asked.tracing.stop()
            self._per_step = max(asked.tracing.count, 1)
        except Exception as error:  # noqa: BLE001 - training goes on; it is told
            self._give_up(f"it could not be ended: {error}")
            return
        wanted = asked.report.asked_steps
        asked.probed = True
        asked.left = min(wanted, max(1, self._most_events // self._per_step))
        if asked.left < wanted:
            asked.report.cut_short = (
                f"a step has {self._per_step} events, so {asked.left} steps fit profile_max_mb"
            )
        asked.report.first_step = self._state.step
        asked.since = time.perf_counter()
        self._begin()

    def _finish(self, why: str) -> None:
        """End the recording and have it written; ``why`` it is short, if it is."""
        asked, self._asked = self._asked, None
        assert asked is not None
        report, tracing = asked.report, asked.tracing
        report.cut_short = why or report.cut_short
        report.steps = asked.steps
        report.milliseconds = (time.perf_counter() - asked.since) * 1e3 if asked.since else 0.0
        if tracing is not None:
            try:
                tracing.stop()
            except Exception as error:  # noqa: BLE001 - training goes on; it is told
                report.trace_failed = f"it could not be ended: {error}"
                tracing = None
        if tracing is None or not asked.steps:
            report.trace_failed = report.trace_failed or "no step was recorded"
            self._written = report
            self._settle()
            return
        self._writer = threading.Thread(
            target=self._write, args=(tracing, report), name="trace", daemon=True
        )
        self._writer.start()

    def _give_up(self, why: str) -> None:
        asked, self._asked = self._asked, None
        assert asked is not None
        asked.report.trace_failed = why
        self._written = asked.report
        self._settle()

    def _write(self, tracing: Tracing, report: ProfileReport) -> None:
        """On a thread of its own: the file, then the table."""
        try:
            report.events = tracing.count
            table = tabulate(tracing.events, self._device.type)
            report.phases.extend(table.phases)
            report.operators.extend(table.operators)
            report.other_self_ms = table.other_self_ms
            report.other_device_ms = table.other_device_ms
            report.peak_bytes = table.peak_bytes
            path, size = self._folder.store(
                f"{report.profile}.json", tracing.save, report.events * EVENT_BYTES
            )
            report.trace, report.trace_bytes = str(path), size
        except (TraceNotKept, OSError) as error:
            report.trace_failed = str(error)
        except Exception as error:  # noqa: BLE001 - told by the report, in full in the log
            structlog.get_logger().exception("trace failed")
            report.trace_failed = f"{type(error).__name__}: {error}"
        self._written = report

    def _settle(self) -> None:
        """Tell what was written, if it is."""
        report = self._written
        if report is None:
            return
        self._written, self._writer = None, None
        self.active = False
        try:
            self._folder.end()
        except OSError as error:
            report.trace_failed = report.trace_failed or str(error)
        told = f"{report.steps} steps from step {report.first_step} on are in {report.trace}"
        self._telemetry.profile(
            report,
            "profile_failed" if report.trace_failed else "profile",
            report.trace_failed or told,
        )
