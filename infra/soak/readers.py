"""Whoever follows the streams: plain redis-py, through every outage, from first to last entry."""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import redis

from infra.soak.book import Book
from infra.soak.causes import Alert, Causes
from infra.soak.house import RUNS, House
from infra.soak.moments import Moments
from infra.soak.post import AWAY, PAUSE
from tolaria_bus.leyline import CommandOutcome, EmergencySignal, TelemetryPacket
from tolaria_bus.oona.opening import Opened, Opener, Refused
from tolaria_bus.oona.streams import Streams

BLOCK = 500  # milliseconds
STREAMS = Streams()

Take = Callable[[str, str, Opened], None]


class Follower(threading.Thread):
    """Reads some streams, each from its beginning.

    Args:
        url: The server.
        streams: Their keys.
        opener: Verifies.
        take: Gets each entry that is genuine: the stream, the entry's id, what it holds.

    Attributes:
        refused: What was not genuine, by stream and entry id: why.
        read: Entries.
        failure: What ended the thread before its time, or empty.
    """

    def __init__(self, url: str, streams: Sequence[str], opener: Opener, take: Take) -> None:
        super().__init__(name=f"follower of {streams[0]}", daemon=True)
        self.refused: dict[tuple[str, str], str] = {}
        self.read = 0
        self.failure = ""
        self._client = redis.Redis.from_url(url, socket_timeout=10)
        self._cursors: dict[str, str] = dict.fromkeys(streams, "0")
        self._opener = opener
        self._take = take
        self._leaving = threading.Event()

    def run(self) -> None:
        """Read until nothing more comes after :meth:`leave`."""
        try:
            while self._round() or not self._leaving.is_set():
                pass
        except Exception as error:  # noqa: BLE001 - told by the verdict
            self.failure = f"{type(error).__name__}: {error}"

    def leave(self) -> None:
        """Read what there is, and end."""
        self._leaving.set()
        self.join()
        self._client.close()

    def _round(self) -> bool:
        try:
            found: Any = self._client.xread(self._cursors, count=500, block=BLOCK)  # type: ignore[arg-type]
        except AWAY:
            time.sleep(PAUSE)
            return True
        for key, entries in found or ():
            stream = key.decode()
            for name, fields in entries:
                entry_id = name.decode()
                self._cursors[stream] = entry_id
                self.read += 1
                try:
                    opened = self._opener.open(stream, entry_id, fields)
                except Refused as refused:
                    self.refused[stream, entry_id] = str(refused)
                else:
                    self._take(stream, entry_id, opened)
        return bool(found)


@dataclass
class Heard:
    """What the readers have read.

    Attributes:
        high: How often each message was on the emergency stream, by its id; ours left out.
        signals: Signals by those who sent them: origin, run and reason, a message id once.
        own: Ids of our own signals.
        packets: Of telemetry, by run.
        events: Of telemetry, by name.
    """

    high: Counter[str] = field(default_factory=Counter)
    signals: list[tuple[str, str, str]] = field(default_factory=list)
    own: dict[str, float] = field(default_factory=dict)
    packets: Counter[str] = field(default_factory=Counter)
    events: Counter[str] = field(default_factory=Counter)


class Readers:
    """All followers.

    Args:
        house: Has the server.
        book: Gets outcomes.
        causes: Gets alerts.
        moments: Gets how long it took.
    """

    def __init__(self, house: House, book: Book, causes: Causes, moments: Moments) -> None:
        self.heard = Heard()
        self._book, self._causes, self._moments = book, causes, moments
        opener = Opener(house.ring, None)
        self._runs = {STREAMS.outcomes(run): run for run in RUNS}
        self._runs |= {STREAMS.telemetry(run): run for run in RUNS}
        self.followers = [
            Follower(house.url, [STREAMS.outcomes(run) for run in RUNS], opener, self._outcome),
            Follower(house.url, [STREAMS.emergency], opener, self._emergency),
            Follower(house.url, [STREAMS.telemetry(run) for run in RUNS], opener, self._telemetry),
        ]

    def start(self) -> None:
        """Begin."""
        for follower in self.followers:
            follower.start()

    def leave(self) -> None:
        """End, with everything read."""
        for follower in self.followers:
            follower.leave()

    def _outcome(self, stream: str, _: str, opened: Opened) -> None:
        outcome = opened.message
        assert isinstance(outcome, CommandOutcome)
        found = self._book.heard(self._runs[stream], outcome, opened.message_id)
        if found is not None:
            what = "signal → outcome" if found.signal else "command → outcome"
            self._moments.took(what, found.at, max(found.at, found.heard))

    def _emergency(self, _: str, __: str, opened: Opened) -> None:
        now, message, heard = time.monotonic(), opened.message, self.heard
        if isinstance(message, EmergencySignal):
            sent = heard.own.get(opened.message_id)
            if sent is not None:
                self._moments.took("signal → its reader", sent, now)
                return
            heard.signals.append((message.origin, message.run_id, message.reason))
        heard.high[opened.message_id] += 1
        if not isinstance(message, TelemetryPacket):
            return
        for event in message.events:
            run = message.training_run_id
            attributes = dict(event.attributes)
            self._causes.saw(Alert(event.event_id, run, attributes, now, message.folded))

    def _telemetry(self, stream: str, _: str, opened: Opened) -> None:
        packet = opened.message
        if isinstance(packet, TelemetryPacket):
            self.heard.packets[self._runs[stream]] += 1
            for event in packet.events:
                self.heard.events[event.event_id] += 1
