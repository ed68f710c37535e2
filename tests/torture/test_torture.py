"""Twenty kills, and all that goes with them; a thousand are in the bench."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest


@pytest.mark.slow
def test_killed_twenty_times_a_run_loses_nothing_and_does_nothing_twice() -> None:
    kept = {name: text for name, text in os.environ.items() if "TOLARIA" not in name}
    done = subprocess.run(
        # A seed of its own each time: what fails names it.
        [sys.executable, "-m", "infra.torture", "--kills", "20", "--lanes", "2"],
        cwd=Path(__file__).parents[2],
        env=kept,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout
    assert "killed 20 times" in done.stdout
