"""What of the step is on, told at the start; what failed in it, journaled and told."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

import torch

from tolaria_bus.leyline import Decision, JournalRecord
from tolaria_bus.safety import emergency
from tolaria_bus.tolaria.control.telemetry import Telemetry
from tolaria_bus.tolaria.engine.options import Feature, StepOptions, features, line
from tolaria_bus.tolaria.engine.passes import Passes
from tolaria_bus.tolaria.recovery.journal import JournalUnwritable
from tolaria_bus.tolaria.recovery.run_folder import RunFolder
from tolaria_bus.tolaria.recovery.state import TrainingState

FALLBACK: Final = "fallback"
"""The kind of the decision to do without a feature of the step that failed."""


def tell_features(
    options: StepOptions,
    device: torch.device,
    state: TrainingState,
    telemetry: Telemetry,
    *,
    sample_losses: bool,
    prefetch: Feature,
) -> str:
    """Say in an event, and in a metric for each feature, what is on and why the rest is off.

    Returns:
        The same in one line.
    """
    found = features(
        options,
        device,
        optimizer=state.optimizer.optimizer,
        sample_losses=sample_losses,
        prefetch=prefetch,
        fallen=state.engine.fallen,
    )
    told = line(found)
    telemetry.event("engine", told, **{each.name: each.value or "off" for each in found})
    telemetry.metrics(
        {f"tolaria.engine.{each.name.replace(' ', '_')}": (float(each.on), "") for each in found}
    )
    return told


def tell_prefetch_off(telemetry: Telemetry, why: str) -> None:
    """Say that batches are copied when they are due from now on. No weight depends on it."""
    telemetry.event("prefetch_off", f"batches are copied when they are due from now on: {why}")
    telemetry.metrics({"tolaria.engine.prefetch": (0.0, "")})


def tell_plain_validation(telemetry: Telemetry, why: str) -> None:
    """Say that the held-out data are measured without autocast. No weight depends on it."""
    telemetry.event(
        "validation_fallback",
        f"the held-out data are measured without autocast: with it, {why}",
        feature="amp",
    )


def settle_fallbacks(
    passes: Passes,
    state: TrainingState,
    folder: RunFolder,
    telemetry: Telemetry,
    note: Callable[[str, str], None],
) -> None:
    """Journal what failed in the step that was just taken, at the fence before it, and tell it.

    A run that is recovered or repeated does without the feature from that step on. Must be called
    before the step is counted.
    """
    for feature, why in passes.fallbacks:
        decision = Decision(kind=FALLBACK, reason=why, values={"feature": feature})
        description = f"{feature} failed and is off from step {state.step} on: {why}"
        if telemetry.replaying:
            # The journal has later records already; the run was another one without this.
            description += " (it had worked before)"
        else:
            try:
                folder.write(state.stamp(JournalRecord(decision=decision)))
            except JournalUnwritable as error:
                telemetry.event("not_journaled", f"{FALLBACK}: {error}")
        telemetry.alert("engine_fallback", description, feature=feature)
        note(emergency.FALLBACK, description)
    passes.fallbacks.clear()


def apply_fallback(decision: Decision, state: TrainingState) -> None:
    """Do without a feature, as the journal says."""
    state.engine.fall_back(decision.values["feature"], decision.reason)
