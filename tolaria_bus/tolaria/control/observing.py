"""What a command did to a run: a ``FieldReport`` once its observation window is over.

The window begins at the command's fence and ends with the epoch that is the ``observe_epochs``-th
whole one after it (an annotation of the command; 1 by default). What was measured before is part of
the run's state: a run that is resumed in the middle of a window reports at its end, one that is
rolled back before the command reports it as ABORTED. A report whose epoch is passed again after a
crash is sent again, under the same id.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from typing import Any, Final

import psutil
import torch

from tolaria_bus.leyline import (
    AdaptationCommand,
    CommandType,
    FieldReport,
    FieldReportOutcome,
    SeedOperation,
)
from tolaria_bus.leyline.annotations import POLICY
from tolaria_bus.leyline.codec import short_name
from tolaria_bus.tolaria.control.mailbox import Outbound
from tolaria_bus.tolaria.control.telemetry import Telemetry
from tolaria_bus.tolaria.engine.validation import Validation
from tolaria_bus.tolaria.recovery.sections import Section
from tolaria_bus.tolaria.recovery.state import TrainingState

OBSERVED: Final = frozenset(
    {
        CommandType.COMMAND_SEED,
        CommandType.COMMAND_STRUCTURAL_PRUNING,
        CommandType.COMMAND_OPTIMIZER,
        CommandType.COMMAND_LEARNING_RATE,
    }
)
"""Commands that change how a run learns."""

WINDOW_ANNOTATION: Final = "observe_epochs"
MATTERS: Final = 0.01
"""A held-out loss that changed by less than this share of it is NEUTRAL."""
_SECTION: Final = "observations"
_MB: Final = 1e6


class Observations:
    """The windows that are open. Training thread only, at fences.

    Args:
        run: The run's id.
        state: Of the run; gets a section that survives.
        device: Whose memory is looked at.
        outbound: Where reports go.
        telemetry: Knows whether steps are being run again: their reports were sent.
        wall_ns: For the messages.
        monotonic: For speed, in seconds.
    """

    def __init__(
        self,
        run: str,
        state: TrainingState,
        device: torch.device,
        outbound: Outbound,
        telemetry: Telemetry,
        *,
        wall_ns: Callable[[], int] = time.time_ns,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self._run = run
        self._state = state
        self._device = device
        self._outbound = outbound
        self._telemetry = telemetry
        self._wall_ns = wall_ns
        self._monotonic = monotonic
        self._open: dict[str, dict[str, Any]] = {}
        self._known: dict[str, dict[str, Any]] = {}
        self._last: dict[str, float] = {}
        self._clock = (monotonic(), state.step)
        state.sections[_SECTION] = Section(1, self._save, self._load)

    # Around a command

    def before(self, command: AdaptationCommand) -> dict[str, float] | None:
        """Measure what a command may change; None where it isn't one that is observed."""
        if command.command_type not in OBSERVED:
            return None
        mean = self._state.watch.mean
        return {**self._last, **({"training_loss": mean} if mean else {}), **self._size()}

    def begin(self, command: AdaptationCommand, before: dict[str, float] | None) -> None:
        """Open the window of a command that has been applied."""
        if before is None:
            return
        state = self._state
        whole = -(-state.data.position // state.data.steps_per_epoch)
        window = _window(command)
        seed = command.seed_operation
        entry = {
            "until": whole + window,
            "window": window,
            "step": state.step,
            "before": before,
            "seed_id": command.target_seed_id,
            "blueprint_id": seed.blueprint_id,
            "what": _what(command),
            "policy": command.annotations.get(POLICY, ""),
        }
        if seed.operation == SeedOperation.SEED_OP_GERMINATE and not command.target_seed_id:
            entry["seed_id"] = command.command_id
        self._open[command.command_id] = self._known[command.command_id] = entry

    # At the end of an epoch

    def stop_clock(self) -> None:
        """An epoch's steps are done: what follows is no training."""
        since, step = self._clock
        seconds, steps = self._monotonic() - since, self._state.step - step
        if steps > 0 and seconds > 0:
            self._last["steps_per_second"] = steps / seconds

    def start_clock(self) -> None:
        """The next epoch's steps begin."""
        self._clock = (self._monotonic(), self._state.step)

    def end_epoch(self, epoch: int, held_out: Validation | None) -> None:
        """Report the windows that end with this epoch.

        Args:
            epoch: The one that has been completed: 1, 2, …
            held_out: Measured at its end; None: it wasn't.
        """
        if held_out is not None:
            self._last["loss"] = held_out.loss
            if held_out.accuracy is not None:
                self._last["accuracy"] = held_out.accuracy
        for command_id, entry in list(self._open.items()):
            if entry["until"] <= epoch:
                del self._open[command_id], self._known[command_id]
                self._report(command_id, entry)
        for command_id in self._known.keys() - self._open.keys():
            self._abort(command_id, self._known.pop(command_id), "a rollback undid it")

    def end_run(self) -> None:
        """The run has come to its end: windows that are open are not going to end."""
        for command_id, entry in self._open.items():
            self._abort(command_id, entry, "the run ended before its window")
        self._open.clear()
        self._known.clear()

    # Reports

    def _report(self, command_id: str, entry: dict[str, Any]) -> None:
        before: dict[str, float] = entry["before"]
        after = {**self._last, "training_loss": self._state.watch.mean, **self._size()}
        metrics = {"steps": float(self._state.step - entry["step"])}
        for name in before.keys() | after.keys():
            if name in before:
                metrics[f"{name}_before"] = before[name]
            if name in after:
                metrics[f"{name}_after"] = after[name]
            if name in before and name in after:
                metrics[f"{name}_change"] = after[name] - before[name]
        change = metrics.get("loss_change", 0.0) / max(abs(before.get("loss", 0.0)), 1e-12)
        outcome = FieldReportOutcome.FIELD_REPORT_OUTCOME_NEUTRAL
        if "loss_change" in metrics and not change <= MATTERS:
            outcome = FieldReportOutcome.FIELD_REPORT_OUTCOME_REGRESSION
        elif "loss_change" in metrics and change < -MATTERS:
            outcome = FieldReportOutcome.FIELD_REPORT_OUTCOME_SUCCESS
        self._send(command_id, entry, outcome, entry["what"], metrics)

    def _abort(self, command_id: str, entry: dict[str, Any], why: str) -> None:
        aborted = FieldReportOutcome.FIELD_REPORT_OUTCOME_ABORTED
        self._send(command_id, entry, aborted, f"{entry['what']}: {why}", {})

    def _send(
        self,
        command_id: str,
        entry: dict[str, Any],
        outcome: FieldReportOutcome.ValueType,
        notes: str,
        metrics: dict[str, float],
    ) -> None:
        if self._telemetry.replaying:
            return
        report = FieldReport(
            version=1,
            report_id=f"{command_id}.t{self._state.timeline}",
            command_id=command_id,
            training_run_id=self._run,
            seed_id=entry["seed_id"],
            blueprint_id=entry["blueprint_id"],
            outcome=outcome,
            metrics={name: value for name, value in metrics.items() if math.isfinite(value)},
            observation_window_epochs=entry["window"],
            notes=notes,
            # Of an older checkpoint there is none.
            tamiyo_policy_version=entry.get("policy", ""),
        )
        report.issued_at.FromNanoseconds(self._wall_ns())
        self._outbound.report(report)

    def _size(self) -> dict[str, float]:
        if self._device.type == "cuda":
            memory = torch.cuda.memory_allocated(self._device)
        else:
            memory = psutil.Process().memory_info().rss
        count = sum(parameter.numel() for parameter in self._state.model.parameters())
        return {"memory_mb": memory / _MB, "parameters": float(count)}

    # What survives

    def _save(self) -> dict[str, Any]:
        return {"open": {**self._open}, "last": {**self._last}}

    def _load(self, saved: dict[str, Any], version: int) -> None:
        del version
        self._open = {name: {**entry} for name, entry in saved["open"].items()}
        self._known = {**self._known, **self._open}
        self._last = {**saved["last"]}
        self.start_clock()


def _window(command: AdaptationCommand) -> int:
    """The window that a command asks for, in epochs; ``begin`` is only told legal ones."""
    return int(command.annotations.get(WINDOW_ANNOTATION) or 1)


def window_refused(command: AdaptationCommand) -> str:
    """Say why a command's window is none; empty if it is."""
    text = command.annotations.get(WINDOW_ANNOTATION, "1")
    if text.isascii() and text.isdigit() and 1 <= int(text[:10]) <= 1_000_000:
        return ""
    return f"annotation {WINDOW_ANNOTATION} = {text!r}: must be a whole number from 1 to 1000000"


def _what(command: AdaptationCommand) -> str:
    name = short_name(CommandType, command.command_type)
    if command.command_type == CommandType.COMMAND_SEED:
        name += f" {short_name(SeedOperation, command.seed_operation.operation)}"
    reason = command.annotations.get("reason", "")
    return f"{name} ({reason})" if reason else name
