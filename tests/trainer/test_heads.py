"""Heads of a transformer of torch's own are removed from a run by command, and stay removed."""

from __future__ import annotations

import pytest
from torch import Tensor, nn

from tests.trainer.conftest import Moons, Run
from tests.trainer.lives import Power
from tests.trainer.test_recovery import FailsAtOutcome, FailsAtState
from tests.trainer.test_seeds import check_resumed


class Attends(nn.Module):
    """A sequence of the two coordinates of a point."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Linear(1, 8)
        self.block = nn.TransformerEncoderLayer(8, 4, 16, dropout=0.1, batch_first=True)
        self.head = nn.Linear(16, 2)

    def forward(self, points: Tensor) -> Tensor:
        logits: Tensor = self.head(self.block(self.embed(points[..., None])).flatten(1))
        return logits


class Transformer(Moons):
    """A job that knows nothing of pruning."""

    def model(self) -> nn.Module:
        return Attends()


def prune(run: Run, name: str, at: int, fraction: float, target: str = "block.self_attn") -> None:
    run.send(
        f"""{{"commandId": "{name}", "commandType": "STRUCTURAL_PRUNING", "structuralPruning":
        {{"target": "{target}", "fraction": {fraction}, "values": {{"impact": 1000}}}}}}""",
        at_step=at,
    )


def pruned(run: Run) -> None:
    prune(run, "once", 20, 0.25)
    prune(run, "twice", 30, 0.4)
    run.send('{"commandId": "back", "commandType": "ROLLBACK"}', at_step=37)


# Outcomes: three DEFERRED, then those of the prunings and of the rollback; and at ends of epochs.
@pytest.mark.parametrize(
    ("power", "compiled"),
    [
        ("outcome-4", "off"),
        ("outcome-5", "off"),
        ("outcome-6", "off"),
        ("state-1", "off"),
        ("state-2", "off"),
        ("state-2", "aot_eager"),
    ],
)
def test_power_lost_around_prunings_of_heads_ends_in_the_same_bits(
    make_run, tmp_path, power: str, compiled: str
) -> None:
    kind, nth = power.split("-")
    fails = {"outcome": FailsAtOutcome, "state": FailsAtState}[kind]
    run = make_run(
        "run", job=Transformer(), checkpoint_every_steps=7, checkpoint_keep=100, compile=compiled
    )
    run.outbound = fails(Power(run.path, tmp_path / "copy"), int(nth))
    pruned(run)
    check_resumed(
        lambda *names, **options: make_run(*names, **options, compile=compiled),
        run,
        pruned,
        Transformer,
    )
    details = [run.outcome(name).details for name in ("once", "twice")]
    assert [(found["heads"], found["heads_removed"]) for found in details] == [(3, 1), (2, 1)]
    assert run.outcome("back").code == "ok"
    assert "engine_fallback" not in run.events()


def test_a_rollback_to_before_the_prunings_gives_the_heads_back(make_run) -> None:
    run = make_run(job=Transformer())
    pruned(run)
    run.send(
        """{"commandId": "whole", "commandType": "ROLLBACK",
        "rollbackPayload": {"target_step": 16, "data": "replay"}}""",
        at_step=40,
    )
    prune(run, "again", 50, 0.5)
    run.train()
    assert run.outcome("whole").code == "ok"
    assert run.outcome("once").code == "rolled_back"
    details = run.outcome("again").details
    assert (details["heads"], details["heads_removed"]) == (2, 2)


def test_a_target_without_heads_of_its_own_is_rejected_naming_those_that_have(make_run) -> None:
    run = make_run(job=Transformer(), steps=10)
    prune(run, "layer", 5, 0.5, target="block")
    run.train()
    outcome = run.outcome("layer")
    assert outcome.code == "bad_parameter"
    assert "allowed: embed, block.self_attn, head" in outcome.reason
