"""Where a kill strikes. The run's files are watched from outside; the worker knows nothing."""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from tolaria_bus.leyline import AdaptationCommand, CommandType, JournalRecord
from tolaria_bus.tolaria.recovery.segments import frame_at, segment_path


class Eye:
    """Sees what a worker does to its folder since its life began.

    Args:
        folder: The run's.
    """

    def __init__(self, folder: Path) -> None:
        self._journal = segment_path(folder, 1)
        self._checkpoints = folder / "checkpoints"
        self._seen = self._size()

    def records(self) -> list[JournalRecord]:
        """Journal records that are new since the last call."""
        size = self._size()
        if size <= self._seen:
            # Smaller: a torn tail was cut off.
            self._seen = size
            return []
        with self._journal.open("rb") as file:
            file.seek(self._seen)
            data = file.read(size - self._seen)
        found, offset = [], 0
        while (frame := frame_at(data, offset)) is not None:
            found.append(JournalRecord.FromString(frame.payload))
            offset = frame.end
        self._seen += offset
        return found

    def saving(self) -> bool:
        """A checkpoint is being written or removed."""
        try:
            return any(path.suffix in {".tmp", ".old"} for path in self._checkpoints.iterdir())
        except FileNotFoundError:
            return False

    def _size(self) -> int:
        try:
            return self._journal.stat().st_size
        except FileNotFoundError:
            return 0


Watch = Callable[[list[JournalRecord]], bool]
"""Given the records that are new: is it time?"""


@dataclass(frozen=True)
class Strike:
    """When to strike next.

    Attributes:
        place: For the report.
        due: Asked again and again.
        delay: Seconds from then on.
        patience: Seconds after which it strikes wherever the worker is.
    """

    place: str
    due: Watch
    delay: float
    patience: float = 4.0


def choose(chance: random.Random, eye: Eye) -> Strike:
    """A strike at random: blindly in time, or at something that the worker does."""
    place = chance.choices(
        ("while starting", "in recovery", "at a command", "at a checkpoint", "at a rollback",
         "anywhere"),
        (15, 15, 30, 15, 15, 10),
    )[0]  # fmt: skip
    # A few come at once; the others spread over what the worker does next.
    delay = chance.choice((0.0, 0.0, chance.uniform(0, 0.002), chance.uniform(0, 0.02)))
    if place == "while starting":
        return Strike(place, _at_once, chance.uniform(0.0, 0.2))
    if place == "anywhere":
        return Strike(place, _at_once, chance.uniform(0.2, 1.2))
    if place == "in recovery":
        return Strike(place, _begun, chance.uniform(0.0, 0.05))
    if place == "at a checkpoint":
        return Strike(place, _the_nth(chance.randint(1, 3), lambda _: eye.saving()), delay)
    if place == "at a rollback":
        return Strike(place, _rolls_back, delay)
    return Strike(place, _the_nth(chance.randint(1, 6), lambda records: bool(records)), delay)


def _at_once(_: list[JournalRecord]) -> bool:
    return True


def _begun(records: list[JournalRecord]) -> bool:
    return any(record.HasField("started") for record in records)


def _rolls_back(records: list[JournalRecord]) -> bool:
    return any(
        record.HasField("cut")
        or (
            record.HasField("intent")
            and AdaptationCommand.FromString(record.intent.command).command_type
            == CommandType.COMMAND_ROLLBACK
        )
        for record in records
    )


def _the_nth(number: int, happens: Watch) -> Watch:
    """Is it the nth time that something begins to happen?"""
    left, before = number, False

    def due(records: list[JournalRecord]) -> bool:
        nonlocal left, before
        now = happens(records)
        if now and not before:
            left -= 1
        before = now
        return left <= 0

    return due


def wait_until(moment: float) -> None:
    """Sleep till a moment of the monotonic clock, to a fraction of a millisecond."""
    while (left := moment - time.monotonic()) > 0:
        time.sleep(min(left, 0.01))
