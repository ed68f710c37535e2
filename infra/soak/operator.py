"""Whoever steers the fleet: sends orders at a steady pace, lets nothing stand still for long."""

from __future__ import annotations

import heapq
import itertools
import random
import threading
import time
from collections.abc import Callable
from typing import Any

import orjson
import redis

from infra.soak.book import Book
from infra.soak.house import RUNS, House
from infra.soak.orders import Order, Writer
from infra.soak.post import AWAY, Fields, Post
from infra.soak.readers import STREAMS, Heard
from tolaria_bus.leyline import AdaptationCommand, EmergencyLevel, EmergencySignal, MessagePriority
from tolaria_bus.oona.sealing import seal
from tolaria_bus.safety.emergency_signal import SIGNAL_PREFIX, checksum

SOURCE = "operator/soak"
HELD = 8.0
"""Seconds that a run may stand still before it is told to go on."""
LOOK = 2.0  # seconds between two looks at that
REMEMBERED = 40
"""Of so many orders that were sent last one is sent again now and then."""
LEVELS = ("NOTICE", "ELEVATED", "HALT")


class Operator(threading.Thread):
    """A thread of its own.

    Args:
        house: Has the keys.
        post: Sends.
        book: Remembers.
        heard: Is told of signals that are ours.
        chance: Decides.
        pace: Orders a second, on the average.

    Attributes:
        failure: What ended the thread before its time, or empty.
    """

    def __init__(
        self,
        house: House,
        post: Post,
        book: Book,
        heard: Heard,
        chance: random.Random,
        pace: float,
    ) -> None:
        super().__init__(name="operator", daemon=True)
        self.failure = ""
        self._house, self._post, self._book, self._heard = house, post, book, heard
        self._chance, self._pace = chance, pace
        self.writers = {run: Writer(run, random.Random(chance.random())) for run in RUNS}
        self._client = redis.Redis.from_url(house.url, socket_timeout=5)
        self._later: list[tuple[float, int, str, Order]] = []
        self._numbers = itertools.count(1)
        self._sent: dict[str, list[Order]] = {run: [] for run in RUNS}
        self._held_since: dict[str, float] = {}
        self._steps = dict.fromkeys(RUNS, 0)
        self._left = threading.Event()
        self._quiet = threading.Event()

    def run(self) -> None:
        """Send until told to leave."""
        try:
            looked = 0.0
            while not self._left.wait(self._chance.expovariate(self._pace)):
                now = time.monotonic()
                if now - looked > LOOK:
                    looked = now
                    self._look_after_held_runs()
                while self._later and self._later[0][0] <= now:
                    _, _, run, order = heapq.heappop(self._later)
                    self._send(run, order)
                if not self._quiet.is_set():
                    self._one()
        except Exception as error:  # noqa: BLE001 - told by the verdict
            self.failure = f"{type(error).__name__}: {error}"

    def be_quiet(self) -> None:
        """Send nothing new; go on to free what is held."""
        self._quiet.set()

    def leave(self) -> None:
        """End."""
        self._left.set()
        self.join()
        self._client.close()

    def command(self, run: str, order: Order, *, times: int = 1) -> None:
        """Send an order to a run, as often as that: further ones are repetitions."""
        stream = STREAMS.control(run)
        for _ in range(times):
            self._book.about_to_send(run, order.command.command_id, order.kind, _reason(order))
        self._post.send_many(stream, [self._sealed(order.command, stream)] * times)
        self._book.confirmed(run, order.command.command_id)

    # What to send

    def _one(self) -> None:
        chance = self._chance.random()
        run = self._chance.choice(RUNS)
        if chance < 0.03:
            self._signal(run)
        elif chance < 0.05:
            self._fleet()
        elif chance < 0.11 and self._sent[run]:
            again = self._chance.choice(self._sent[run])
            self.command(run, Order("sent again", again.command))
        elif chance < 0.13 and self._sent[run]:
            other = AdaptationCommand()
            other.CopyFrom(self._chance.choice(self._sent[run]).command)
            other.issued_by = "somebody else"
            self.command(run, Order("another's id", other))
        else:
            self._send(run, self.writers[run].any(self._steps[run]))

    def _send(self, run: str, order: Order) -> None:
        self.command(run, order)
        if order.kind != "resume":
            self._sent[run] = [*self._sent[run][1 - REMEMBERED :], order]
        if order.undo is not None:
            self._do_later(run, order.undo)

    def _do_later(self, run: str, order: Order) -> None:
        when = time.monotonic() + self._chance.uniform(0.5, 3.0)
        heapq.heappush(self._later, (when, next(self._numbers), run, order))

    def _fleet(self) -> None:
        order = self.writers[self._chance.choice(RUNS)].rate()
        stream, name = STREAMS.fleet_control, order.command.command_id
        for run in RUNS:
            self._book.about_to_send(run, name, "to the fleet")
        self._post.send(stream, self._sealed(order.command, stream))
        for run in RUNS:
            self._book.confirmed(run, name)

    def _signal(self, run: str) -> None:
        level = self._chance.choice(LEVELS)
        everybody = self._chance.random() < 0.4
        signal = EmergencySignal(
            version=1,
            level=EmergencyLevel.Value(f"EMERGENCY_LEVEL_{level}"),
            reason="a drill",
            origin=SOURCE,
            run_id="" if everybody else run,
        )
        signal.triggered_at.FromNanoseconds(time.time_ns())
        signal_id = f"signal-{next(self._numbers)}"
        signal.attributes.update(scope="all" if everybody else "run", signal_id=signal_id)
        signal.payload_checksum = checksum(signal)
        runs = RUNS if everybody else (run,)
        for name in runs:
            self._book.about_to_send(name, f"{SIGNAL_PREFIX}{signal_id}", f"signal {level}")
        self._heard.own[signal_id] = time.monotonic()
        self.emergency(signal, signal_id)
        for name in runs:
            self._book.confirmed(name, f"{SIGNAL_PREFIX}{signal_id}")
            if level == "HALT":
                self._do_later(name, self.writers[name].resume())

    def emergency(self, signal: EmergencySignal, signal_id: str) -> None:
        """Put a signal on the emergency stream."""
        stream = STREAMS.emergency

        def fields() -> Fields:
            return seal(
                signal,
                stream=stream,
                source=SOURCE,
                ring=self._house.ring,
                priority=MessagePriority.MESSAGE_PRIORITY_CRITICAL,
                message_id=signal_id,
            )

        self._post.send(stream, fields)

    def _sealed(self, command: AdaptationCommand, stream: str) -> Callable[[], Fields]:
        return lambda: seal(command, stream=stream, source=SOURCE, ring=self._house.ring)

    def _look_after_held_runs(self) -> None:
        """Tamiyo may have paused one, a RESUME may have come too early: nobody else would."""
        for run in RUNS:
            try:
                found: Any = self._client.get(STREAMS.status(run))
            except AWAY:
                return
            status = orjson.loads(found) if found else {}
            self._steps[run] = int(status.get("step", 0))
            if status.get("mode") not in {"paused", "halted"}:
                self._held_since.pop(run, None)
            elif time.monotonic() - self._held_since.setdefault(run, time.monotonic()) > HELD:
                del self._held_since[run]
                self._send(run, self.writers[run].resume())


def _reason(order: Order) -> str:
    return order.command.annotations["reason"] if order.kind == "emergency" else ""
