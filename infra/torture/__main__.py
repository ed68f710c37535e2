"""``python -m infra.torture``: torture runs; exit code 0 if none did what it must not."""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

from rich.console import Console

from infra.torture.lane import JOBS, Round, play
from infra.torture.report import Report


def main() -> int:
    """Share the kills between lanes, show what they come to."""
    options = _options()
    if options.lane is not None:
        return _lane(options)
    home = Path(tempfile.mkdtemp(prefix="torture-", dir=options.folder))
    jobs = " ".join(options.jobs)
    console = Console(width=None if sys.stdout.isatty() else 120, soft_wrap=True)
    report = Report(
        console,
        f"python -m infra.torture --kills {options.kills} --seed {options.seed}"
        f" --lanes {options.lanes} --jobs {jobs}",
    )
    began = time.monotonic()
    failures = _play(options, home, report)
    seconds = time.monotonic() - began
    report.close(seconds)
    if options.json is not None:
        options.json.write_text(json.dumps(report.totals(seconds)))
    for failure in failures:
        console.print(failure, style="red", markup=False)
    if report.failed or failures:
        return 1
    shutil.rmtree(home)
    return 0


def _play(options: argparse.Namespace, home: Path, report: Report) -> list[str]:
    """Play all lanes at once; what went wrong with a lane itself."""
    said = threading.Lock()
    lanes = []
    for lane in range(options.lanes):
        words = [sys.executable, "-m", "infra.torture", "--lane", str(lane), "--folder", str(home)]
        words += ["--kills", str(_share(options.kills, lane, options.lanes))]
        words += ["--seed", str(options.seed), "--lanes", str(options.lanes)]
        words += ["--jobs", *options.jobs]
        lanes.append(
            # In good order when it is interrupted: its servers and workers end with it.
            subprocess.Popen(words, stdout=subprocess.PIPE, start_new_session=True)
        )

    def follow(process: subprocess.Popen[bytes]) -> None:
        assert process.stdout is not None
        for line in process.stdout:
            with said:
                report.add(Round.from_json(json.loads(line)))

    threads = [threading.Thread(target=follow, args=(process,)) for process in lanes]
    try:
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    finally:
        for process in lanes:
            if process.poll() is None:
                process.send_signal(signal.SIGINT)
    return [
        f"lane {number} ended with {process.wait()}"
        for number, process in enumerate(lanes)
        if process.wait() != 0
    ]


def _lane(options: argparse.Namespace) -> int:
    output = os.fdopen(os.dup(1), "w")
    for round_ in play(
        options.folder,
        seed=options.seed,
        kills=options.kills,
        first=options.lane,
        step=options.lanes,
        jobs=tuple(options.jobs),
    ):
        print(json.dumps(round_.to_json()), file=output, flush=True)
    return 0


def _share(kills: int, lane: int, lanes: int) -> int:
    return kills // lanes + (lane < kills % lanes)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="make torture", description=__doc__)
    parser.add_argument("--kills", type=int, default=20, metavar="N", help="how many [20]")
    parser.add_argument("--seed", type=int, help="of every choice [a new one each time]")
    parser.add_argument("--lanes", type=int, default=0, help="runs at a time [one a core, max. 4]")
    parser.add_argument("--jobs", nargs="+", choices=sorted(JOBS), default=sorted(JOBS)[::-1])
    parser.add_argument(
        "--folder", type=Path, help="where runs are made; a short path [a temporary folder]"
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the totals there")
    parser.add_argument("--lane", type=int, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.kills < 1:
        parser.error(f"--kills {options.kills}: at least 1")
    if options.seed is None:
        options.seed = random.SystemRandom().randrange(1_000_000)
    cores = len(os.sched_getaffinity(0))
    options.lanes = options.lanes or max(1, min(4, cores, (options.kills + 4) // 5))
    return options


if __name__ == "__main__":
    sys.exit(main())
