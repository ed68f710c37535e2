"""A short soak: half a minute of faults on a fleet at work. Longer ones: make soak."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

# The seed: server stopped and killed, Weatherlight, a worker, Tamiyo killed, a forged HALT.
WORDS = ("--minutes", "0.4", "--seed", "32", "--patience", "300")


@pytest.mark.slow
def test_a_fleet_under_random_faults_loses_nothing_and_does_nothing_twice(tmp_path: Path) -> None:
    kept = {name: text for name, text in os.environ.items() if "TOLARIA" not in name}
    done = subprocess.run(
        [sys.executable, "-m", "infra.soak", *WORDS, "--report", str(tmp_path)],
        cwd=Path(__file__).parents[2],
        env=kept,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout
    report = json.loads((tmp_path / "soak.json").read_text())
    assert report["passed"]
    assert report["faults"]
    # It is no empty run: things were sent, applied, refused.
    assert sum(report["sent"].values()) > len(report["faults"])
    assert report["outcomes"]["APPLIED"] > 0
