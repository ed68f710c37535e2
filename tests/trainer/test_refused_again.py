"""What was refused because of the machine stays refused when the run comes back."""

from __future__ import annotations

from pathlib import Path

from tests.trainer.lives import Power
from tests.trainer.test_recovery import FailsAtOutcome
from tolaria_bus.leyline import CommandOutcome
from tolaria_bus.tolaria.control.mailbox import Delivery


class NoRoom(FailsAtOutcome):
    """Checkpoints of step 5 can't be written; the power goes when one was refused for that."""

    def __init__(self, path: Path, copy: Path) -> None:
        super().__init__(Power(path, copy), 2)
        self.path = path

    def outcome(self, outcome: CommandOutcome, delivery: Delivery | None) -> None:
        for sequence in range(20):
            # Where one is written first: a file is in the way of its folder.
            (self.path / "checkpoints" / f"step-00000005-t1-s{sequence}.tmp").touch()
        super().outcome(outcome, delivery)


def test_a_checkpoint_that_a_full_disk_refused_is_no_divergence_once_there_is_space(
    make_run, tmp_path: Path
) -> None:
    run = make_run("run", steps=20)
    run.outbound = NoRoom(run.path, tmp_path / "copy")
    run.send('{"commandId": "c", "commandType": "CHECKPOINT"}', at_step=5)
    reference = run.train()
    assert run.outcome("c").code == "checkpoint_failed"
    again = make_run("copy", steps=20)
    assert again.train().weights_sha256 == reference.weights_sha256
    assert {status for _, status, _ in again.outcomes()} <= {"REJECTED"}
