"""Where a run goes on: its newest good checkpoint, and what the journal has beyond that."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from tolaria_bus.leyline import JournalRecord, RunStarted
from tolaria_bus.settings import Settings, deciding
from tolaria_bus.tolaria.control.telemetry import Telemetry
from tolaria_bus.tolaria.engine.job import Job
from tolaria_bus.tolaria.recovery.environment import differences, environment
from tolaria_bus.tolaria.recovery.run_folder import RunFolder
from tolaria_bus.tolaria.recovery.state import TrainingState, restore
from tolaria_bus.tolaria.recovery.weights import weights_sha256
from tolaria_bus.tolaria.start import Length, follows_length, plan_length, step_options


class InexactResume(RuntimeError):
    """The run can't go on bit for bit here, and ``allow_inexact`` is not set. One line says why."""


@dataclass(frozen=True, slots=True)
class Resumed:
    """Where a process begins to work on a run.

    Attributes:
        checkpoint: The checkpoint that the state is of; empty for a new run.
        sequence: The last journal record that the state contains.
        replay: Journal records to be applied again, each at its step.
        exact: The environment is as it was: the run goes on bit for bit.
    """

    checkpoint: str
    sequence: int
    replay: Sequence[JournalRecord]
    exact: bool


def resume(
    run: str,
    job: Job,
    settings: Settings,
    folder: RunFolder,
    state: TrainingState,
    device: torch.device,
    telemetry: Telemetry,
) -> Resumed:
    """Bring the state to where the run's folder has it, and journal that a process begins there.

    Args:
        run: The run's id.
        job: What is trained.
        settings: How.
        folder: The run's, open.
        state: Fresh; what sections others have in it are there already.
        device: That it trains on.
        telemetry: Told of what isn't exact.

    Raises:
        InexactResume: See there.
        StateMismatch: The checkpoint isn't of this job.
    """
    now = {**environment(device), **step_options(settings).changes_numbers()}
    before, planned = folder.ledger.environment, folder.ledger.planned
    length = plan_length(job, settings, state.data.steps_per_epoch)
    changed = differences(before, now) if before else ""
    if changed and not settings.allow_inexact:
        raise InexactResume(
            f"run {run} can't go on bit for bit here: {changed} "
            "(--set allow_inexact=true to go on all the same)"
        )
    checkpoint, sequence = "", 0
    found = folder.checkpoints.newest(folder.live.is_live)
    if found is not None:
        restore(state, found.tensors, found.meta)
        checkpoint, sequence = found.name, found.meta["sequence"]
    replay = folder.live_after(sequence)
    started = RunStarted(
        run_id=run,
        job=job.name,
        seed=state.seed,
        lease_token=folder.ledger.starts + 1,
        resumed_from=checkpoint,
        environment=now,
        job_spec=job.spec,
        job_options=job.options,
        settings=deciding(settings),
        weights_sha256="" if found else weights_sha256(state.model),
        planned_steps=length.steps,
        planned_epochs=length.epochs,
    )
    folder.write(state.stamp(JournalRecord(started=started)))
    if changed:
        telemetry.alert("inexact", f"resumed under another environment: {changed}")
    if planned[0] and planned != (length.steps, length.epochs):
        _tell_length(telemetry, job, planned, length)
    if state.data.caution:
        tell = telemetry.event if found is None else telemetry.alert
        tell("data_caution", state.data.caution)
    return Resumed(checkpoint, sequence, replay, not changed)


def _tell_length(telemetry: Telemetry, job: Job, before: tuple[int, int], length: Length) -> None:
    steps, epochs = before
    rates = f"; the {job.schedule.kind} schedule follows it" if follows_length(job.schedule) else ""
    telemetry.event(
        "length_changed",
        f"resumed with {length.steps} steps ({length.epochs} epochs), it had {steps} ({epochs})"
        + rates,
        steps=length.steps,
        epochs=length.epochs,
        steps_before=steps,
        epochs_before=epochs,
    )
