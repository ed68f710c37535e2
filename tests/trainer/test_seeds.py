"""Seeds in a run: led through their life by commands, recovered in the middle of it."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tests.trainer.conftest import STEPS_PER_EPOCH, Moons, Run
from tests.trainer.lives import Power
from tests.trainer.test_recovery import FailsAtOutcome, FailsAtState
from tolaria_bus.kasmina import Garden, Limits
from tolaria_bus.leyline import SeedLifecycleStage as Stage
from tolaria_bus.tolaria.engine.job import JobError
from tolaria_bus.tolaria.recovery.journal import read_records

LIFE = [
    (3, "START_TRAINING", "{}"),
    (20, "START_GRAFTING", '{"blend_steps": 20}'),
    (42, "STABILIZE", "{}"),
    (44, "EVALUATE", "{}"),
    (46, "FINE_TUNE", "{}"),
    (50, "FOSSILIZE", "{}"),
]


class Slotted(Moons):
    """With a wide gate G4: at a loss of almost nothing one per cent of it is luck."""

    def kasmina(self, model: nn.Module) -> Garden:
        return Garden(model, limits=Limits(impact=1.0))


class Hooked(Slotted):
    """The same net with no slot in it: its seeds stand behind a module, named by its path."""

    def model(self) -> nn.Module:
        layers = [layer for layer in super().model() if type(layer).__name__ != "SeedSlot"]  # type: ignore[attr-defined]
        return nn.Sequential(*layers)

    def kasmina(self, model: nn.Module) -> Garden:
        return Garden(model, ["0"], limits=Limits(impact=1.0))


def seed(run: Run, operation: str, at: int, values: str = "{}", more: str = "") -> None:
    run.send(
        f"""{{"commandId": "{operation}-{at}", "commandType": "SEED", "targetSeedId": "s1",
        "seedOperation": {{"operation": "{operation}", "values": {values}{more}}}}}""",
        at_step=at,
    )


def live(run: Run, until: str = "FOSSILIZE", blueprint: str = "residual_mlp") -> None:
    seed(run, "GERMINATE", 2, more=f', "blueprintId": "{blueprint}"')
    for at, operation, values in LIFE:
        seed(run, operation, at, values)
        if operation == until:
            break


def applied(run: Run) -> list[str]:
    return [name for name, status, _ in run.outcomes() if status == "APPLIED"]


@pytest.mark.parametrize("job", [Slotted, Hooked])
def test_a_seed_is_led_through_its_life_by_commands(make_run, job) -> None:
    run = make_run(job=job())
    live(run)
    summary = run.train()
    assert applied(run) == ["GERMINATE-2", *(f"{name}-{at}" for at, name, _ in LIFE)]
    states = [packet.seed_states[0] for packet in run.outbound.states]
    assert [state.stage for state in states] == [
        Stage.SEED_STAGE_TRAINING,
        Stage.SEED_STAGE_BLENDING,
        Stage.SEED_STAGE_PROBATIONARY,
        Stage.SEED_STAGE_FOSSILIZED,
    ]
    assert states[0].metrics["side_steps"] == STEPS_PER_EPOCH - 3
    assert states[0].learning_rate > 0
    assert 0 < states[1].metrics["alpha"] < 1
    gates = [
        (event.attributes["gate"], event.attributes["passed"])
        for packet, _ in run.outbound.packets
        for event in packet.events
        if event.event_id == "seed_gate"
    ]
    assert gates == [
        (name, "True")
        for name in (
            "G0_SANITY",
            "G1_GRADIENT_HEALTH",
            "G2_STABILITY",
            "G3_INTERFACE",
            "G4_SYSTEM_IMPACT",
        )
    ]
    details = run.outcome("FOSSILIZE-50").details
    assert details["stage"] == "FOSSILIZED"
    assert details["measures"]["loss_with"] > 0
    names = {m.name for packet, _ in run.outbound.packets for m in packet.metrics}
    assert {"tolaria.kasmina.alpha", "tolaria.kasmina.side_ms"} <= names
    assert summary.accuracy is not None
    assert summary.accuracy > 0.8


@pytest.mark.parametrize("job", [Slotted, Hooked])
def test_a_seed_that_trained_beside_the_host_and_was_culled_changed_no_bit(make_run, job) -> None:
    run = make_run(job=job())
    live(run, until="START_TRAINING")
    seed(run, "CULL", 40)
    summary = run.train()
    assert applied(run) == ["GERMINATE-2", "START_TRAINING-3", "CULL-40"]
    assert summary.weights_sha256 == make_run("plain", job=job()).train().weights_sha256


def test_a_gate_that_refuses_rejects_the_command_with_what_it_measured(make_run) -> None:
    run = make_run(steps=12)
    live(run, until="START_TRAINING")
    seed(run, "START_GRAFTING", 6)
    run.train()
    outcome = run.outcome("START_GRAFTING-6")
    assert outcome.code == "gate_failed"
    assert "G1_GRADIENT_HEALTH: trained for 3 steps; needed: 10" in outcome.reason
    told = [e for p, _ in run.outbound.packets for e in p.events if e.event_id == "seed_gate"]
    assert told[-1].attributes["passed"] == "False"
    assert told[-1].attributes["steps"] == "3"


def test_structural_operations_are_refused_in_conservative_mode_and_a_cull_is_not(make_run) -> None:
    run = make_run(steps=30)
    live(run, until="START_TRAINING")
    run.send("""{"commandType": "MODE", "mode": {"conservative": true}}""", at_step=15)
    seed(run, "START_GRAFTING", 20)
    seed(run, "CULL", 21)
    run.train()
    assert run.outcome("START_GRAFTING-20").code == "conservative"
    assert run.outcome("CULL-21").code == "ok"


def whole_life(run: Run) -> None:
    live(run)
    run.send('{"commandId": "back", "commandType": "ROLLBACK"}', at_step=37)


def check_resumed(make_run: Any, run: Run, steer: Any, job: Any) -> None:
    reference = run.train()
    again = make_run("copy", job=job(), checkpoint_every_steps=7, checkpoint_keep=100)
    steer(again)
    resumed = again.train()
    assert resumed.weights_sha256 == reference.weights_sha256
    assert (resumed.steps, resumed.timeline) == (reference.steps, reference.timeline)


# The second outcomes: after the seven DEFERRED come the commands' own.
@pytest.mark.parametrize("job", [Slotted, Hooked])
@pytest.mark.parametrize("nth", [9, 10, 11, 13, 14])
def test_power_lost_at_any_command_of_a_life_ends_in_the_same_bits(
    make_run, tmp_path, job, nth: int
) -> None:
    run = make_run("run", job=job(), checkpoint_every_steps=7, checkpoint_keep=100)
    run.outbound = FailsAtOutcome(Power(run.path, tmp_path / "copy"), nth)
    live(run)
    check_resumed(make_run, run, live, job)
    assert len(run.outbound.outcomes) == 14


# With a checkpoint every 7 steps: in the middle of TRAINING, of BLENDING, and after it.
@pytest.mark.parametrize("nth", [1, 2, 3])
@pytest.mark.parametrize("steer", [live, whole_life])
def test_power_lost_in_the_middle_of_a_stage_ends_in_the_same_bits(
    make_run, tmp_path, steer, nth: int
) -> None:
    run = make_run("run", checkpoint_every_steps=7, checkpoint_keep=100)
    run.outbound = FailsAtState(Power(run.path, tmp_path / "copy"), nth)
    steer(run)
    check_resumed(make_run, run, steer, Moons)


class FailsOnTheSide(Moons):
    """Its loss raises where a seed's output takes the place of the host's, from a pass on."""

    def __init__(self) -> None:
        super().__init__()
        self.passes = 0

    def loss(self, model: Any, batch: Any) -> Tensor:
        slot = model[3]
        if model.training and slot.graft is not None:
            self.passes += 1
            if self.passes > 4:
                raise RuntimeError("CUDA out of memory")
        return super().loss(model, batch)


def test_a_seed_whose_side_pass_raises_is_culled_with_an_alert_and_the_host_goes_on(
    make_run, tmp_path
) -> None:
    run = make_run(job=FailsOnTheSide())
    live(run, until="START_TRAINING")
    run.outbound = FailsAtState(Power(run.path, tmp_path / "copy"), 1)
    summary = run.train()
    (alert,) = run.outbound.alerts()
    assert alert.events[0].event_id == "seed_failed"
    assert "s1 is culled: on the side, RuntimeError: CUDA out of memory" in (
        alert.events[0].description
    )
    assert summary.weights_sha256 == make_run("plain").train().weights_sha256
    decisions = [r for r in read_records(run.path) if r.HasField("decision")]
    kinds = [(r.decision.kind, r.step) for r in decisions]
    assert kinds == [("seed_failed", 8), ("emergency", 8)]
    # Recovery takes the decision from the journal, though its own pass doesn't fail.
    again = make_run("copy")
    assert again.train().weights_sha256 == summary.weights_sha256
    assert [len(p.seed_states) for p in again.outbound.states][-1] == 1


def test_a_job_may_bring_its_own_kasmina(make_run) -> None:
    gardens = []

    class Own(Moons):
        def kasmina(self, model: nn.Module) -> Garden:
            gardens.append(Garden(model))
            return gardens[-1]

    run = make_run(job=Own(), steps=20)
    live(run, until="START_TRAINING")
    run.train()
    assert gardens[0].seed_ids() == ("s1",)


class WrongSlots(Moons):
    seed_slots = ("nowhere",)


class WrongKasmina(Moons):
    def kasmina(self, model: nn.Module) -> object:
        return torch.nn.Identity()


@pytest.mark.parametrize(
    ("job", "words"),
    [(WrongSlots, "slot is 'nowhere'"), (WrongKasmina, "returned a Identity, which lacks")],
)
def test_what_cannot_be_a_slot_or_a_kasmina_is_refused_at_start(make_run, job, words) -> None:
    with pytest.raises(JobError, match=words):
        make_run(job=job()).train()


class Plain(Moons):
    """No slot on the way of the first layer's channels, so that they can be cut."""

    def model(self) -> nn.Module:
        return nn.Sequential(
            nn.Linear(2, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Dropout(0.1), nn.Linear(16, 2)
        )


def pruned(run: Run) -> None:
    run.send(
        """{"commandId": "prune", "commandType": "STRUCTURAL_PRUNING",
        "structuralPruning": {"target": "0", "fraction": 0.25, "values": {"impact": 1000}}}""",
        at_step=20,
    )
    run.send('{"commandId": "back", "commandType": "ROLLBACK"}', at_step=37)


# At the prune's outcome, at the rollback's, and at ends of epochs before and behind the cut.
@pytest.mark.parametrize("power", ["outcome-3", "outcome-4", "state-1", "state-2", "state-3"])
def test_power_lost_around_a_pruning_ends_in_the_same_bits(make_run, tmp_path, power) -> None:
    kind, nth = power.split("-")
    fails = {"outcome": FailsAtOutcome, "state": FailsAtState}[kind]
    run = make_run("run", job=Plain(), checkpoint_every_steps=7, checkpoint_keep=100)
    run.outbound = fails(Power(run.path, tmp_path / "copy"), int(nth))
    pruned(run)
    check_resumed(make_run, run, pruned, Plain)
    outcome = run.outcome("prune")
    assert outcome.code == "ok"
    assert (outcome.details["channels"], outcome.details["channels_removed"]) == (12, 4)
    assert outcome.details["gate"] == "G4_SYSTEM_IMPACT"


def test_a_rollback_to_before_a_pruning_gives_the_channels_back(make_run) -> None:
    run = make_run(job=Plain())
    pruned(run)
    run.send(
        """{"commandId": "whole", "commandType": "ROLLBACK",
        "rollbackPayload": {"target_step": 16, "data": "replay"}}""",
        at_step=40,
    )
    summary = run.train()
    assert run.outcome("whole").code == "ok"
    assert run.outcome("prune").code == "rolled_back"
    plain = make_run("plain", job=Plain()).train()
    assert summary.steps == plain.steps


def test_a_pruning_that_cannot_be_done_is_rejected_saying_why(make_run) -> None:
    run = make_run(job=Plain(), steps=10)
    for name, target, fraction in [("a", "4", 0.5), ("b", "0", 1.5), ("c", "9", 0.5)]:
        run.send(
            f"""{{"commandId": "{name}", "commandType": "STRUCTURAL_PRUNING",
            "structuralPruning": {{"target": "{target}", "fraction": {fraction}}}}}"""
        )
    run.train()
    assert "go into output" in run.outcome("a").reason
    assert "fraction is 1.5" in run.outcome("b").reason
    assert "allowed: 0, 4" in run.outcome("c").reason
    assert {run.outcome(name).code for name in "abc"} == {"bad_parameter"}
