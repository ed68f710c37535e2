"""A thousand kills: that nothing is lost or done twice, and what a kill costs."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

from bench.harness import Figure, Result

KILLS = int(os.environ.get("BENCH_KILLS", "1000"))
"""How many; fewer, to see whether it works."""


def run() -> Result:
    """Torture as many runs as that takes.

    Raises:
        RuntimeError: A run did what it must not; everything of it is kept, and said where.
    """
    result = Result("torture", f"{KILLS} kills of steered runs, against runs that are never killed")
    with tempfile.TemporaryDirectory(prefix="bench-") as folder:
        totals = Path(folder) / "totals.json"
        words = [sys.executable, "-m", "infra.torture", "--kills", str(KILLS)]
        ended = subprocess.run([*words, "--json", str(totals)], check=False).returncode
        if not totals.exists():
            raise RuntimeError(f"torture ended with {ended}")
        found = json.loads(totals.read_text())
    result.figures = [
        Figure("lost, doubled, or other bits", found["complaints"], "cases", goal="0"),
        Figure("runs, each also repeated from its journal", found["runs"], "runs"),
        Figure("kills", found["kills"], "kills", goal=str(KILLS)),
        Figure("deaths by a command that ends its process", found["trapped"], "deaths"),
        Figure("recoveries", found["recoveries"], "starts"),
        Figure("servers killed or stopped, full disks, ...", found["disturbances"], "times"),
        Figure("files torn or spoilt between two lives", found["damage"], "times"),
        Figure("orders sent", found["orders"], "orders"),
        Figure("outcomes, each once", found["outcomes"], "outcomes"),
        Figure("wall time a kill, all else counted in", found["seconds"] / found["kills"], "s"),
    ]
    if ended:
        raise RuntimeError(f"torture ended with {ended}: {found['complaints']} complaints")
    return result
