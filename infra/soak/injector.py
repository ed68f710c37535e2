"""Takes one fault after the other, waits until all is well again or doesn't, and writes it down."""

from __future__ import annotations

import random
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field

from infra.soak.causes import Causes
from infra.soak.faults import Faults
from infra.soak.house import RUNS, House, wait_for
from infra.soak.moments import Moments

IN_HURRY = 0.25
"""So often the next fault doesn't wait for the recovery from the one before."""
PAUSE = (1.0, 5.0)  # seconds between a recovery and the next fault
QUIET_EVERY = 6
"""After so many faults there is a longer rest: quiet moments are to be timed too."""
REST = 10.0  # seconds


@dataclass
class Injector:
    """Main thread only.

    Attributes:
        faults: What may be done.
        house: To look whether all is well.
        causes: What has to be told before Weatherlight may be killed.
        moments: Gets the spans.
        chance: Decides.
        patience: Seconds until all must be well again.
        say: Shows a line.
        done: How often each was done.
        log: Every fault: seconds since the beginning, name, details, seconds until all was well.
        stuck: Faults after which not all was well in time, a line each.
    """

    faults: Faults
    house: House
    causes: Causes
    moments: Moments
    chance: random.Random
    patience: float
    say: Callable[[str], None]
    done: Counter[str] = field(default_factory=Counter)
    log: list[tuple[float, str, str, float]] = field(default_factory=list)
    stuck: list[str] = field(default_factory=list)

    def inject(self, until: float) -> None:
        """One fault after the other, until a moment of the monotonic clock."""
        begun, deck, count = time.monotonic(), list[Callable[[], str]](), 0
        while time.monotonic() < until:
            if not deck:
                deck = self.faults.deck()
                self.chance.shuffle(deck)
            fault = deck.pop()
            name = fault.__name__.replace("_", " ")
            if "weatherlight" in name:
                # What it has just seen it has to have told; a worker's death, say.
                wait_for(lambda: not self._owed_by_weatherlight(), 30.0)
            self._one(fault, name, begun)
            count += 1
            pause = self.chance.uniform(*PAUSE) + (REST if count % QUIET_EVERY == 0 else 0.0)
            time.sleep(max(0.0, min(pause, until - time.monotonic())))

    def settle(self) -> bool:
        """Wait until every process is at work; whether it came to that in time."""
        return wait_for(self._well, self.patience)

    def _one(self, fault: Callable[[], str], name: str, begun: float) -> None:
        with self.moments.faulty():
            at = time.monotonic()
            what = fault()
            self.done[name] += 1
            hurry = self.chance.random() < IN_HURRY and "weatherlight" not in name
            if not hurry and not self.settle():
                self.stuck.append(f"{self.patience:.0f} s after {name} ({what}): {self._ill()}")
            well = time.monotonic() - at
        self.log.append((at - begun, name, what, well))
        then = "the next one comes at once" if hurry else f"all is well after {well:.1f} s"
        self.say(f"{at - begun:6.1f} s  {name}: {what}; {then}")

    def _owed_by_weatherlight(self) -> bool:
        return any(item.name.startswith("worker_") for item in self.causes.owed())

    def _well(self) -> bool:
        return not self._ill()

    def _ill(self) -> str:
        wrong = [f"{run} isn't at work" for run in RUNS if not self.house.at_work(run)]
        log = self.house.log("weatherlight").read_text(errors="replace")
        watched = sum(log.count(f'"{name}"') for name in ("worker_adopted", "worker_started"))
        if watched < len(RUNS):
            wrong.append("Weatherlight does not watch all yet")
        wrong += [
            f"{name} has ended" for name in ("weatherlight", "tamiyo")
            if self.house.ended(name) is not None
        ]  # fmt: skip
        return ", ".join(wrong)
