"""Another optimizer by a command, and what becomes of it when the process dies."""

from __future__ import annotations

import pytest
from google.protobuf.json_format import MessageToDict

from tests.trainer.lives import Power
from tests.trainer.test_recovery import FailsAtOutcome, FailsAtState
from tolaria_bus.leyline import CommandOutcome


def to_sgd(run, **annotations) -> None:
    run.send(
        """{"commandId": "sgd", "commandType": "OPTIMIZER", "optimizerAdjustment":
        {"optimizerId": "sgd", "values": {"momentum": 0.9, "lr": 0.02}}}""",
        **annotations,
    )


def test_another_class_takes_over_at_its_step_and_says_what_it_carried(make_run) -> None:
    run = make_run()
    to_sgd(run, at_step=21)
    run.train()
    outcome: CommandOutcome = run.outcome("sgd")
    assert (outcome.code, outcome.step) == ("ok", 21)
    details = MessageToDict(outcome.details)
    assert (details["optimizer_before"], details["optimizer"]) == ("AdamW", "SGD")
    assert details["state_carried"] == ["momentum_buffer"]
    assert details["after"] == {"host": 0.02}
    rebuilds = [
        point.value
        for packet, _ in run.outbound.packets
        for point in packet.metrics
        if point.name == "tolaria.optimizer.rebuilds"
    ]
    assert (rebuilds[0], rebuilds[-1]) == (0, 1)


@pytest.mark.parametrize("outbound", [FailsAtOutcome, FailsAtState])
def test_power_lost_after_a_change_of_class_ends_in_the_same_bits(
    make_run, tmp_path, outbound
) -> None:
    run = make_run("run")
    run.outbound = outbound(Power(run.path, tmp_path / "copy"), 2)
    to_sgd(run, at_step=21)
    run.send('{"commandId": "back", "commandType": "ROLLBACK", "rollbackPayload": {}}', at_step=40)
    reference = run.train()
    again = make_run("copy")
    to_sgd(again, at_step=21)
    again.send(
        '{"commandId": "back", "commandType": "ROLLBACK", "rollbackPayload": {}}', at_step=40
    )
    assert again.train().weights_sha256 == reference.weights_sha256


def test_a_rollback_behind_a_change_of_class_has_the_old_class_again(make_run) -> None:
    run = make_run()
    to_sgd(run, at_step=20)
    run.send(
        """{"commandId": "back", "commandType": "ROLLBACK",
        "rollbackPayload": {"target_step": 16}}""",
        at_step=25,
    )
    run.send(
        """{"commandId": "beta", "commandType": "OPTIMIZER", "optimizerAdjustment":
        {"optimizerId": "AdamW", "values": {"beta1": 0.5}}}""",
        at_step=30,
    )
    run.train()
    assert ("beta", "APPLIED", 30) in run.outcomes()


@pytest.mark.parametrize(
    ("optimizer", "mode", "code"),
    [
        ('"optimizerId": "adamant"', "false", "out_of_range"),
        ('"optimizerId": "SGD", "values": {"momentum": 2}', "false", "out_of_range"),
        ('"optimizerId": "Muon"', "false", "rebuild_failed"),
        ('"optimizerId": "SGD"', "true", "conservative"),
    ],
)
def test_a_change_of_class_that_cannot_be_leaves_the_run_as_it_was(
    make_run, optimizer, mode, code
) -> None:
    plain, run = make_run("plain"), make_run("run")
    for one in (plain, run):
        one.send(
            f'{{"commandId": "m", "commandType": "MODE", "mode": {{"conservative": {mode}}}}}',
            at_step=2,
        )
    run.send(
        f"""{{"commandId": "x", "commandType": "OPTIMIZER",
        "optimizerAdjustment": {{{optimizer}}}}}""",
        at_step=5,
    )
    assert run.train().weights_sha256 == plain.train().weights_sha256
    assert run.outcome("x").code == code
