"""Hostile input: rubbish, mutations, forgeries and bombs through a consumer on a real server."""

from __future__ import annotations

import os

import anyio

from bench.harness import Figure, Result, single
from bench.server import server
from tests.oona.onslaught import WARM_UP, WINDOW, Outcome, onslaught
from tolaria_bus.oona.streams import Streams

ENTRIES = 100_000
"""In two passes, with signing on and off."""
SEED = 4
MEBIBYTE = 1 << 20


def run() -> Result:
    """Have all of them read; anything but an end with a reason for each is an error.

    Raises:
        RuntimeError: An entry had no end, or two, or one without a reason.
    """
    result = Result(
        "hostile", f"{ENTRIES:,} hostile entries, of which every one is handled or a dead letter"
    )
    both: dict[str, dict[str, bytes]] = {"signed": {"bench": os.urandom(32)}, "unsigned": {}}
    for name, keys in both.items():
        with server() as place:
            stream = Streams().control(name)
            found = anyio.run(
                onslaught,
                *(place.url, stream, keys, ENTRIES // 2, SEED),
                backend="asyncio",
                backend_options={"use_uvloop": True},
            )
        if found.wrong:
            raise RuntimeError(f"hostile, {name}: {len(found.wrong)} wrong: {found.wrong[:5]}")
        result.figures += _figures(name, found)
    return result


def _figures(name: str, found: Outcome) -> list[Figure]:
    total = sum(found.sent.values())
    reasons = ", ".join(f"{reason} {count:,}" for reason, count in found.dead.most_common())
    return [
        single(f"{name}: entries read and finished", [total / found.seconds], "entries/s"),
        single(f"{name}: longest stall of the event loop", [found.stall * 1e3], "ms"),
        single(
            f"{name}: memory, median of the last {WINDOW:,} entries over that of the first",
            [found.growth / MEBIBYTE],
            "MiB",
            goal="flat",
        ),
        single(
            f"{name}: memory, most at any time over least, after {WARM_UP:,} entries",
            [found.swing / MEBIBYTE],
            "MiB",
        ),
        single(f"{name}: handled", [found.handled], "entries"),
        single(f"{name}: dead letters: {reasons}", [sum(found.dead.values())], "letters"),
    ]
