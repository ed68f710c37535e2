"""Commands at fences: each has its effect once, at a step that its outcome names."""

from __future__ import annotations

import pytest

from tests.trainer.conftest import STEPS_PER_EPOCH
from tolaria_bus.leyline import EmergencySignal
from tolaria_bus.leyline import SeedLifecycleStage as Stage
from tolaria_bus.tolaria.control.mailbox import Mailbox, RecordingOutbound

LR = '{"commandId": "%s", "commandType": "LEARNING_RATE", "learningRate": {"learningRate": %s}}'
PAUSE = '{"commandId": "p", "commandType": "PAUSE"}'
RESUME = '{"commandId": "r", "commandType": "RESUME"}'
GERMINATE = """{"commandId": "g", "commandType": "SEED", "targetSeedId": "s1",
    "seedOperation": {"operation": "GERMINATE", "blueprintId": "residual_mlp"}}"""
CULL = """{"commandId": "c", "commandType": "SEED", "targetSeedId": "s1",
    "seedOperation": {"operation": "CULL"}}"""


def test_a_run_trains_to_its_end_and_validates_on_held_out_data(make_run) -> None:
    run = make_run()
    summary = run.train()
    assert (summary.steps, summary.epochs) == (4 * STEPS_PER_EPOCH, 4)
    assert summary.stopped_by == "finished"
    assert summary.accuracy is not None
    assert summary.accuracy > 0.8
    assert [packet.current_epoch for packet in run.outbound.states] == [1, 2, 3, 4]
    assert run.outbound.alerts() == []


def test_a_learning_rate_takes_effect_at_the_step_that_the_outcome_names(make_run) -> None:
    run = make_run()
    run.send(LR % ("a", 0.001), at_step=20)
    run.train()
    assert run.outcomes() == [("a", "DEFERRED", 0), ("a", "APPLIED", 20)]
    rates = {
        packet.global_step: metric.value
        for packet, _ in run.outbound.packets
        for metric in packet.metrics
        if metric.name == "tolaria.lr_controller.learning_rate"
    }
    assert rates[20] == 0.01
    assert rates[21] == 0.001


def test_at_epoch_takes_effect_at_the_end_of_that_epoch(make_run) -> None:
    run = make_run()
    run.send(LR % ("a", 0.001), at_epoch=2)
    run.train()
    assert run.outcomes()[-1] == ("a", "APPLIED", 2 * STEPS_PER_EPOCH)


def test_a_fence_that_has_passed_is_too_late_unless_late_is_ok(make_run) -> None:
    run = make_run(steps=20)
    run.train()
    again = make_run(steps=40)
    again.send(LR % ("a", 0.001), at_step=5)
    again.send(LR % ("b", 0.001), at_step=5, late_ok="true")
    again.train()
    assert again.outcomes() == [("a", "REJECTED", 20), ("b", "APPLIED", 20)]
    assert again.outcome("a").code == "too_late"
    assert "at_step = 5" in again.outcome("a").reason


def test_pause_holds_the_run_at_its_step_until_resume(make_run) -> None:
    run = make_run()
    run.send(PAUSE)
    run.send(RESUME)
    run.train()
    assert run.outcomes() == [("p", "APPLIED", 0), ("r", "APPLIED", 0)]


def test_stop_ends_the_run_with_a_checkpoint_and_the_next_start_goes_on(make_run) -> None:
    run = make_run()
    run.send('{"commandId": "s", "commandType": "STOP"}', at_step=10)
    summary = run.train()
    assert (summary.steps, summary.stopped_by) == (10, "command")
    again = make_run()
    summary = again.train()
    assert summary.resumed_from.startswith("step-00000010")
    assert (summary.steps, summary.stopped_by) == (4 * STEPS_PER_EPOCH, "finished")
    assert again.outcomes() == []


def test_the_same_command_again_is_a_duplicate_with_the_first_outcome(make_run) -> None:
    run = make_run()
    run.send(LR % ("a", 0.001))
    run.send(LR % ("a", 0.001))
    run.send(LR % ("a", 0.002))
    run.train()
    assert [status for _, status, _ in run.outcomes()] == ["APPLIED", "DUPLICATE", "REJECTED"]
    duplicate, conflict = run.outbound.outcomes[1:]
    assert duplicate.first_outcome.step == 0
    assert duplicate.first_outcome.code == "ok"
    assert conflict.code == "id_conflict"


def test_a_redelivered_entry_gets_its_own_outcome_and_no_second_effect(make_run) -> None:
    run = make_run(steps=10)
    run.send(
        '{"commandId": "a", "commandType": "LEARNING_RATE", "learningRate": {"factor": 0.5}}',
        entry="7-1",
    )
    run.train()
    again = make_run(steps=20)
    again.send(
        '{"commandId": "a", "commandType": "LEARNING_RATE", "learningRate": {"factor": 0.5}}',
        entry="7-1",
    )
    again.train()
    assert again.outcomes() == [("a", "APPLIED", 0)]
    rate = (
        again.outbound.states and again.outbound.states[-1].training_metrics["learning_rate.host"]
    )
    assert rate == pytest.approx(0.005)


def test_a_deadline_that_has_passed_expires_the_command(make_run) -> None:
    run = make_run(steps=5)
    run.wall_ns = lambda: 2_000_000_000_000_000_000
    run.send("""{"commandId": "d", "commandType": "PAUSE", "executionDeadlineMs": 1000,
        "issuedAt": "2033-05-18T03:33:10Z"}""")
    run.train()
    assert run.outcomes() == [("d", "EXPIRED", 0)]
    assert "10000 ms after it was issued" in run.outcome("d").reason


@pytest.mark.parametrize(
    ("text", "code", "says"),
    [
        (LR % ("x", -1), "out_of_range", "learning_rate"),
        (LR % ("x", '"NaN"'), "out_of_range", "learning_rate"),
        (
            '{"commandId": "x", "commandType": "LEARNING_RATE", "learningRate": {}}',
            "bad_payload",
            "exactly one",
        ),
        (
            (
                '{"commandId": "x", "commandType": "OPTIMIZER", "optimizerAdjustment": '
                '{"values": {"momentum": 0.9}}}'
            ),
            "out_of_range",
            "momentum",
        ),
        (
            (
                '{"commandId": "x", "commandType": "OPTIMIZER", "optimizerAdjustment": '
                '{"values": {"betas": [0.9, 1.5]}}}'
            ),
            "out_of_range",
            "betas",
        ),
        (
            (
                '{"commandId": "x", "commandType": "SEED", "targetSeedId": "nope", '
                '"seedOperation": {"operation": "CULL"}}'
            ),
            "unknown_seed",
            "nope",
        ),
        (
            (
                '{"commandId": "x", "commandType": "SEED", '
                '"seedOperation": {"operation": "GERMINATE", "blueprintId": "nope"}}'
            ),
            "unknown_blueprint",
            "residual_mlp",
        ),
        (
            '{"commandId": "x", "commandType": "ROLLBACK", "rollbackPayload": {"target_step": 77}}',
            "no_checkpoint",
            "77",
        ),
        ('{"commandId": "x", "commandType": "UNKNOWN"}', "unsupported", "UNKNOWN"),
        ('{"commandId": "x", "commandType": "PROFILE"}', "bad_payload", "must be profile"),
        (
            '{"commandId": "x", "commandType": "PROFILE", "profile": {"steps": 10001}}',
            "out_of_range",
            "steps = 10001: must be 1 to 10000",
        ),
        (
            '{"commandId": "x", "commandType": "CANCEL", "cancel": {"commandId": "zz"}}',
            "unknown_command",
            "zz",
        ),
        (
            '{"commandId": "x", "commandType": "PAUSE", "annotations": {"at_step": "-3"}}',
            "bad_annotation",
            "-3",
        ),
    ],
)
def test_a_bad_command_is_refused_naming_the_field_and_changes_nothing(
    make_run, text: str, code: str, says: str
) -> None:
    run = make_run(steps=20)
    run.send(text)
    refused = run.train()
    outcome = run.outcome("x")
    assert (run.outcomes()[0][1], outcome.code) == ("REJECTED", code)
    assert says in outcome.reason
    assert refused.weights_sha256 == make_run("plain", steps=20).train().weights_sha256


def test_a_seed_grows_and_goes_and_the_host_trains_as_if_it_had_never_been(make_run) -> None:
    run = make_run()
    run.send(GERMINATE, at_step=10)
    run.send(CULL, at_step=40)
    summary = run.train()
    assert [item for item in run.outcomes() if item[1] == "APPLIED"] == [
        ("g", "APPLIED", 10),
        ("c", "APPLIED", 40),
    ]
    seeds = [packet.seed_states[0] for packet in run.outbound.states]
    assert [seed.stage for seed in seeds] == [Stage.SEED_STAGE_GERMINATED] * 2 + [
        Stage.SEED_STAGE_EMBARGOED
    ] * 2
    assert [seed.parameter_count > 0 for seed in seeds] == [True, True, False, False]
    assert summary.weights_sha256 == make_run("plain").train().weights_sha256


def test_optimizer_hyperparameters_change_and_lr_goes_to_the_controller(make_run) -> None:
    run = make_run(steps=20)
    run.send("""{"commandId": "o", "commandType": "OPTIMIZER", "optimizerAdjustment":
        {"hyperparameters": {"weight_decay": 0.1, "lr": 0.001}}}""")
    changed = run.train()
    details = run.outcome("o").details
    assert details["hyperparameters"]["weight_decay"] == 0.1
    assert details["after"]["host"] == 0.001
    assert changed.weights_sha256 != make_run("plain", steps=20).train().weights_sha256


def test_a_deferred_command_can_be_cancelled_by_id(make_run) -> None:
    run = make_run(steps=20)
    run.send(LR % ("a", 0.001), at_step=15)
    run.send('{"commandId": "x", "commandType": "CANCEL", "cancel": {"commandId": "a"}}')
    run.train()
    assert run.outcomes() == [("a", "DEFERRED", 0), ("a", "REJECTED", 0), ("x", "APPLIED", 0)]
    assert run.outcome("a").code == "cancelled"


class StopsAtASignal(RecordingOutbound):
    """Ends the process in good order once the run has announced an emergency."""

    def __init__(self, mailbox: Mailbox) -> None:
        super().__init__()
        self.mailbox = mailbox

    def emergency(self, signal: EmergencySignal) -> None:
        super().emergency(signal)
        self.mailbox.request_stop("signal")


def test_halt_announces_saves_and_survives_restarts_until_resume(make_run) -> None:
    run = make_run()
    run.outbound = StopsAtASignal(run.mailbox)
    run.send(
        """{"commandId": "h", "commandType": "EMERGENCY", "emergency": {"level": "HALT"},
        "annotations": {"reason": "fire"}}""",
        at_step=5,
    )
    halted = run.train()
    assert (halted.steps, halted.mode) == (5, "halted")
    assert [signal.reason for signal in run.outbound.signals] == ["fire"]

    again = make_run()
    again.mailbox.request_stop("signal")
    still = again.train()
    assert (still.steps, still.mode) == (5, "halted")
    assert again.outbound.signals == []

    resumed = make_run()
    resumed.send(RESUME)
    assert resumed.train().steps == 4 * STEPS_PER_EPOCH


def test_conservative_mode_refuses_growth_and_says_how_to_leave(make_run) -> None:
    run = make_run(steps=10)
    run.send('{"commandId": "m", "commandType": "MODE", "mode": {"conservative": true}}')
    run.send(GERMINATE)
    run.send('{"commandId": "n", "commandType": "MODE", "mode": {}}')
    run.send(GERMINATE.replace('"g"', '"g2"'))
    run.train()
    assert run.outcome("g").code == "conservative"
    assert run.outcome("g2").code == "ok"
