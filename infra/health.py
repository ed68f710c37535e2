"""Health check of a container: is the server reached, and, given a run, is its worker alive?

    python health.py [RUN]

The worker rewrites the run's status every second, from the thread that also serves the bus: a
status that is old means that nobody reads commands any more, and so does a loop that reads them and
stands still, of which the status tells. A run that is paused is healthy.
Exit code 0 healthy, 1 not; one line says why. Imports no torch: it runs every few seconds.
"""

from __future__ import annotations

import asyncio
import json
import os
import sys
import time

from redis.exceptions import RedisError

from tolaria_bus.oona.connection import connect
from tolaria_bus.oona.streams import Streams

LATE = 15.0
"""Seconds after which a status, rewritten each second, means that its writer is gone."""
STALLED = 30.0
"""Seconds after which a read loop that hasn't gone round stands still; see oona.metrics."""
REPLY = 3.0
"""Seconds to wait for the server."""


def main() -> int:
    """Check, print one line, return the exit code."""
    run = sys.argv[1] if len(sys.argv) > 1 else ""
    url = os.environ.get("TOLARIA_REDIS_URL", "")
    if not url:
        return _say("TOLARIA_REDIS_URL is not set", healthy=False)
    try:
        status = asyncio.run(_ask(url, run))
    except (RedisError, OSError, ValueError) as error:
        return _say(" ".join(str(error).split()) or type(error).__name__, healthy=False)
    if not run:
        return _say("the server answers", healthy=True)
    if not isinstance(status, bytes):
        return _say(f"run {run} has no status yet", healthy=False)
    told = json.loads(status)
    age = time.time() - float(told["beat"])
    read_age = float(told.get("read_age", 0.0))
    if read_age > STALLED:
        return _say(f"run {run}: no stream was read for {read_age:.0f} s", healthy=False)
    return _say(
        f"run {run}: step {told['step']}, {told['mode']}, status {age:.1f} s old",
        healthy=age < LATE,
    )


async def _ask(url: str, run: str) -> bytes | None:
    """Reach the server; the run's status, if one is named. The engine asks again, and counts."""
    async with asyncio.timeout(REPLY), connect(url, name="tolaria-health") as client:
        await client.ping()
        if not run:
            return None
        streams = Streams(os.environ.get("TOLARIA_PREFIX", "oona"))
        found: bytes | None = await client.get(streams.status(run))
        return found


def _say(line: str, *, healthy: bool) -> int:
    print(line)
    return 0 if healthy else 1


if __name__ == "__main__":
    sys.exit(main())
