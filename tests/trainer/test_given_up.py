"""A command that ends its process three times is given up, and may be sent again by a replay."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from tests.trainer.conftest import Moons, Run
from tests.trainer.lives import Power
from tests.trainer.test_recovery import FailsAtOutcome
from tolaria_bus.leyline import CommandOutcome
from tolaria_bus.tolaria.control.mailbox import Delivery, RecordingOutbound

DECAY = """{"commandId": "decay", "commandType": "OPTIMIZER", "optimizerAdjustment":
    {"values": {"weight_decay": 0.2}}}"""


class Died(BaseException):
    """Stands for the end of the process: nothing that comes after is done."""


class Fuse(dict[str, Any]):
    """A parameter group that can't be changed while it is armed."""

    armed = False

    def update(self, *args: Any, **values: Any) -> None:
        changes = dict(*args, **values)
        if Fuse.armed and changes.get("weight_decay") == 0.2:
            raise Died
        super().update(changes)


class Fused(Moons):
    def optimizer(self, params: Any) -> torch.optim.Optimizer:
        return torch.optim.AdamW([Fuse(params=list(params), lr=self.lr)])


class Deliveries(RecordingOutbound):
    """Keeps what each outcome answers, too."""

    def __init__(self) -> None:
        super().__init__()
        self.answered: list[Delivery | None] = []

    def outcome(self, outcome: CommandOutcome, delivery: Delivery | None) -> None:
        super().outcome(outcome, delivery)
        self.answered.append(delivery)


@pytest.fixture(autouse=True)
def _unarmed() -> Any:
    yield
    Fuse.armed = False


def given_up(make_run: Any, **annotations: Any) -> Run:
    """A run that was killed three times by the same command; not started again yet."""
    Fuse.armed = True
    for life in range(3):
        run: Run = make_run(job=Fused())
        if life == 0:
            run.send(DECAY, entry="7-1", **annotations)
        with pytest.raises(Died):
            run.train()
    Fuse.armed = False
    again: Run = make_run(job=Fused())
    return again


def test_a_command_that_ends_its_process_three_times_is_given_up(make_run) -> None:
    run = given_up(make_run)
    run.send(DECAY, entry="7-1")  # Redelivered.
    run.outbound = Deliveries()
    run.train()
    assert run.outcomes() == [("decay", "REJECTED", 0)] * 2
    assert {item.code for item in run.outbound.outcomes} == {"fatal"}
    gave_up, redelivered = run.outbound.answered
    assert gave_up is not None
    assert not gave_up.entry_gone
    assert redelivered is not None
    assert redelivered.group == "tolaria"
    alerts = [event.event_id for packet in run.outbound.alerts() for event in packet.events]
    assert "command_given_up" in alerts


def test_one_that_was_put_off_has_no_entry_any_more(make_run) -> None:
    run = given_up(make_run, at_step=20)
    run.outbound = Deliveries()
    run.train()
    put_off_again, gave_up = run.outbound.answered
    assert put_off_again is None  # That it was put off may not have been told.
    assert run.outcome("decay").code == "fatal"
    assert gave_up is not None
    assert gave_up.entry_gone
    assert gave_up.command.command_id == "decay"


def test_only_a_replay_may_use_its_id_again(make_run) -> None:
    run = given_up(make_run)
    run.send(DECAY, entry="8-1")
    run.send(DECAY, entry="9-1", resent=True)
    run.send(DECAY, entry="9-1", resent=True)  # Redelivered.
    run.send(DECAY, entry="9-2", resent=True)
    run.train()
    assert [status for _, status, _ in run.outcomes()] == [
        "REJECTED",
        "DUPLICATE",
        "APPLIED",
        "APPLIED",
        "DUPLICATE",
    ]
    assert run.outbound.outcomes[1].first_outcome.code == "fatal"
    assert run.outbound.outcomes[4].first_outcome.code == "ok"


def test_recovery_skips_what_was_given_up_and_applies_what_was_sent_again(
    make_run, tmp_path
) -> None:
    """The two have the same id: the journal's second result isn't the first one's."""
    reference = make_run("reference", job=Fused())
    reference.send(DECAY, at_step=25)
    expected = reference.train().weights_sha256
    run = given_up(make_run, at_step=20)
    run.send(DECAY, entry="9-1", resent=True, at_step=25)
    # Told again that it was put off; given up, put off, applied: the checkpoint before all of them
    # is the newest in the copy.
    run.outbound = FailsAtOutcome(Power(run.path, tmp_path / "copy"), 4)
    assert run.train().weights_sha256 == expected
    again = make_run("copy", job=Fused())
    assert again.train().weights_sha256 == expected
    assert again.outcomes() == [("decay", "APPLIED", 25)]
