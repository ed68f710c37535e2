"""An epoch's end with the shipped Tamiyo on a real bus: each phase, waited for and not.

A worker and a Tamiyo as users start them, signed, at a server that writes every entry to disk. What
each phase took is what the worker itself publishes.
"""

from __future__ import annotations

import os
import signal
import statistics
import subprocess
import sys
import time
from base64 import b64encode
from collections import defaultdict
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from redis import Redis
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812
from torch.utils.data import TensorDataset

from bench.harness import Figure, Result, compare, percentile
from bench.server import server
from tolaria_bus.leyline import TelemetryPacket
from tolaria_bus.oona.opening import Opener
from tolaria_bus.oona.streams import Streams
from tolaria_bus.oona.trust import KeyRing

ROUNDS = 3
EPOCHS = 100
SKIPPED = 20
"""Epochs until Tamiyo has found the run and both are warm."""
BUDGETED = ("assembly", "tamiyo", "adaptation", "check")
STREAMS = Streams()
_TRIPS = 100
_ECHO = """
import sys, redis
client, last = redis.Redis.from_url(sys.argv[1]), "$"
print("ready", flush=True)
for _ in range(int(sys.argv[2])):
    [(_, entries)] = client.xread({"bench:there": last}, block=60000)
    last = entries[-1][0]
    client.xadd("bench:back", entries[-1][1])
"""


class Short:
    """Steps of about a millisecond, forty an epoch: the ends come as fast as they may."""

    name = "bench_boundary"
    batch_size = 64
    epochs = EPOCHS
    schedule = "constant"

    def model(self) -> nn.Module:
        """A quarter of a million parameters."""
        return nn.Sequential(nn.Linear(64, 512), nn.ReLU(), nn.Linear(512, 512), nn.Linear(512, 10))

    def train_data(self) -> TensorDataset:
        """Nothing that could be learnt: Tamiyo has something to say."""
        generator = torch.Generator().manual_seed(0)
        samples = self.batch_size * 40
        return TensorDataset(
            torch.randn(samples, 64, generator=generator), torch.arange(samples) % 10
        )

    def validation_data(self) -> TensorDataset:
        """One batch."""
        return TensorDataset(torch.randn(32, 64), torch.arange(32) % 10)

    def loss(self, model: nn.Module, batch: list[Tensor]) -> Tensor:
        """Cross-entropy."""
        return F.cross_entropy(model(batch[0]), batch[1])


def run() -> Result:
    """Epochs' ends in each mode, round after round."""
    result = Result("boundary", f"{EPOCHS - SKIPPED} epochs' ends a round, one worker, one Tamiyo")
    found: dict[str, dict[str, list[list[float]]]] = {
        mode: defaultdict(list) for mode in ("overlapped", "blocking")
    }
    answered: dict[str, list[float]] = {mode: [] for mode in found}
    bare = []
    for number in range(ROUNDS):
        for mode in list(found)[:: 1 if number % 2 else -1]:
            phases, share, trips = _measure(mode)
            if mode == "blocking":
                bare.append(statistics.median(trips))
            answered[mode].append(share)
            for phase, values in phases.items():
                found[mode][phase].append(values)
    for mode, phases in found.items():
        for phase in (*BUDGETED, "all four"):
            for share in (0.5, 0.99):
                goal = _goal(mode, phase, share)
                values = [percentile(values, share) for values in phases[phase]]
                together = [value for one in phases[phase] for value in one]
                result.figures.append(
                    Figure(
                        what=f"{mode}: {phase}, p{share * 100:.0f}",
                        value=percentile(together, share),
                        unit="ms",
                        low=min(values),
                        high=max(values),
                        rounds=len(values),
                        goal=goal,
                    )
                )
        shares = answered[mode]
        result.figures.append(
            Figure(
                what=f"{mode}: packets whose answer was taken",
                value=sum(shares) / len(shares),
                unit="",
                low=min(shares),
                high=max(shares),
                rounds=len(shares),
            )
        )
    waits = [statistics.median(values) for values in found["blocking"]["tamiyo"]]
    what = "blocking: tamiyo, p50, against two plain clients' bare round trip"
    result.figures.append(compare(what, waits, bare, "ms"))
    return result


def _goal(mode: str, phase: str, share: float) -> str:
    if mode == "blocking" and phase == "all four" and share == 0.99:
        return "<= 18, goal 5"
    if mode == "overlapped" and phase == "tamiyo" and share == 0.99:
        return "<= 0.5"
    return ""


def _measure(mode: str) -> tuple[dict[str, list[float]], float, list[float]]:
    """What each phase took in one run, and the share of packets whose answer was taken.

    And, at the same server right after it, the times of bare round trips, in milliseconds.
    """
    keys = f"bench:{b64encode(os.urandom(32)).decode()}"
    environment = {**os.environ, "TOLARIA_SIGNING_KEYS": keys, "OMP_NUM_THREADS": "1"}
    with server() as place:
        words = ["--redis", place.url]
        settings = (f"tamiyo={mode}", "boundary_ms=600000", f"runs_dir={place.folder}")
        work = ["run", "bench.boundary:Short", "--run", "b", *words]
        for setting in settings:
            work += ["--set", setting]
        with _started(["tamiyo", *words], environment, place.folder / "tamiyo.log") as tamiyo:
            with _started(work, environment, place.folder / "run.log") as worker:
                if worker.wait(600):
                    raise RuntimeError((place.folder / "run.log").read_text())
            if tamiyo.poll() is not None:
                raise RuntimeError((place.folder / "tamiyo.log").read_text())
        with Redis.from_url(place.url) as redis:
            return (*_read(redis, KeyRing.parse(keys)), _bare_trips(redis, place.url))


def _bare_trips(redis: Redis, url: str) -> list[float]:
    """A few hundred bytes to another process and back, over two streams: nothing else."""
    command = [sys.executable, "-c", _ECHO, url, str(_TRIPS)]
    took, last = [], "0"
    with subprocess.Popen(command, stdout=subprocess.PIPE) as echo:
        assert echo.stdout is not None
        echo.stdout.readline()
        time.sleep(0.2)  # Until its first read blocks in the server.
        for _ in range(_TRIPS):
            began = time.perf_counter()
            redis.xadd("bench:there", {"payload": b"x" * 600})
            read: Any = redis.xread({"bench:back": last}, block=60_000)
            last = read[0][1][-1][0].decode()
            took.append((time.perf_counter() - began) * 1e3)
    return took


def _read(redis: Redis, ring: KeyRing) -> tuple[dict[str, list[float]], float]:
    opener, stream = Opener(ring, None), STREAMS.telemetry("b")
    ends: list[dict[str, float]] = []
    entries: Any = redis.xrange(stream)
    for key, fields in entries:
        message = opener.open(stream, key, fields).message
        if isinstance(message, TelemetryPacket) and message.spans:
            took = {
                span.name.rpartition(".")[2]: (
                    span.end_time.ToNanoseconds() - span.start_time.ToNanoseconds()
                )
                / 1e6
                for span in message.spans
                if span.name.startswith("tolaria.boundary.")
            }
            if took:
                ends.append(took)
    phases: dict[str, list[float]] = {
        phase: [took[phase] for took in ends[SKIPPED:]] for phase in BUDGETED
    }
    phases["all four"] = [sum(took[phase] for phase in BUDGETED) for took in ends[SKIPPED:]]
    outcomes: Any = redis.xrange(STREAMS.outcomes("b"))
    opened = [opener.open(STREAMS.outcomes("b"), key, fields).message for key, fields in outcomes]
    taken: Mapping[str, int] = {
        outcome.command_id: 1 for outcome in opened if getattr(outcome, "code", "") != "late_answer"
    }
    return phases, len(taken) / max(len(ends), 1)


@contextmanager
def _started(
    words: list[str], environment: dict[str, str], log: Path
) -> Iterator[subprocess.Popen[bytes]]:
    with log.open("wb") as output:
        process = subprocess.Popen(
            [sys.executable, "-m", "tolaria_bus", *words],
            env=environment,
            stdout=output,
            stderr=subprocess.STDOUT,
        )
    try:
        yield process
    finally:
        if process.poll() is None:
            process.send_signal(signal.SIGTERM)
        process.wait(60)
