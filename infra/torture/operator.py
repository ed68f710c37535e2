"""Whoever steers the run: sends a script, window by window, through every outage."""

from __future__ import annotations

import itertools
import random
import threading
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from typing import Any, TypeVar

import orjson
import redis

from infra.torture.orders import FIRST, INITIAL, Order, Script, Way, Window, go_on, hold, stop
from tolaria_bus.leyline import (
    AdaptationCommand,
    BusEnvelope,
    BusMessageType,
    CommandOutcome,
    CommandStatus,
    EmergencySignal,
    MessagePriority,
)
from tolaria_bus.leyline.codec import to_json
from tolaria_bus.oona.sealing import JSON, PAYLOAD, seal
from tolaria_bus.oona.streams import Streams
from tolaria_bus.oona.trust import KeyRing

SOURCE = "operator/torture"
LAST = "stop-last"
"""Id of the STOP that ends a run that is steered freely."""
POLL = 0.02
"""Seconds between two looks at the outcomes, and before a server that is away is tried again."""

T = TypeVar("T")


class Operator(threading.Thread):
    """Steers one run from a thread of its own.

    Args:
        url: The server, which may die at any moment and be started again.
        run: The run's id.
        script: What to send.
        ring: Signs.
        tortured: Send also what only the tortured run gets.
        chance: For pauses between two orders; ``None``: no pauses.
        freely: Hold the run at no step, and end it by a STOP: what takes effect where is then the
            run's to say.

    Attributes:
        sent: Orders by kind.
        entries_sent: Entries by the id of their command.
        over: The last STOP is about to be sent.
        rubbish: How many entries nobody can use.
        gate: Held while the run is told to go on: who takes it keeps a held run held.
        failure: What ended the thread before its time, or empty.
    """

    def __init__(
        self,
        url: str,
        run: str,
        script: Script,
        ring: KeyRing,
        *,
        tortured: bool,
        chance: random.Random | None = None,
        freely: bool = False,
    ) -> None:
        super().__init__(name="operator", daemon=True)
        self.sent: Counter[str] = Counter()
        self.entries_sent: Counter[str] = Counter()
        self.over = False
        self.rubbish = 0
        self.gate = threading.Lock()
        self.failure = ""
        self._client = redis.Redis.from_url(url, socket_timeout=5)
        self._streams = Streams()
        self._run = run
        self._script = script
        self._ring = ring
        self._tortured = tortured
        self._chance = chance
        self._window: Window | None = None
        self._freely = freely
        self._answers: Counter[str] = Counter()
        self._applied: dict[str, int] = {}
        self._read_to = "0"
        self._last_ms = 0
        self._left = threading.Event()
        self._freed = 0

    def begin(self) -> None:
        """Send the first PAUSE, before there is a worker, and start."""
        self._send(hold())
        self.start()

    def leave(self) -> None:
        """End the thread, whatever it waits for."""
        self._left.set()

    @property
    def held(self) -> Window | None:
        """The window that is being sent; while the caller has the gate, it stays so."""
        return self._window

    def run(self) -> None:
        """Send everything."""
        try:
            if self._freely:
                self._steer_freely()
            else:
                self._steer_by_the_step()
        except _Left:
            return
        except Exception as error:  # noqa: BLE001 - told by whoever waits for the run
            self.failure = f"{type(error).__name__}: {error}"

    def outcomes(self) -> list[CommandOutcome]:
        """Every outcome there is, in order."""
        found: Any = self._retry(lambda: self._client.xrange(self._streams.outcomes(self._run)))
        return [_outcome(fields) for _, fields in found]

    def status(self) -> dict[str, Any]:
        """What the worker last said of itself."""
        found: Any = self._retry(lambda: self._client.get(self._streams.status(self._run)))
        status: dict[str, Any] = orjson.loads(found) if found else {}
        return status

    def entries(self, stream: str) -> list[tuple[bytes, dict[bytes, bytes]]]:
        """All entries of a stream."""
        found: Any = self._retry(lambda: self._client.xrange(stream))
        return list(found)

    def pending(self, stream: str) -> int:
        """Entries of a stream that a group has read and not acknowledged.

        But for what the run said itself: its last words may be read by a connection that is being
        closed, and there is nothing to be done about them.
        """

        def count() -> int:
            client, own = self._client, f"run/{self._run}"
            entries: dict[Any, Any] = dict(client.xrange(stream))  # type: ignore[arg-type]
            left = [
                item["message_id"]
                for group in client.xinfo_groups(stream)
                for item in client.xpending_range(stream, group["name"], "-", "+", 1000)
            ]
            return sum(_envelope(entries.get(entry, {})).source != own for entry in left)

        return self._retry(count)

    def all_finished(self) -> bool:
        """Everything that was sent to the run is answered, and none of it is left."""
        self._read()
        return self._all_answered() and not self.pending(self._streams.control(self._run))

    # Steering

    def _steer_by_the_step(self) -> None:
        for window in self._script.windows:
            self._await(lambda window=window: window.held_by in self._applied)  # type: ignore[misc]
            if self._applied[window.held_by] > FIRST and window.held_by == INITIAL:
                raise RuntimeError(f"the first PAUSE was read after step {FIRST}")
            self._window = window
            for order in window.orders:
                if self._tortured or not order.only_tortured:
                    self._send_in_turn(order)
            with self.gate:
                self._window = None
                self._send(go_on(f"go-on-{window.held_by}"))

    def _steer_freely(self) -> None:
        chance = self._chance or random.Random(0)
        numbers = itertools.count(1)
        # On the streams that all runs share it hears nothing from before it was there.
        self._await(lambda: INITIAL in self._applied)
        for window in self._script.windows:
            for order in window.orders:
                self._send(self._soon(order, chance))
                self._pause(chance.uniform(0.0, 0.2))
                if chance.random() < 0.1:
                    self._send(hold(f"hold-free-{next(numbers)}"))
                if chance.random() < 0.5:
                    self._send(go_on(f"go-on-{next(numbers)}"))
        self._send(go_on("go-on-last"))
        # Both at once: what frees a run meanwhile has to be answered too, for a STOP goes first.
        self._await(lambda: self._all_answered() and self.status().get("deferred") == [])
        self.over = True
        self._send(stop(LAST))

    def _soon(self, order: Order, chance: random.Random) -> Order:
        """The order with a step not far from where the run is."""
        if order.kind == "refused" or not isinstance(order.message, AdaptationCommand):
            return order
        if "at_step" not in order.message.annotations:
            return order
        command = AdaptationCommand()
        command.CopyFrom(order.message)
        step = int(self.status().get("step", 0)) + chance.randint(0, 150)
        command.annotations["at_step"] = str(step)
        if chance.random() < 0.5:
            command.annotations["late_ok"] = "true"
        return replace(order, message=command)

    # Sending

    def _send_in_turn(self, order: Order) -> None:
        if order.alone:
            self._await(self._all_answered)
        self._send(order)
        if order.alone:
            self._await(self._all_answered)
        if self._chance is not None and self._chance.random() < 0.3:
            self._pause(self._chance.uniform(0.0, 0.2))

    def _send(self, order: Order) -> None:
        self.sent[order.kind] += 1
        if order.way is Way.RUBBISH:
            self.rubbish += 1
            self._append(self._streams.control(self._run), {b"payload": b"rubbish"})
            return
        message = order.message
        assert message is not None
        if isinstance(message, EmergencySignal):
            self.entries_sent[f"signal:{message.attributes['signal_id']}"] += 1
            self._signal(message)
            return
        self.entries_sent[message.command_id] += 1
        if order.way is Way.HAND:
            text = to_json(message)
            self._append(self._streams.control(self._run), {JSON: text.encode()})
            return
        fleet = order.way is Way.FLEET
        stream = self._streams.fleet_control if fleet else self._streams.control(self._run)
        self._append(stream, self._sealed(message, stream))

    def _sealed(
        self, message: AdaptationCommand | EmergencySignal, stream: str
    ) -> dict[bytes, bytes]:
        return seal(message, stream=stream, source=SOURCE, ring=self._ring)

    def _append(self, stream: str, fields: dict[bytes, bytes]) -> None:
        # An id of our own, so that an entry whose reply was lost isn't added a second time.
        self._last_ms = max(time.time_ns() // 1_000_000, self._last_ms + 1)
        entry_id = f"{self._last_ms}-0"

        def add() -> None:
            try:
                self._client.xadd(stream, fields, id=entry_id)  # type: ignore[arg-type]
            except redis.ResponseError as error:
                if "equal or smaller" not in str(error):
                    raise

        self._retry(add)

    def _signal(self, signal: EmergencySignal) -> None:
        # Others write to that stream as well: looked up instead, before it is sent again.
        stream = self._streams.emergency
        message_id = signal.attributes["signal_id"]
        fields = seal(
            signal,
            stream=stream,
            source=SOURCE,
            ring=self._ring,
            priority=MessagePriority.MESSAGE_PRIORITY_CRITICAL,
            message_id=message_id,
        )

        def add() -> None:
            there: Any = self._client.xrange(stream)
            if not any(_envelope(found).message_id == message_id for _, found in there):
                self._client.xadd(stream, fields)  # type: ignore[arg-type]

        self._retry(add)

    # Waiting

    def _all_answered(self) -> bool:
        return all(self._answers[name] >= count for name, count in self.entries_sent.items())

    def _await(self, there: Callable[[], bool]) -> None:
        patience = time.monotonic() + 1.0
        while not there():
            self._read()
            if not there():
                self._pause(POLL)
            if time.monotonic() > patience:
                patience += 1.0
                self._free()

    def _free(self) -> None:
        """A run that has halted by itself, and says so, is told to go on: nobody else would."""
        mode = self.status().get("mode")
        if self._freely and mode in {"paused", "halted"}:
            self._send(go_on(f"free-{time.monotonic_ns()}"))
        if self._freely or self._window is not None or mode != "halted":
            return
        halts = {
            signal.reason
            for _, fields in self.entries(self._streams.emergency)
            if (signal := own_signal(fields, self._run)) is not None
            and signal.reason.endswith("didn't help")
        }
        if len(halts) > self._freed:
            self._freed = len(halts)
            self._send(go_on(f"free-{self._freed}"))

    def _read(self) -> None:
        stream = self._streams.outcomes(self._run)
        found: Any = self._retry(lambda: self._client.xread({stream: self._read_to}))
        for _, entries in found or ():
            for entry_id, fields in entries:
                self._read_to = entry_id
                outcome = _outcome(fields)
                self._answers[outcome.command_id] += 1
                if outcome.status == CommandStatus.COMMAND_STATUS_APPLIED:
                    self._applied.setdefault(outcome.command_id, outcome.step)

    def _pause(self, seconds: float) -> None:
        if self._left.wait(seconds):
            raise _Left

    def _retry(self, work: Callable[[], T]) -> T:
        while True:
            try:
                return work()
            except (redis.ConnectionError, redis.TimeoutError, OSError):
                self._pause(POLL)


class _Left(Exception):
    """The thread is to end."""


def own_signal(fields: dict[bytes, bytes], run: str) -> EmergencySignal | None:
    """The emergency signal that an entry holds, if the run itself has sent one there."""
    envelope = _envelope(fields)
    if envelope.message_type != BusMessageType.BUS_MESSAGE_TYPE_EMERGENCY_SIGNAL:
        return None
    signal = EmergencySignal.FromString(envelope.payload)
    return signal if signal.run_id == run else None


def _outcome(fields: dict[bytes, bytes]) -> CommandOutcome:
    return CommandOutcome.FromString(_envelope(fields).payload)


def _envelope(fields: dict[bytes, bytes]) -> BusEnvelope:
    return BusEnvelope.FromString(fields.get(PAYLOAD, b""))
