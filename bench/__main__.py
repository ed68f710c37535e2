"""``python -m bench [SUBJECT ...]``: measure, print, write ``bench-results/SUBJECT.json``."""

from __future__ import annotations

import argparse
import gc
import sys
import time
from importlib import import_module

from rich.console import Console

from bench import harness, report
from bench.theirs import ENVIRONMENT

SUBJECTS = (
    "envelope", "journal", "snapshot", "checkpoint", "recovery", "rebuild", "aggregation",
    "publish", "single", "consume", "burst", "emergency", "boundary", "hostile", "overhead",
    "rivals", "growth", "torture",
)  # fmt: skip
"""Each a module of this package with a function ``run() -> Result``; short ones first.

Unasked, ``rivals`` only where its environment is; ``growth`` and ``torture`` never: they take long.
"""


def main() -> int:
    """Run the subjects asked for; 0 if all came to a result."""
    parser = argparse.ArgumentParser(prog="python -m bench", description=__doc__)
    parser.add_argument("subjects", nargs="*", metavar="SUBJECT", help=", ".join(SUBJECTS))
    asked = parser.parse_args().subjects or [
        subject
        for subject in SUBJECTS
        if subject not in ("growth", "torture") and (subject != "rivals" or ENVIRONMENT.exists())
    ]
    if unknown := sorted(set(asked) - set(SUBJECTS)):
        parser.error(f"unknown subject {unknown[0]!r}; there are {', '.join(SUBJECTS)}")
    console = Console(width=None if sys.stdout.isatty() else 140, soft_wrap=False)
    facts = harness.hardware()
    console.print(harness.hardware_line(facts), highlight=False)
    # As a worker does once it is ready to train.
    gc.collect()
    gc.freeze()
    for subject in asked:
        started = time.monotonic()
        result: harness.Result = import_module(f"bench.{subject}").run()
        result.seconds = time.monotonic() - started
        report.show(result, console)
        console.print(f"written to {harness.write(result, facts)}", style="dim")
    return 0


if __name__ == "__main__":
    sys.exit(main())
