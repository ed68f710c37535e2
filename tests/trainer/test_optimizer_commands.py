"""Another optimizer by a command, and what becomes of it when the process dies."""

from __future__ import annotations

from contextlib import closing
from typing import Any

import pytest
import torch
from google.protobuf.json_format import MessageToDict

from tests.trainer.conftest import Moons
from tests.trainer.lives import Power
from tests.trainer.test_recovery import FailsAtOutcome, FailsAtState
from tolaria_bus.leyline import CommandOutcome
from tolaria_bus.tolaria.recovery.run_folder import RunFolder


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
        ('"optimizerId": "SGD", "group": "host"', "false", "bad_payload"),
        ('"values": {"weight_decay": 0.2}, "group": "nobody"', "false", "out_of_range"),
    ],
)
def test_a_change_that_cannot_be_leaves_the_run_as_it_was(make_run, optimizer, mode, code) -> None:
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


class Grouped(Moons):
    """Weights decay, biases don't."""

    def optimizer(self, params: Any) -> torch.optim.Optimizer:
        weights = [p for p in params if p.dim() > 1]
        others = [p for p in params if p.dim() <= 1]
        groups: list[dict[str, Any]] = [
            {"params": weights},
            {"params": others, "weight_decay": 0.0},
        ]
        return torch.optim.AdamW(groups, lr=0.01)


def test_hyperparameters_and_the_rate_of_one_group_leave_the_others_as_they_were(make_run) -> None:
    run = make_run(job=Grouped())
    run.send(
        """{"commandId": "x", "commandType": "OPTIMIZER", "optimizerAdjustment":
        {"values": {"weight_decay": 0.2, "lr": 0.005}, "group": "host"}}""",
        at_step=5,
    )
    run.train()
    details = MessageToDict(run.outcome("x").details)
    assert details["after"] == {"host": 0.005, "host.1": 0.01}
    assert (details["hyperparameters"], details["group"]) == ({"weight_decay": 0.2}, "host")
    with closing(RunFolder.open(run.path)) as folder:
        saved = folder.checkpoints.newest(folder.live.is_live)
    assert saved is not None
    groups = saved.meta["optimizer"]["groups"]
    assert [group["hyperparameters"]["weight_decay"] for group in groups] == [0.2, 0.0]
