"""Rivals: publish and consume beside FastStream and docket, on the same server, with the same body.

They run as programs of their own (:mod:`bench.theirs`), in an environment of their own that ``make
rivals`` makes, with the same interpreter, event loop (uvloop), redis-py and parser of replies
(hiredis) as ours. Each has one process and one thread, and starts from an empty server that writes
every entry to disk. The body is a telemetry packet in protobuf.

They are not the same thing, and the ratios say what each way of working costs, not more:

- Ours: makes, signs and sends from a bounded outbox in batches of its own choosing, and trims the
  stream; receiving verifies signature, audience, age and nonce, parses the protobuf, calls a
  handler for each message, acknowledges and deletes in groups, and keeps claims of work in progress
  alive. "Unsigned" leaves out the signature and the nonce, whose window is in memory alone here.
- FastStream: an envelope of its own with a correlation id, sent by XADD; each reply is awaited
  before the next unless a pipeline is handed in. Receiving tries the body as JSON, validates the
  handler's argument by its annotation, and acknowledges (does not delete) each message by a
  command of its own, or a batch by one. It signs nothing, and the body stays bytes: no message is
  parsed.
- docket: not a bus but a scheduler of tasks. Each message is a call in a pickle, with a record of
  its state in a hash beside the stream's entry, which can be delayed, looked up, cancelled and
  replaced. A worker claims each, runs it, and finishes it by a script that acknowledges, deletes
  and publishes the state. It signs nothing either.

Whatever a rival has for many at once is measured as well, and what its defaults would cost it for
this work is set otherwise, as the modules say.
"""

from __future__ import annotations

import json
import os
import subprocess
from base64 import b64encode
from collections.abc import Awaitable, Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import IO

import anyio
from redis import Redis

from bench import consume, publish
from bench.harness import Result, compare, interleave
from bench.messages import telemetry
from bench.server import Place, server
from bench.theirs import ENVIRONMENT
from tolaria_bus.oona.trust import KeyRing

ROUNDS = 5
MESSAGES = 5_000
BODY = telemetry(MESSAGES // 2).SerializeToString()
PYTHON = ENVIRONMENT / "bin" / "python"
OURS = {"publish": publish.ours, "consume": consume.ours}
THEIRS = {
    "publish": {
        "FastStream, one by one": ("faststream", "publish"),
        "FastStream, pipelines of 256": ("faststream", "publish, pipelined"),
        "docket, one by one": ("docket", "publish"),
        "docket, add_many": ("docket", "publish, many"),
    },
    "consume": {
        "FastStream, one by one": ("faststream", "consume"),
        "FastStream, 64 workers": ("faststream", "consume, concurrently"),
        "FastStream, batches of 256": ("faststream", "consume, batches"),
        "docket, 64 at once": ("docket", "consume"),
    },
}
"""Work, then what to call it, then which program and which of its ways."""


def run() -> Result:
    """Measure each of their ways beside ours.

    Raises:
        SystemExit: Their environment isn't there, or doesn't work.
    """
    _check()
    rings = {
        "unsigned": KeyRing(),
        "signed": KeyRing.parse(f"bench:{b64encode(os.urandom(32)).decode()}"),
    }
    with server() as place, ExitStack() as stack:
        programs = {
            name: stack.enter_context(_program(name, place)) for name in ("faststream", "docket")
        }
        releases = ", ".join(f"{name} {program.release}" for name, program in programs.items())
        result = Result("rivals", f"{MESSAGES:,} bodies of {len(BODY)} bytes; {releases}")
        for work, ways in THEIRS.items():
            rates = interleave(
                {name: _ours(OURS[work], place, ring) for name, ring in rings.items()}
                | {name: programs[program].measure(way) for name, (program, way) in ways.items()},
                ROUNDS,
            )
            result.figures += [
                compare(
                    f"{work}, {name}; baseline: {their}", rates[name], rates[their], "messages/s"
                )
                for their in ways
                for name in rings
            ]
    return result


class _Program:
    """A rival's, running."""

    def __init__(self, name: str, place: Place, process: subprocess.Popen[str]) -> None:
        self._name = name
        self._place = place
        self._process = process
        self.release = self._answer()

    def measure(self, way: str) -> Callable[[], float]:
        """Return what has it do its work once and returns messages a second."""
        task = {"url": self._place.url, "body": b64encode(BODY).decode(), "messages": MESSAGES}
        line = json.dumps({"way": way, **task})

        def measured() -> float:
            _flush(self._place)
            print(line, file=_pipe(self._process.stdin), flush=True)
            return float(self._answer())

        return measured

    def _answer(self) -> str:
        line = _pipe(self._process.stdout).readline()
        if not line:
            raise RuntimeError(f"the program on {self._name} ended: {self._process.wait()}")
        return str(json.loads(line))


@contextmanager
def _program(name: str, place: Place) -> Iterator[_Program]:
    command = [str(PYTHON), "-m", f"bench.theirs.{name}"]
    pipe = subprocess.PIPE
    with subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True) as process:
        try:
            yield _Program(name, place, process)
        finally:
            process.terminate()


def _ours(
    work: Callable[[Place, KeyRing, int], Awaitable[float]], place: Place, ring: KeyRing
) -> Callable[[], float]:
    def measured() -> float:
        _flush(place)
        options = {"use_uvloop": True}
        return anyio.run(work, place, ring, MESSAGES, backend="asyncio", backend_options=options)

    return measured


def _flush(place: Place) -> None:
    with Redis.from_url(place.url) as client:
        client.flushall()


def _check() -> None:
    """Say in one line what is missing."""
    if not PYTHON.exists():
        raise SystemExit(
            f"rivals: there is no {ENVIRONMENT} in this folder; 'make rivals' makes it"
        )
    command = [str(PYTHON), "-c", "import docket, faststream.redis, hiredis, uvloop"]
    tried = subprocess.run(command, capture_output=True, text=True, check=False)
    if tried.returncode:
        last = (tried.stderr.strip().splitlines() or [f"exit status {tried.returncode}"])[-1]
        raise SystemExit(f"rivals: {ENVIRONMENT} doesn't work: {last}; remove it and 'make rivals'")


def _pipe(stream: IO[str] | None) -> IO[str]:
    assert stream is not None
    return stream
