"""A steered run done again from its journal, without a bus and without its checkpoints.

The trainer recovers from a journal of the live path (:mod:`.recovery.recording`) in a folder of
its own: commands, rollbacks and the trainer's own decisions come from there, each at its step, and
nothing is decided anew. Pauses and halts take no time. The run's own folder is only read.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from itertools import islice
from typing import Any

from tolaria_bus.leyline import (
    CommandOutcome,
    EmergencySignal,
    FieldReport,
    MessagePriority,
    RunStarted,
    SystemStatePacket,
    TelemetryPacket,
)
from tolaria_bus.settings import DECIDES_WEIGHTS, Settings, load
from tolaria_bus.tolaria.control.mailbox import Delivery, Mailbox
from tolaria_bus.tolaria.control.recovering import Divergence
from tolaria_bus.tolaria.engine.job import Job
from tolaria_bus.tolaria.engine.schedule import Schedule
from tolaria_bus.tolaria.recovery.environment import differences, environment
from tolaria_bus.tolaria.recovery.recording import Recording
from tolaria_bus.tolaria.recovery.run_folder import RunFolder
from tolaria_bus.tolaria.recovery.weights import weights_sha256
from tolaria_bus.tolaria.start import follows_length, pick_device, step_options
from tolaria_bus.tolaria.summary import Progress, RunSummary
from tolaria_bus.tolaria.trainer import Trainer

_AT_ONCE = 256
"""Records written to the journal with one sync."""
_LENGTH = ("epochs", "steps")
_OTHER_WAY = ("loss_", "accuracy_")
"""How the names of alerts begin that announce a rollback which the journal doesn't have."""
_SELDOM = 1_000_000
"""Epochs between two checkpoints of a repeated run."""


class ReplayRefused(RuntimeError):
    """The run can't be repeated as asked. One line says what differs."""


@dataclass(frozen=True, slots=True)
class ReplaySummary:
    """How a repeated run ended.

    Attributes:
        run: As of any run; ``stopped_by`` is ``replayed``.
        source: The folder of the run that was repeated.
        recorded_sha256: Of the model's weights as they were recorded there; empty if they weren't.
    """

    run: RunSummary
    source: str
    recorded_sha256: str

    @property
    def same_bits(self) -> bool | None:
        """Are the weights those that were recorded? ``None`` if none were."""
        if not self.recorded_sha256:
            return None
        return self.recorded_sha256 == self.run.weights_sha256

    def to_json(self) -> dict[str, Any]:
        """The run's fields, and ``source``, ``recorded_sha256``, ``same_bits``."""
        return {
            **self.run.to_json(),
            "source": self.source,
            "recorded_sha256": self.recorded_sha256 or None,
            "same_bits": self.same_bits,
        }


class Replay:
    """One run done again. Makes the trainer; :meth:`run` trains, on the caller's thread.

    Args:
        job: The job, loaded with :func:`recorded_options`.
        settings: From :func:`recorded_settings`.
        recording: What to do again.
        folder: Where to work: empty. Opened by the caller, who also closes it.

    Raises:
        ReplayRefused: The folder isn't empty; the job, its model before the first step, or the
            environment is not the recorded one.
    """

    def __init__(
        self, job: Job, settings: Settings, recording: Recording, folder: RunFolder
    ) -> None:
        _check_job(job, recording)
        if not folder.is_new:
            raise ReplayRefused(f"{folder.path}: there is a run in this folder already")
        settings = _with_length(job.schedule, settings, recording)
        self._exact = _check_environment(settings, recording)
        records = recording.journal()
        while some := list(islice(records, _AT_ONCE)):
            folder.write(*some)
        self._recording = recording
        mailbox = Mailbox()
        self._said = _Said(mailbox)
        self._trainer = Trainer(job, settings, recording.run, folder, mailbox, self._said)
        first = recording.first_weights_sha256
        if first and first != weights_sha256(self._trainer.state.model):
            raise ReplayRefused(
                f"the model of job {job.name} before the first step is not the one that was "
                "recorded: its code, or what it reads, has changed"
            )

    @property
    def progress(self) -> Progress:
        """Where it is; for any thread."""
        return self._trainer.progress

    def run(self) -> ReplaySummary:
        """Train to the last recorded step.

        Raises:
            Divergence: The run went another way than the recorded one.
            Exception: Whatever the job's own code raised.
        """
        recording = self._recording
        found = self._trainer.run()
        ended = (found.steps, found.timeline)
        if self._said.alert or ended != (recording.end_step, recording.timeline):
            raise Divergence(
                f"the repeated run ended at step {found.steps} of timeline {found.timeline}, the "
                f"recorded one was at step {recording.end_step} of timeline {recording.timeline}"
                + (self._said.alert and f": {self._said.alert}")
            )
        done = replace(
            found,
            stopped_by="replayed",
            commands_applied=recording.commands,
            exact=found.exact and self._exact,
        )
        return ReplaySummary(done, str(recording.folder), recording.weights_sha256)


def recorded_options(recording: Recording, given: Mapping[str, str]) -> dict[str, str]:
    """The job's options as recorded.

    Raises:
        ReplayRefused: One was given that differs.
    """
    recorded = recording.job_options
    for name, text in given.items():
        if recorded.get(name) != text:
            raise ReplayRefused(
                f"job.{name} = {text}: the run was recorded with "
                + (f"job.{name} = {recorded[name]}" if name in recorded else f"no job.{name}")
            )
    return dict(recorded)


def recorded_settings(recording: Recording, given: Settings) -> Settings:
    """The settings that decide on weights as recorded, the others as given.

    Raises:
        ReplayRefused: One of the former was given and differs.
        SettingError: The recorded ones aren't settings of this version.
    """
    text = recording.settings
    known = DECIDES_WEIGHTS if "device" in text else ("seed",)  # An older journal has only that.
    recorded, _ = load((), **{name: text[name] for name in known if name in text})
    values: dict[str, Any] = {
        name: getattr(recorded, name) if name in text else Settings.model_fields[name].default
        for name in known
    }
    if "threads" in recording.environment:
        values["threads"] = int(recording.environment["threads"])
    for name in sorted(given.model_fields_set & values.keys()):
        if getattr(given, name) != values[name]:
            was = "without it" if values[name] is None else f"with {name} = {values[name]}"
            raise ReplayRefused(
                f"setting {name} = {getattr(given, name)}: the run was recorded {was}"
            )
    return given.model_copy(
        update={
            **values,
            # The journal has what Tamiyo said.
            "tamiyo": "off",
            # Nobody goes back to a state of it.
            "checkpoint_every_epochs": _SELDOM,
            "checkpoint_every_steps": None,
            "snapshot_every_steps": None,
            "snapshot_at_epochs": False,
        }
    )


def _check_job(job: Job, recording: Recording) -> None:
    if job.name != recording.job:
        raise ReplayRefused(f"job {job.name}: the run in {recording.folder} is of {recording.job}")


def _check_environment(settings: Settings, recording: Recording) -> bool:
    """Whether everything is as it was at every start of the run."""
    now = {**environment(pick_device(settings)), **step_options(settings).changes_numbers()}
    for record in recording.starts:
        before = dict(record.started.environment)
        if changed := differences(before, now):
            if settings.allow_inexact:
                return False
            raise ReplayRefused(
                f"the run can't be repeated bit for bit here, it was begun or resumed (at step "
                f"{record.step}) under another environment: {changed} "
                "(--set allow_inexact=true to repeat it all the same)"
            )
    return True


def _with_length(schedule: Schedule, settings: Settings, recording: Recording) -> Settings:
    """Settings for a run whose length was changed by a resume, where that changed no rate."""
    starts = [record.started for record in recording.starts]
    # An older journal has only what was asked for.
    known = all(start.planned_steps for start in starts)
    lengths = [(_asked(start), start.planned_steps if known else 0) for start in starts]
    if len(set(lengths)) == 1:
        return settings
    if follows_length(schedule):
        told = "; ".join(f"{asked}: {steps} steps" if steps else asked for asked, steps in lengths)
        raise ReplayRefused(
            f"the run was resumed with another length ({told}), by which its {schedule.kind} "
            "schedule changed in the middle: that can't be repeated"
        )
    return settings.model_copy(update={"epochs": None, "steps": max(recording.end_step, 1)})


def _asked(started: RunStarted) -> str:
    """How long the run was to be from a start on, as it was asked for."""
    asked = started.settings
    return " ".join(f"{name}={asked[name]}" for name in _LENGTH if name in asked) or "none given"


class _Said:
    """Nobody listens to a repeated run. One that is about to go another way is stopped.

    Attributes:
        alert: Why it would have.
    """

    def __init__(self, mailbox: Mailbox) -> None:
        self.alert = ""
        self._mailbox = mailbox

    def telemetry(self, packet: TelemetryPacket, priority: MessagePriority.ValueType) -> None:
        del priority
        for event in packet.events:
            if event.event_id.startswith(_OTHER_WAY) and not self.alert:
                self.alert = event.description
                self._mailbox.request_stop("another way")

    def emergency(self, signal: EmergencySignal) -> None:
        """Nobody has to obey it again."""

    def state(self, packet: SystemStatePacket) -> None:
        """No controller is asked."""

    def outcome(self, outcome: CommandOutcome, delivery: Delivery | None) -> None:
        """It was answered the first time."""

    def report(self, report: FieldReport) -> None:
        """It was reported the first time."""
