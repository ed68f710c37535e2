"""``python -m infra.demo``: play the demo; exit code 0 if every step did what it says."""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path

from .screen import Screen
from .script import Demo
from .shell import DemoFailed
from .watch import NotSeen


def main() -> int:
    """Play it once."""
    parser = argparse.ArgumentParser(prog="make demo", description=__doc__)
    parser.add_argument(
        "--runs", type=Path, default=Path("runs"), help="where the run's folder is made"
    )
    runs = parser.parse_args().runs.resolve()
    screen = Screen()
    began = time.monotonic()
    demo = Demo(runs, screen)
    try:
        demo.play()
    except (DemoFailed, NotSeen) as error:
        screen.failure(str(error))
        screen.note(f"see {demo.folder}")
        return 1
    except KeyboardInterrupt:
        screen.note("interrupted; the run was stopped in good order")
        return 130
    screen.note(f"{time.monotonic() - began:.0f} seconds in all")
    return 0


if __name__ == "__main__":
    sys.exit(main())
