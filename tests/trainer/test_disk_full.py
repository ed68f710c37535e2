"""A disk that fills up costs checkpoints and new commands, never the run nor what was saved."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.recovery.small_disk import run_on_small_disk

FULL = """
import pathlib, sys
import torch
from tests.recovery.small_disk import fill
from tests.trainer.conftest import Moons, Run
from tolaria_bus.settings import load
from tolaria_bus.tolaria.control.mailbox import RecordingOutbound
from tolaria_bus.tolaria.recovery.checkpoints import CheckpointStore

disk = pathlib.Path(sys.argv[1])
torch.set_num_threads(1)

class FillsUp(RecordingOutbound):
    def state(self, packet):
        super().state(packet)
        if len(self.states) == 2:  # Before the second epoch's checkpoint.
            fill(disk)

def make(outbound):
    settings, _ = load(device="cpu", telemetry_seconds=0.0)
    return Run(settings, disk / "run", Moons(), outbound=outbound)

full = make(FillsUp())
summary = full.train()
assert (summary.stopped_by, summary.steps) == ("finished", 64), summary
failed = [packet.events[0] for packet in full.outbound.alerts()]
assert "checkpoint_failed" in {event.event_id for event in failed}, failed
assert any("No space left" in event.description for event in failed), failed
store = CheckpointStore(disk / "run" / "checkpoints")
assert [item.step for item in store.list()] == [0, 16]
store.load(store.list()[-1].name)

(disk / "ballast").unlink()
again = make(RecordingOutbound())
resumed = again.train()
assert resumed.resumed_from == summary.checkpoint == store.list()[1].name, resumed
assert (resumed.steps, resumed.weights_sha256) == (64, summary.weights_sha256)
assert store.list()[-1].step == 64
"""


@pytest.mark.slow
def test_a_run_goes_on_with_an_alert_and_from_the_last_good_checkpoint_when_there_is_space(
    tmp_path: Path,
) -> None:
    run_on_small_disk(FULL, tmp_path / "disk", size="8m")
