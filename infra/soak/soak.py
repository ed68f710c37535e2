"""One soak from its beginning to its report."""

from __future__ import annotations

import os
import random
import threading
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from infra.soak import verdict
from infra.soak.book import Book
from infra.soak.causes import Causes
from infra.soak.faults import Faults
from infra.soak.house import RUNS, House, wait_for
from infra.soak.injector import Injector
from infra.soak.moments import Moments
from infra.soak.operator import Operator
from infra.soak.post import Post
from infra.soak.readers import STREAMS, Readers
from infra.soak.report import longest_lives, memory
from infra.soak.verdict import Invariants
from infra.soak.watch import Watch

START = 300.0
"""Seconds that all may take until the first steps: a slow machine imports torch three times."""
LEAVE = 120.0  # seconds, for everybody to end in good order


@dataclass(frozen=True)
class Plan:
    """What is asked for.

    Attributes:
        seconds: With faults.
        seed: Of every choice.
        pace: Orders a second.
        patience: Seconds that an answer, an alert or a step may take, whatever is wrong meanwhile.
        command: How to have the same choices again.
    """

    seconds: float
    seed: int
    pace: float
    patience: float
    command: str


def soak(home: Path, plan: Plan, say: Callable[[str], None]) -> dict[str, Any]:
    """Soak.

    Args:
        home: Folder for everything; a short path.
        plan: What is asked for.
        say: Shows a line.

    Returns:
        The report; ``passed`` says whether everything held.
    """
    begun, load = time.monotonic(), os.getloadavg()
    chance = random.Random(plan.seed)
    moments = Moments()
    book, causes, invariants = Book(), Causes(moments), Invariants()
    with House(home) as house:
        post, readers = Post(house.url), Readers(house, book, causes, moments)
        operator = Operator(
            house, post, book, readers.heard, random.Random(chance.random()), plan.pace
        )
        faults = Faults(house, post, book, causes, operator, random.Random(chance.random()))
        injector = Injector(
            faults, house, causes, moments, random.Random(chance.random()), plan.patience, say
        )
        watch = Watch(house, plan.patience)
        house.start("weatherlight")
        house.start("tamiyo")
        readers.start()
        if not wait_for(lambda: all(map(house.at_work, RUNS)), START):
            raise TimeoutError(f"the fleet doesn't begin to work; see the logs in {home}")
        say(f"all is at work after {time.monotonic() - begun:.1f} s")
        threads: tuple[Operator | Watch, ...] = (operator, watch)
        for thread in threads:
            thread.start()
        with _looking(book, causes, invariants, plan.patience):
            first = time.monotonic()
            injector.inject(first + plan.seconds)
            injecting = time.monotonic() - first
            _come_to_rest(injector, operator, book, causes, plan.patience)
        operator.leave()
        watch.leave()
        _leave(house, invariants)
        readers.leave()
        post.close()
        for ours in (*threads, *readers.followers):
            if ours.failure:
                invariants.complain(verdict.ORDER, f"our {ours.name} ended: {ours.failure}")
        invariants.complain(verdict.STEPS, *injector.stuck)
        _complain(invariants, verdict.look(book, causes, 0.0))
        _complain(invariants, verdict.answers(book))
        _complain(invariants, verdict.journals(house, book))
        _complain(invariants, verdict.alerts(house, book, causes, readers))
        _complain(invariants, verdict.leftovers(house, book))
        _complain(invariants, verdict.checkpoints(house))
        _complain(invariants, verdict.watched(watch, readers, book))
        lives = list(watch.lives.values())
        return {
            "passed": invariants.hold,
            "command": plan.command,
            "seconds": time.monotonic() - begun,
            "injecting": injecting,
            "cores": len(os.sched_getaffinity(0)),
            "load": " → ".join(f"{value:.1f}" for value in (load[0], os.getloadavg()[0])),
            "invariants": invariants.broken,
            "faults": injector.log,
            "sent": book.kinds,
            "outcomes": book.statuses,
            "strangers": book.strangers,
            "alerts": causes.counts(),
            "expected_alerts": len(causes.expected),
            "excused_alerts": sum(item.excused for item in causes.expected),
            "starts": house.lives,
            "runs": [
                [run, watch.steps[run], f"{watch.longest[run]:.1f}", readers.heard.packets[run]]
                for run in RUNS
            ],
            "events": readers.heard.events,
            "latency": moments.table(),
            "memory": memory(lives),
            "lives": longest_lives(lives),
        }


def _come_to_rest(
    injector: Injector, operator: Operator, book: Book, causes: Causes, patience: float
) -> None:
    """No more faults and no more orders; what is owed comes yet."""
    injector.settle()
    operator.be_quiet()
    longest = max([item.grace for item in causes.owed()], default=0.0)
    wait_for(lambda: not book.waiting() and not causes.owed(), patience + longest)


def _leave(house: House, invariants: Invariants) -> None:
    for name in ("tamiyo", "weatherlight"):
        if name == "weatherlight":
            # Tamiyo's last answers too: what a worker has not come to waits for its next start.
            wait_for(
                lambda: not any(house.client.xlen(STREAMS.control(run)) for run in RUNS), LEAVE
            )
        code = house.stop(name, LEAVE)
        if code != 0:
            how = "had to be killed" if code is None else f"ended with {code}"
            invariants.complain(verdict.ORDER, f"{name} {how}")
    for run in RUNS:
        if pid := house.worker(run):
            invariants.complain(verdict.ORDER, f"{run}: process {pid} is still there")


def _complain(invariants: Invariants, found: Iterable[tuple[str, str]]) -> None:
    for name, line in found:
        invariants.complain(name, line)


class _looking:  # noqa: N801 - used as a function
    """Look all the time, in a thread, at what is owed."""

    def __init__(self, book: Book, causes: Causes, invariants: Invariants, patience: float) -> None:
        self._left = threading.Event()

        def look() -> None:
            while not self._left.wait(1.0):
                _complain(invariants, verdict.look(book, causes, patience))

        self._thread = threading.Thread(target=look, name="looking", daemon=True)

    def __enter__(self) -> None:
        self._thread.start()

    def __exit__(self, *_: object) -> None:
        self._left.set()
        self._thread.join()
