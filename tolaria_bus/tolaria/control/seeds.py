"""The trainer's part in the life of seeds: what follows for the optimizer, the rates, telemetry.

Kasmina owns the seeds; here is what a change of theirs means to the rest of a run.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

from tolaria_bus.kasmina import (
    GateReading,
    GerminationPlan,
    Moment,
    OperationPlan,
    PruningPlan,
    SeedRefused,
    Transition,
)
from tolaria_bus.kasmina.lifecycle import stage_name
from tolaria_bus.leyline import Decision, JournalRecord, MetricPoint, SeedOperation
from tolaria_bus.safety import emergency
from tolaria_bus.tolaria.control.attributing import Attributing
from tolaria_bus.tolaria.control.telemetry import Telemetry
from tolaria_bus.tolaria.engine.optimizer import seed_group
from tolaria_bus.tolaria.engine.side import SideTraining
from tolaria_bus.tolaria.recovery.journal import JournalUnwritable
from tolaria_bus.tolaria.recovery.run_folder import RunFolder
from tolaria_bus.tolaria.recovery.state import TrainingState

SEED_FAILED = "seed_failed"


class SeedWork:
    """Does to a run what is done to its seeds. Training thread only, at a fence.

    Args:
        state: Of the run.
        side: What lets seeds learn beside the host.
        folder: For the journal.
        telemetry: Where gates and changes of stage are told.
        held_out: The loss of the model on the same held-out batches each time.
        attributing: Says whether host and seeds can be told apart.
        note: Told the cause of an emergency, and its reason.
    """

    def __init__(
        self,
        state: TrainingState,
        side: SideTraining,
        folder: RunFolder,
        telemetry: Telemetry,
        held_out: Callable[[], float],
        attributing: Attributing,
        *,
        note: Callable[[str, str], None] = lambda cause, reason: None,
    ) -> None:
        self._state = state
        self._side = side
        self._folder = folder
        self._telemetry = telemetry
        self._held_out = held_out
        self._attributing = attributing
        self._note = note

    def germinate(self, plan: GerminationPlan) -> dict[str, Any]:
        """Grow a seed; the optimizer and the learning rates take it on. Details for the outcome.

        Raises:
            SeedRefused: its gate does.
        """
        state = self._state
        with self._telling_refusal(plan.seed_id):
            grown = state.kasmina.germinate(
                plan, seed=state.seed, step=state.step, epoch=state.epoch
            )
        self._tell_gate(plan.seed_id, grown.reading)
        group = seed_group(plan.seed_id)
        state.optimizer.add_parameters(group, grown.parameters)
        state.learning_rate.adopt(group, state.step)
        return {
            "seed_id": plan.seed_id,
            "slot": grown.slot,
            "blueprint": grown.blueprint_id,
            "parameters": grown.parameter_count,
            "stage": "GERMINATED",
            **_gate_details(grown.reading),
        }

    def operate(self, plan: OperationPlan) -> dict[str, Any]:
        """Do another operation, and return details for the outcome.

        Raises:
            SeedRefused: its gate does.
        """
        state = self._state
        becomes_task = plan.operation == SeedOperation.SEED_OP_START_GRAFTING
        with self._telling_refusal(plan.seed_id):
            untold = self._attributing.judge() if becomes_task else ""
            transition = state.kasmina.operate(plan, self._moment())
        if transition.removed:
            state.optimizer.remove_group(seed_group(plan.seed_id))
            state.learning_rate.release(seed_group(plan.seed_id))
        self._tell((transition,))
        details = {
            "seed_id": plan.seed_id,
            "stage_before": stage_name(transition.before),
            "stage": stage_name(transition.after),
            **plan.values,
            **_gate_details(transition.reading),
        }
        if untold:
            details |= self._attributing.turn_off(untold)
        if transition.removed:
            details["parameters_removed"] = len(transition.removed)
            details["folded"] = transition.folded
        return details

    def prune(self, plan: PruningPlan) -> dict[str, Any]:
        """Remove channels of a layer, and return details for the outcome.

        Raises:
            SeedRefused: its gate does.
        """
        state = self._state
        with self._telling_refusal(plan.target, is_a="target"):
            done = state.kasmina.prune(plan, self._moment())
        for narrowed in done.narrowed:
            state.optimizer.narrow(narrowed.name, narrowed.dim, narrowed.keep)
        self._tell_gate(plan.target, done.reading, is_a="target")
        self._telemetry.event(
            "pruned",
            f"{done.target}: {done.removed} of {plan.channels} {plan.unit}",
            target=done.target,
            removed=done.removed,
            unit=plan.unit,
            parameters_removed=done.parameters,
        )
        return {
            "target": done.target,
            f"{plan.unit}_removed": done.removed,
            plan.unit: plan.channels - done.removed,
            "parameters_removed": done.parameters,
            **_gate_details(done.reading),
        }

    def _moment(self) -> Moment:
        state = self._state
        return Moment(state.step, state.epoch, state.watch.mean, self._held_out)

    def advance(self) -> None:
        """Do what time brings to seeds before the next step, and give up those that failed."""
        if self._side.failed:
            self._give_up()
        self._tell(self._state.kasmina.advance(self._state.step))

    def apply(self, decision: Decision) -> None:
        """Apply a journaled ``seed_failed``: the seed is culled."""
        seed_id = decision.values["seed_id"]
        self.operate(self._state.kasmina.plan(seed_id, SeedOperation.SEED_OP_CULL))

    def terminate(self) -> None:
        """The run has come to its end."""
        self._tell(self._state.kasmina.terminate())

    def publish(self) -> None:
        """Publish the numbers of every seed, and what learning on the side costs. May wait."""
        state = self._state
        found = state.kasmina.seed_states(state.step, state.epoch)
        if not found:
            return
        points = []
        for seed in found:
            numbers = {
                "stage": seed.stage,
                "parameters": seed.parameter_count,
                "gradient_norm": seed.gradient_norm,
                **seed.metrics,
            }
            about = {"seed": seed.seed_id}
            points += [
                MetricPoint(name=f"tolaria.kasmina.{name}", value=value, attributes=about)
                for name, value in numbers.items()
            ]
        if self._side.passes:
            cost = self._side.take_cost()
            points.append(MetricPoint(name="tolaria.kasmina.side_ms", value=cost, unit="ms"))
        self._telemetry.publish(points)

    def _give_up(self) -> None:
        state, failed = self._state, self._side.failed
        for seed_id, why in list(failed.items()):
            if seed_id not in state.kasmina.side:
                del failed[seed_id]
            elif not self._telemetry.replaying:
                decision = Decision(kind=SEED_FAILED, reason=why, values={"seed_id": seed_id})
                try:
                    self._folder.write(state.stamp(JournalRecord(decision=decision)))
                except JournalUnwritable as error:
                    # It stays left out, and is tried again at the next fence.
                    self._telemetry.alert("journal_unwritable", str(error), critical=True)
                    return
                del failed[seed_id]
                text = f"{seed_id} is culled: on the side, {why}"
                self._telemetry.alert(SEED_FAILED, text, seed_id=seed_id)
                self.apply(decision)
                self._note(emergency.SEED_FAILED, text)

    def _tell(self, transitions: Iterable[Transition]) -> None:
        for passed in transitions:
            self._side.changes += 1
            self._tell_gate(passed.seed_id, passed.reading)
            before, after = stage_name(passed.before), stage_name(passed.after)
            self._telemetry.event(
                "seed_stage",
                f"{passed.seed_id}: {before} to {after}" + (" (folded)" if passed.folded else ""),
                seed_id=passed.seed_id,
                before=before,
                after=after,
            )

    @contextmanager
    def _telling_refusal(self, subject: str, *, is_a: str = "seed_id") -> Iterator[None]:
        try:
            yield
        except SeedRefused as refused:
            self._tell_gate(subject, refused.reading, is_a=is_a)
            raise

    def _tell_gate(
        self, subject: str, reading: GateReading | None, *, is_a: str = "seed_id"
    ) -> None:
        if reading is None:
            return
        self._telemetry.event(
            "seed_gate",
            f"{subject}: {reading.name} " + (reading.why or "passed"),
            **{is_a: subject},
            gate=reading.name,
            passed=reading.passed,
            **{name: f"{value:.6g}" for name, value in reading.measures.items()},
        )


def _gate_details(reading: GateReading | None) -> dict[str, Any]:
    if reading is None:
        return {}
    # A Struct that is to become JSON has no NaN.
    measures = {
        name: value if math.isfinite(value) else str(value)
        for name, value in reading.measures.items()
    }
    return {"gate": reading.name, "measures": measures}
