"""``python -m infra.soak``: soak, show the report; exit code 1 if something did not hold."""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import signal
import sys
import tempfile
from pathlib import Path

from infra.soak.report import markdown
from infra.soak.soak import Plan, soak


def main() -> int:
    """Do it."""
    options = _options()
    # Ended from outside it ends its processes.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    # Ours are set by us, whoever calls.
    for name in [name for name in os.environ if "TOLARIA" in name]:
        del os.environ[name]
    home = Path(tempfile.mkdtemp(prefix="soak-", dir=options.folder))
    os.environ["XDG_STATE_HOME"] = str(home / "state")
    command = f"python -m infra.soak --minutes {options.minutes:g} --seed {options.seed}"
    command += f" --pace {options.pace:g} --patience {options.patience:g}"
    print(f"the same choices again: {command}\neverything of it is in {home}", flush=True)
    plan = Plan(options.minutes * 60, options.seed, options.pace, options.patience, command)
    report = soak(home, plan, lambda line: print(line, flush=True))
    page = markdown(report)
    options.report.mkdir(parents=True, exist_ok=True)
    (options.report / "soak.md").write_text(page)
    (options.report / "soak.json").write_text(json.dumps(report, indent=1))
    print(f"\n{page}\nthis is in {options.report}/soak.md, and as JSON beside it")
    if not report["passed"]:
        print(f"FAILED; everything of it is kept in {home}")
        return 1
    shutil.rmtree(home)
    return 0


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="make soak", description=__doc__)
    parser.add_argument("--minutes", type=float, default=10.0, help="with faults [10]")
    parser.add_argument("--seed", type=int, help="of every choice [a new one each time]")
    parser.add_argument("--pace", type=float, default=4.0, help="orders a second [4]")
    parser.add_argument(
        "--patience", type=float, default=180.0, help="seconds that anything may take [180]"
    )
    parser.add_argument(
        "--report", type=Path, default=Path("soak-results"), help="folder for it [soak-results]"
    )
    parser.add_argument(
        "--folder", type=Path, help="where all is made; a short path [a temporary folder]"
    )
    options = parser.parse_args()
    if not options.minutes > 0 or not options.pace > 0 or not options.patience > 0:
        parser.error("--minutes, --pace and --patience must be over 0")
    if options.seed is None:
        options.seed = random.SystemRandom().randrange(1_000_000)
    return options


if __name__ == "__main__":
    sys.exit(main())
