"""A disk that becomes read-only costs checkpoints; one that is so at the start, one line."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.recovery.small_disk import run_on_small_disk

MEANWHILE = """
import pathlib, subprocess, sys
import torch
from tests.trainer.conftest import Moons, Run
from tolaria_bus.settings import load
from tolaria_bus.tolaria.control.mailbox import RecordingOutbound

disk = pathlib.Path(sys.argv[1])
torch.set_num_threads(1)
kept = disk / "run" / "checkpoints"

def mount(*words):
    subprocess.run(["mount", *words, str(kept)], check=True)

class TurnsReadOnly(RecordingOutbound):
    def state(self, packet):
        super().state(packet)
        if len(self.states) == 2:  # Before the second epoch's checkpoint.
            mount("--bind", str(kept))
            mount("-o", "remount,bind,ro")

def make(outbound, name="run"):
    settings, _ = load(device="cpu", telemetry_seconds=0.0)
    return Run(settings, disk / name, Moons(), outbound=outbound)

broken = make(TurnsReadOnly())
summary = broken.train()
assert (summary.stopped_by, summary.steps) == ("finished", 64), summary
failed = [packet.events[0] for packet in broken.outbound.alerts()]
assert any("Read-only" in event.description for event in failed), failed
subprocess.run(["umount", str(kept)], check=True)
resumed = make(RecordingOutbound()).train()
assert (resumed.steps, resumed.weights_sha256) == (64, summary.weights_sha256), resumed
whole = make(RecordingOutbound(), "whole").train()
assert whole.weights_sha256 == summary.weights_sha256
"""

FROM_THE_START = """
import subprocess, sys
subprocess.run(["mount", "-o", "remount,ro", sys.argv[1]], check=True)
words = ["run", "digits", "--steps", "1", "--run-dir", sys.argv[1] + "/run"]
done = subprocess.run(
    [sys.executable, "-m", "tolaria_bus", *words], capture_output=True, text=True, check=False
)
(line,) = done.stderr.strip().splitlines()
assert done.returncode == 2, done
assert "Read-only file system" in line and sys.argv[1] in line, line
"""


@pytest.mark.slow
def test_a_run_goes_on_while_its_checkpoints_cannot_be_written_and_ends_in_the_same_bits(
    tmp_path: Path,
) -> None:
    run_on_small_disk(MEANWHILE, tmp_path / "disk", size="64m")


@pytest.mark.slow
def test_on_a_disk_that_is_read_only_nothing_begins_and_one_line_says_why(tmp_path: Path) -> None:
    run_on_small_disk(FROM_THE_START, tmp_path / "disk", size="8m")
