"""The journal: making a record durable, against one ``O_DSYNC`` write of as many bytes.

Quiet, and under load: torch on all cores, and a process that writes and syncs all the while, as
checkpoints on the same disk do.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from statistics import quantiles

import torch

from bench.harness import Result, compare, interleave
from bench.messages import command
from tolaria_bus.leyline import CommandIntent, JournalRecord
from tolaria_bus.leyline.codec import encode
from tolaria_bus.tolaria.recovery.journal import Journal
from tolaria_bus.tolaria.recovery.segments import frame

ROUNDS = 9
APPENDS = 100
PAUSE = 0.002
"""Seconds between two appends."""

_WRITER = """
import os, sys
data = os.urandom(1 << 20)
while True:
    with open(sys.argv[1], "wb") as file:
        for _ in range(64):
            file.write(data)
        file.flush()
        os.fsync(file.fileno())
"""


def run() -> Result:
    """An INTENT of a learning rate, one append after the other."""
    size = len(frame(_intent(1).SerializeToString(), begins_append=True))
    result = Result("journal", f"{ROUNDS} x {APPENDS} appends of an INTENT, {size} bytes each")
    for load in ("quiet", "under load"):
        with tempfile.TemporaryDirectory(dir=".") as name:
            folder = Path(name)
            with closing(Journal.open(folder / "journal")) as journal, _busy(folder, load):
                _measure(result, load, journal, folder / "raw", size)
    return result


def _measure(result: Result, load: str, journal: Journal, path: Path, size: int) -> None:
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_DSYNC, 0o600)
    os.posix_fallocate(fd, 0, 4 << 20)
    data = os.urandom(size)
    waits: dict[str, list[list[float]]] = {"append": [], "raw": []}

    def ours() -> float:
        waits["append"].append([_timed(lambda: journal.append(_intent(1))) for _ in range(APPENDS)])
        return 0.0

    def raw() -> float:
        waits["raw"].append([_timed(lambda: os.write(fd, data)) for _ in range(APPENDS)])
        return 0.0

    interleave({"raw": raw, "ours": ours}, ROUNDS)
    os.close(fd)
    for place, at in (("p50", 49), ("p99", 98)):
        found = {
            name: [quantiles(each, n=100)[at] for each in rounds[1:]]
            for name, rounds in waits.items()
        }
        result.figures.append(
            compare(
                f"append, {load}, {place}; baseline: write with O_DSYNC",
                found["append"],
                found["raw"],
                "ms",
                goal="<= 10 ms",
            )
        )


def _timed(work: Callable[[], object]) -> float:
    time.sleep(PAUSE)
    started = time.perf_counter()
    work()
    return (time.perf_counter() - started) * 1000


def _intent(number: int) -> JournalRecord:
    message = command(number)
    return JournalRecord(
        step=number,
        intent=CommandIntent(command_id=message.command_id, command=encode(message)),
    )


@contextmanager
def _busy(folder: Path, load: str) -> Iterator[None]:
    """Torch on all cores, and another process that writes and syncs."""
    if load == "quiet":
        yield
        return
    over = threading.Event()

    def train() -> None:
        weight = torch.randn(1024, 1024, requires_grad=True)
        while not over.is_set():
            (weight @ weight).sum().backward()  # type: ignore[no-untyped-call]

    thread = threading.Thread(target=train, daemon=True)
    words = [sys.executable, "-c", _WRITER, str(folder / "checkpoint")]
    with subprocess.Popen(words) as writer:
        thread.start()
        try:
            yield
        finally:
            writer.kill()
            over.set()
            thread.join()
