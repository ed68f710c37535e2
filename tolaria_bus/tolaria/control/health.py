"""The health of a run's steps: is the newest loss good, has accuracy collapsed, and what then.

A step's health is known one step later; whoever must know it now waits for it. A step that went
wrong sends the run back to a state that was good, and halts it where that doesn't help.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from tolaria_bus.safety import emergency
from tolaria_bus.settings import Settings
from tolaria_bus.tolaria.control.telemetry import Telemetry
from tolaria_bus.tolaria.engine.loss_watch import LossReading, Verdict
from tolaria_bus.tolaria.recovery.ledger import id_at
from tolaria_bus.tolaria.recovery.rollback import FAST, FULL, Halt
from tolaria_bus.tolaria.recovery.state import TrainingState
from tolaria_bus.tolaria.recovery.targets import ACCURACY, Remedy, Targets

LEAST_COLLAPSE: Final = 0.1
"""An accuracy that fell by less is no collapse, whatever share of the best it is."""


class Health:
    """Judges steps and validations, and heals. Training thread only, at a fence.

    Args:
        state: Of the run.
        settings: When an accuracy has collapsed, and how an automatic rollback is done.
        telemetry: Gets the alerts.
        targets: Knows the remedies.
        behind: Are journaled steps being run again? Then nothing is decided anew.
        go_back: Does a rollback; see :meth:`.steering.Steering.roll_back`.
        note: Told the cause of an emergency that a rollback follows.
        server_ms: The clock of the commands' entries, see :class:`.mailbox.Mailbox`.
    """

    def __init__(
        self,
        state: TrainingState,
        settings: Settings,
        telemetry: Telemetry,
        targets: Targets,
        *,
        behind: Callable[[], bool],
        go_back: Callable[..., object],
        note: Callable[..., None],
        server_ms: Callable[[], int | None],
    ) -> None:
        self._state = state
        self._settings = settings
        self._telemetry = telemetry
        self._targets = targets
        self._behind = behind
        self._go_back = go_back
        self._note = note
        self._server_ms = server_ms
        self._bad: LossReading | None = None

    def look(self) -> bool:
        """Wait for the newest loss; is it good? A bad one is kept for :meth:`settle`."""
        if self._bad is None:
            self._bad = self._bad_loss()
        return self._bad is None

    def forget(self) -> None:
        """The run has gone back: what was bad is no more."""
        self._bad = None

    def check(self) -> bool:
        """Wait for the newest loss; if it is bad, go back, and say so with False."""
        bad = self._bad_loss()
        if bad is not None:
            self.recover_from(bad)
        return bad is None

    def settle(self) -> None:
        """Go back if a bad loss was found at the fence that has just been open."""
        bad, self._bad = self._bad, None
        if bad is not None:
            self.recover_from(bad)

    def recover_from(self, bad: LossReading) -> None:
        """A step went wrong: go back to a state that was good; halt if that doesn't help."""
        cause = bad.verdict.value
        self._heal(
            self._targets.remedy(cause, bad.step),
            "loss_" + cause,
            f"loss {bad.loss:.6g} at step {bad.step}",
            cause=cause,
            tier=FAST,
            loss=bad.loss,
            running_mean=bad.mean,
        )

    def check_accuracy(self, accuracy: float | None) -> bool:
        """Compare a validation's accuracy with the best; if it collapsed, go back, and say False.

        What was decided when the steps that are run again now were first made isn't decided anew.

        Args:
            accuracy: 0 to 1; ``None``: not measured.
        """
        state = self._state
        if accuracy is None:
            return True
        factor, best = self._settings.accuracy_collapse_factor, state.best_accuracy
        collapsed = accuracy < factor * best and best - accuracy >= LEAST_COLLAPSE
        if not collapsed or self._behind():
            state.best_accuracy = max(best, accuracy)
            return True
        self._heal(
            self._targets.remedy(ACCURACY, state.step),
            "accuracy_collapsed",
            f"accuracy {accuracy:.4g} at step {state.step}, it was {best:.4g}",
            cause=ACCURACY,
            tier=FULL,
            accuracy=accuracy,
            best=best,
        )
        return False

    def _heal(
        self, remedy: Remedy, name: str, what: str, *, cause: str, tier: str, **facts: float
    ) -> None:
        settings, step = self._settings, remedy.target.step
        self._telemetry.alert(
            name,
            f"{what}: going back to step {step}",
            critical=True,
            attempt=remedy.attempt,
            target_step=step,
            **facts,
        )
        halt = None
        if remedy.attempt >= settings.rollback_limit:
            why = f"{cause}: {remedy.attempt} rollbacks, the last to step {step}, didn't help"
            # Before anybody can know of it.
            halt = Halt(why, id_at(self._server_ms()))
            self._telemetry.emergency(emergency.HALT, why, cause=emergency.ROLLBACK_FAILED)
        else:
            self._note(name, what, with_cut=True)
        self._go_back(
            remedy.target,
            replay_data=settings.rollback_data == "replay" and settings.rollback_lr_factor < 1.0,
            lr_factor=remedy.lr_factor,
            cause=cause,
            command_id="",
            tier=tier,
            halt=halt,
        )

    def _bad_loss(self) -> LossReading | None:
        reading = self._state.watch.flush()
        if reading is None:
            return None
        if reading.verdict is not Verdict.OK:
            return reading
        self._state.note(reading)
        return None
