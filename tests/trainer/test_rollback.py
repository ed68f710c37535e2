"""Rollbacks: where they go, by which way, and that both ways lead to the same bits."""

from __future__ import annotations

from contextlib import closing
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tests.trainer.conftest import STEPS_PER_EPOCH, Moons, Run
from tests.trainer.lives import Poisoned
from tolaria_bus.leyline import CommandOutcome, EmergencyLevel, JournalRecord, TelemetryPacket
from tolaria_bus.leyline.codec import short_name
from tolaria_bus.tolaria.control.mailbox import Delivery, RecordingOutbound
from tolaria_bus.tolaria.recovery.journal import read_records
from tolaria_bus.tolaria.recovery.run_folder import RunFolder

RATE = """{"commandId": "%s", "commandType": "LEARNING_RATE",
    "learningRate": {"learningRate": %s}}"""
SEED = """{"commandId": "seed", "commandType": "SEED", "targetSeedId": "s1",
    "seedOperation": {"operation": "GERMINATE", "blueprintId": "residual_mlp"}}"""
CULL = """{"commandId": "cull", "commandType": "SEED", "targetSeedId": "s1",
    "seedOperation": {"operation": "CULL"}}"""
BACK = '{"commandId": "back", "commandType": "ROLLBACK", "rollbackPayload": %s}'
TOTAL = 4 * STEPS_PER_EPOCH


def cuts(run: Run) -> list[JournalRecord]:
    return [record for record in read_records(run.path) if record.HasField("cut")]


def spans(run: Run) -> list[str]:
    return [
        span.name
        for packet, _ in run.outbound.packets
        for span in packet.spans
        if span.name.startswith("tolaria.rollback")
    ]


SCENES: dict[str, tuple[type[Moons], list[tuple[str, int]], dict[str, Any]]] = {
    "a seed was grown since": (Moons, [(SEED, 20), (BACK % "{}", 30)], {}),
    "a seed was removed since": (Moons, [(SEED, 10), (CULL, 20), (BACK % "{}", 30)], {}),
    "another rate and decay since": (Moons, [(RATE % ("a", 0.1), 20), (BACK % "{}", 30)], {}),
    "batches that spoil the weights": (Poisoned, [(SEED, 3)], {"rollback_limit": 50}),
    "to a step between": (
        Moons,
        [(SEED, 18), (RATE % ("a", 0.1), 22), (BACK % '{"target_step": 21, "lr_factor": 0.5}', 30)],
        {},
    ),
    "to an epoch, with its data": (
        Moons,
        [(SEED, 18), (BACK % '{"target_epoch": 1, "data": "replay"}', 40)],
        {"snapshot_keep": 9},
    ),
}


def test_what_is_in_memory_alone_is_no_place_to_go_back_to(make_run) -> None:
    """A process that was killed has it no more, and must come to the same answer."""
    ends = {}
    for way, megabytes in (("memory", 100), ("disk", 0)):
        run = make_run(
            way,
            checkpoint_keep=1,
            snapshot_every_steps=8,
            snapshot_keep=9,
            snapshot_memory_mb=megabytes,
        )
        run.send(BACK % '{"target_step": 24}', at_step=40)
        ends[way] = run.train().weights_sha256
        assert run.outcome("back").code == "no_checkpoint"
        assert "steps 32 to 40 can be reached" in run.outcome("back").reason
    assert ends["memory"] == ends["disk"]


@pytest.mark.parametrize("scene", SCENES)
def test_from_memory_or_from_a_checkpoint_the_bits_are_the_same(make_run, scene: str) -> None:
    job, commands, settings = SCENES[scene]
    ends = {}
    for way in ("memory", "disk"):
        options = {"snapshot_every_steps": 8, **settings}
        if way == "disk":
            options["snapshot_memory_mb"] = 0
        run = make_run(way, job=job(), **options)
        for text, step in commands:
            run.send(text, at_step=step)
        ends[way] = run.train(), run
    (fast, one), (full, other) = ends["memory"], ends["disk"]
    assert fast.weights_sha256 == full.weights_sha256
    assert (fast.steps, fast.timeline, fast.stopped_by) == (full.steps, full.timeline, "finished")
    assert one.outcomes() == other.outcomes()
    assert {item.cut.tier for item in cuts(other)} == {"full"}
    if "between" not in scene:
        assert cuts(one)[0].cut.tier == "fast"
    assert "snapshots_off" in other.events()
    assert "snapshots_off" not in one.events()


def test_it_goes_to_the_newest_state_whose_weights_made_a_sound_step(make_run) -> None:
    run = make_run(job=Poisoned(), snapshot_every_steps=1, rollback_limit=50)
    run.train()
    first = cuts(run)[0].cut
    # The loss was bad at from_step - 1, computed with the weights of the step before.
    assert first.from_step - first.target_step == 3
    assert (first.cause, first.tier) == ("not_finite", "fast")


def test_the_phases_are_published_as_spans_and_the_deadline_is_set_and_cleared(make_run) -> None:
    run = make_run()
    run.send(BACK % "{}", at_step=30)
    run.send((BACK % '{"target_step": 20}').replace('"back"', '"again"'), at_step=33)
    run.train()
    assert spans(run) == [
        "tolaria.rollback",
        *(f"tolaria.rollback.{phase}" for phase in ("validate", "restore", "resume")),
        "tolaria.rollback",
        *(f"tolaria.rollback.{phase}" for phase in ("validate", "restore", "replay", "resume")),
    ]
    whole, *phases = next(
        packet.spans
        for packet, _ in run.outbound.packets
        if packet.spans and packet.spans[0].name == "tolaria.rollback"
    )
    assert {span.parent_span_id for span in phases} == {whole.span_id}
    assert whole.attributes["tier"] == "fast"


def test_a_commanded_rollback_says_where_the_run_goes_on(make_run) -> None:
    run = make_run()
    run.send(RATE % ("a", 0.1), at_step=20)
    run.send(BACK % '{"target_step": 20}', at_step=30)
    run.train()
    outcome = run.outcome("back")
    assert (outcome.step, outcome.timeline) == (20, 2)
    assert outcome.details["tier"] == "full"
    # As the run arrived there: what was decided at that very fence is undone.
    assert run.outcomes()[-2:] == [("a", "ROLLED_BACK", 20), ("back", "APPLIED", 20)]


@pytest.mark.parametrize(
    ("payload", "code", "says"),
    [
        ('{"target_step": 31}', "no_checkpoint", "steps 0 to 30"),
        ('{"target_epoch": 2}', "no_checkpoint", "[0, 1]"),
        ('{"target_epoch": 1, "target_step": 3}', "bad_payload", "exclude each other"),
        ('{"data": "burn"}', "bad_payload", "skip or replay"),
        ('{"lr_factor": 1.5}', "out_of_range", "1.5"),
    ],
)
def test_one_that_cannot_be_done_is_refused_and_changes_nothing(
    make_run, payload: str, code: str, says: str
) -> None:
    run = make_run()
    run.send(BACK % payload, at_step=30)
    summary = run.train()
    assert run.outcome("back").code == code
    assert says in run.outcome("back").reason
    assert (summary.timeline, summary.steps) == (1, TOTAL)


class SendsOnTheWay(RecordingOutbound):
    """Sends a command once steps are made again."""

    sent = False

    def __init__(self, run: Run) -> None:
        super().__init__()
        self.run = run

    def telemetry(self, packet: TelemetryPacket, priority: Any) -> None:
        super().telemetry(packet, priority)
        if packet.replayed and not self.sent:
            self.sent = True
            self.run.send(RATE % ("late", 0.001))


def test_a_command_that_comes_while_steps_are_made_again_waits_for_the_target(make_run) -> None:
    run = make_run()
    run.outbound = SendsOnTheWay(run)
    run.send(BACK % '{"target_step": 28}', at_step=30)
    run.train()
    assert ("late", "APPLIED", 28) in run.outcomes()
    assert run.outcome("late").timeline == 2


class StopsOnTheWay(SendsOnTheWay):
    """Ends the process in good order while steps are made again."""

    def telemetry(self, packet: TelemetryPacket, priority: Any) -> None:
        RecordingOutbound.telemetry(self, packet, priority)
        if packet.replayed:
            self.run.mailbox.request_stop("signal")


def test_a_run_stopped_on_the_way_to_the_target_gets_there_at_its_next_start(make_run) -> None:
    ends = []
    for name in ("through", "stopped"):
        run = make_run(name)
        if name == "stopped":
            run.outbound = StopsOnTheWay(run)
        run.send(BACK % '{"target_step": 28}', at_step=30)
        ends.append(run.train())
    assert ends[1].stopped_by == "signal"
    assert ends[1].steps < 28
    assert make_run("stopped").train().weights_sha256 == ends[0].weights_sha256


class OneAfterTheOther(RecordingOutbound):
    """Sends each command when the one before was applied."""

    def __init__(self, run: Run, commands: dict[str, str]) -> None:
        super().__init__()
        self.run = run
        self.commands = commands

    def outcome(self, outcome: CommandOutcome, delivery: Delivery | None) -> None:
        super().outcome(outcome, delivery)
        if outcome.code == "ok" and outcome.command_id in self.commands:
            self.run.send(self.commands.pop(outcome.command_id))


def test_a_paused_run_rolls_back_and_stays_paused(make_run) -> None:
    run = make_run(steps=40)
    run.outbound = OneAfterTheOther(
        run,
        {
            "p": BACK % "{}",
            "back": (BACK % '{"target_step": 10}').replace('"back"', '"again"'),
            "again": '{"commandId": "r", "commandType": "RESUME"}',
        },
    )
    run.send('{"commandId": "p", "commandType": "PAUSE"}', at_step=30)
    summary = run.train()
    assert summary.timeline == 3
    applied = [(name, step) for name, status, step in run.outcomes() if status == "APPLIED"]
    assert applied == [("p", 30), ("back", 16), ("again", 10), ("r", 10)]


# What spoiled the run


def test_a_mistyped_rate_at_an_epoch_fence_is_undone_and_the_run_goes_on(make_run) -> None:
    """The checkpoint of that fence holds the rate, so going back to it can't help."""
    run = make_run(epochs=8)
    run.send(RATE % ("typo", 50), at_epoch=2)
    summary = run.train()
    assert summary.stopped_by == "finished"
    assert summary.mode == "running"
    assert ("typo", "ROLLED_BACK") in {(name, status) for name, status, _ in run.outcomes()}
    assert summary.accuracy is not None
    assert summary.accuracy > 0.8
    assert 1 <= len(cuts(run)) <= 2
    assert cuts(run)[-1].cut.target_step <= 2 * STEPS_PER_EPOCH


def test_a_decision_that_sound_steps_have_followed_is_not_undone(make_run) -> None:
    run = make_run(
        job=Poisoned(), rollback_clean_steps=5, rollback_limit=50, snapshot_every_steps=2
    )
    run.send(RATE % ("old", 0.005))
    run.train()
    first, second = (item.cut for item in cuts(run)[:2])
    assert second.lr_factor == first.lr_factor**2  # In a row.
    assert second.target_step == first.target_step - 2


class AlwaysBad(Moons):
    """Its loss isn't finite from its 30th step on, whatever is done."""

    calls = 0

    def loss(self, model: nn.Module, batch: Any) -> Tensor:
        loss = super().loss(model, batch)
        if model.training:
            self.calls += 1
            if self.calls > 30:
                return loss * float("nan")
        return loss


def test_each_in_a_row_goes_further_back_with_a_lower_rate_and_the_last_halts(make_run) -> None:
    run = make_run(job=AlwaysBad(), rollback_limit=3, snapshot_every_steps=8)

    class Stops(RecordingOutbound):
        def emergency(self, signal: Any) -> None:
            super().emergency(signal)
            if signal.level == EmergencyLevel.EMERGENCY_LEVEL_HALT:
                run.mailbox.request_stop("signal")

    run.outbound = Stops()
    summary = run.train()
    assert [item.cut.target_step for item in cuts(run)] == [24, 16, 8]
    assert [item.cut.lr_factor for item in cuts(run)] == [0.5, 0.25, 0.125]
    assert (summary.mode, summary.steps, summary.timeline) == ("halted", 8, 4)
    levels = [short_name(EmergencyLevel, signal.level) for signal in run.outbound.signals]
    assert levels == ["ELEVATED", "CONSERVATIVE", "HALT"]
    # It stays halted.
    again = make_run(job=Moons(), rollback_limit=3)
    again.mailbox.request_stop("signal")
    assert again.train().mode == "halted"
    assert again.outbound.signals == []


class Collapses(Moons):
    """Its third validation finds that nearly nothing is right."""

    validations = 0

    def accuracy(self, model: nn.Module, batch: Any) -> Tensor:
        # Batches of 32: seven in each validation of 200 samples.
        self.validations += 1
        good = super().accuracy(model, batch)
        return good * 0.1 if self.validations in range(15, 22) else good


def test_a_collapse_of_the_accuracy_goes_back_to_a_checkpoint(make_run) -> None:
    run = make_run(job=Collapses())
    summary = run.train()
    (record,) = cuts(run)
    assert (record.cut.cause, record.cut.tier) == ("accuracy", "full")
    assert (record.cut.from_step, record.cut.target_step) == (48, 32)
    assert [packet.events[0].event_id for packet in run.outbound.alerts()] == ["accuracy_collapsed"]
    assert [packet.current_epoch for packet in run.outbound.states] == [1, 2, 3, 4]
    assert summary.stopped_by == "finished"
    off = make_run("off", job=Collapses(), accuracy_collapse_factor=0.0)
    off.train()
    assert cuts(off) == []


def test_data_is_drawn_again_if_so_set_where_the_rate_is_lowered(make_run) -> None:
    class Once(Moons):
        left = 1

        def loss(self, model: nn.Module, batch: Any) -> Tensor:
            loss = super().loss(model, batch)
            if model.training and self.left and loss < 0.3:
                self.left = 0
                return loss + torch.inf
            return loss

    ends = {}
    for data, factor in (("skip", 0.5), ("replay", 0.5), ("replay", 1.0)):
        options = {"rollback_data": data, "rollback_lr_factor": factor}
        run = make_run(f"{data}-{factor}", job=Once(), **options)
        ends[data, factor] = run.train().steps
        (record,) = cuts(run)
        assert record.cut.lr_factor == factor
    assert ends["replay", 0.5] == TOTAL
    assert ends["skip", 0.5] == ends["replay", 1.0] < TOTAL


def test_undone_checkpoints_are_marked_and_live_ones_kept(make_run) -> None:
    run = make_run(checkpoint_every_steps=2)
    run.send(BACK % '{"target_epoch": 2}', at_step=45)
    run.train()
    with closing(RunFolder.open(run.path)) as folder:
        found = folder.checkpoints.list()
        assert all(folder.live.is_live(item.sequence, item.step) or item.cut for item in found)
        assert len(folder.live_checkpoints()) == 5


class SpoilsTheUpdate(Moons):
    """The loss of its 20th step is sound, the update that it leads to is not."""

    calls = 0

    def loss(self, model: nn.Module, batch: Any) -> Tensor:
        loss = super().loss(model, batch)
        if model.training:
            self.calls += 1
            if self.calls == 20:
                loss.register_hook(lambda gradient: gradient * float("nan"))  # type: ignore[no-untyped-call]
        return loss


def test_weights_that_the_next_loss_shows_to_be_bad_are_never_in_a_checkpoint(make_run) -> None:
    run = make_run(job=SpoilsTheUpdate(), checkpoint_every_steps=4, snapshot_every_steps=4)
    run.train()
    (cut,) = cuts(run)
    assert (cut.cut.cause, cut.cut.target_step) == ("not_finite", 16)
    saved = [
        event.description.partition("-t")[0]
        for packet, _ in run.outbound.packets
        for event in packet.events
        if event.event_id == "checkpoint"
    ]
    # Each once, and step 20 is that of the second timeline.
    assert saved.count("step-00000020") == 1
    with closing(RunFolder.open(run.path)) as folder:
        assert all(not item.cut for item in folder.checkpoints.list())


def test_a_halt_with_a_bad_loss_saves_the_last_state_that_is_known_to_be_good(make_run) -> None:
    run = make_run(job=AlwaysBad(), snapshot_every_steps=4, checkpoint_every_epochs=9)
    run.send(
        """{"commandId": "h", "commandType": "EMERGENCY", "emergency": {"level": "HALT"}}""",
        at_step=31,
    )

    class Stops(RecordingOutbound):
        def emergency(self, signal: Any) -> None:
            super().emergency(signal)
            if signal.level == EmergencyLevel.EMERGENCY_LEVEL_HALT:
                run.mailbox.request_stop("signal")

    run.outbound = Stops()
    run.train()
    assert run.outcome("h").details["checkpoint"].startswith("step-00000028-t1-")


BREAKER = """{"commandId": "open", "commandType": "CIRCUIT_BREAKER",
    "circuitBreaker": {"breaker": "optimizer", "desiredState": "OPEN", "rationale": "a drill"}}"""


def test_a_way_over_an_earlier_rollback_decides_and_tells_nothing_again(make_run) -> None:
    """Journaled twice, on a timeline that is left, it is what no later recovery gets past."""
    run = make_run(snapshot_memory_mb=0)
    run.send((BACK % '{"target_step": 18}').replace('"back"', '"first"'), at_step=20)
    run.send(BREAKER, at_step=24)
    # From the checkpoint before the first one, over its cut and the breaker, to step 27.
    run.send((BACK % '{"target_step": 27}').replace('"back"', '"second"'), at_step=30)
    run.send((BACK % '{"target_step": 26}').replace('"back"', '"third"'), at_step=29)
    ended = run.train()
    assert ended.timeline == 4
    decided = [item for item in read_records(run.path) if item.HasField("decision")]
    assert [item.decision.kind for item in decided].count("breaker") == 1
    assert run.events().count("breaker") == 1
    # Each of them is told when it is there, not when another one's cut is passed.
    assert [name for name in spans(run) if name == "tolaria.rollback"] == ["tolaria.rollback"] * 3
    assert {item.cut.tier for item in cuts(run)} == {"full"}
