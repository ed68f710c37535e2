"""What must hold: some of it looked at all the time, the rest at the end, from outside."""

from __future__ import annotations

import re
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass, field
from typing import Any

import orjson

from infra.soak.book import APPLIED, ROLLED_BACK, Book
from infra.soak.causes import Causes
from infra.soak.house import RUNS, House
from infra.soak.readers import STREAMS, Readers
from infra.soak.watch import Watch
from tolaria_bus.leyline import DeadLetter
from tolaria_bus.oona.opening import Opener
from tolaria_bus.oona.spool import Spool
from tolaria_bus.oona.streams import dead_letters_of
from tolaria_bus.tolaria.recovery.checkpoints import CheckpointCorrupt, CheckpointStore
from tolaria_bus.tolaria.recovery.journal import read_records
from tolaria_bus.tolaria.recovery.ledger import CommandLedger

ANSWERED = "every command is answered, once, and further entries with its id as repetitions"
ONE_EFFECT = "one effect a command, by the journals; what a rollback undid is told, once"
OUTCOMES_ONCE = "no outcome is on its stream twice"
ALERTS = "every alert that has a known cause is on the emergency stream"
CAUSES = "nothing dies, hangs or fails but what was made to"
OF_A_FAULT = frozenset(
    {
        "worker_died",
        "worker_hung",
        "worker_frozen",
        "worker_killed",
        "worker_given_up",
        "training_failed",
        "command_given_up",
        "judging_failed",
        "checkpoint_failed",
        "journal_unwritable",
    }
)
"""Alerts that need a cause of ours."""
HIGH_ONCE = "no alert and no signal is on the emergency stream twice"
LOGGED = "what Weatherlight's log says was told is on the emergency stream"
SIGNALS = "each emergency that a run announced is on the emergency stream, once"
LETTERS = "dead letters are those of what was hostile, each with its reason"
FINISHED = "nothing is left: control streams, pending lists, spools"
STEPS = "every run gets on, after each fault"
FLAT = "memory and open files stay flat"
GENUINE = "everything that was read is signed and can be used"
ORDER = "all processes end in good order; checkpoints are sound"


@dataclass
class Invariants:
    """What must hold, and what was found against it."""

    broken: dict[str, list[str]] = field(
        default_factory=lambda: {
            name: []
            for name in (
                ANSWERED, ONE_EFFECT, OUTCOMES_ONCE, ALERTS, CAUSES, HIGH_ONCE, LOGGED, SIGNALS,
                LETTERS, FINISHED, STEPS, FLAT, GENUINE, ORDER,
            )
        }
    )  # fmt: skip

    def complain(self, name: str, *lines: str) -> None:
        """Something does not hold."""
        self.broken[name] += lines

    @property
    def hold(self) -> bool:
        """All of them."""
        return not any(self.broken.values())


def look(book: Book, causes: Causes, patience: float) -> Iterator[tuple[str, str]]:
    """What has been waited for too long by now; each is told once."""
    now = time.monotonic()
    for name, sent in book.waiting():
        if now - sent.at > patience and not sent.late:
            sent.late = True
            yield ANSWERED, _waits(name, sent.run, sent.kind, now - sent.at)
    for item in causes.owed():
        if now - item.since > patience + item.grace and not item.late:
            item.late = True
            yield ALERTS, f"{item} is not there after {now - item.since:.0f} s"


def answers(book: Book) -> Iterator[tuple[str, str]]:
    """At the end: is each command answered as it should be?"""
    for (run, name), sent in book.sent.items():
        if len(sent.finals) != 1:
            codes = ", ".join(outcome.code for outcome in sent.finals)
            yield ANSWERED, f"{run}: {name} ({sent.kind}) has {len(sent.finals)} answers: {codes}"
        if not sent.signal and sent.repeats != sent.entries - 1:
            yield (
                ANSWERED,
                f"{run}: {name} was sent {sent.entries} times, found repeated {sent.repeats} times",
            )
    for (run, message_id), count in book.outcome_ids.items():
        if count > 1:
            yield OUTCOMES_ONCE, f"{run}: outcome {message_id} is there {count} times"


def journals(house: House, book: Book) -> Iterator[tuple[str, str]]:
    """Do the journals say the same as the outcomes?"""
    for run in RUNS:
        applied: Counter[str] = Counter()
        undone: Counter[str] = Counter()
        ledger = CommandLedger()
        for record in read_records(house.folder(run)):
            ledger.note(record)
            if record.HasField("result"):
                outcome = record.result.outcome
                applied[outcome.command_id] += outcome.status == APPLIED
                undone[outcome.command_id] += outcome.status == ROLLED_BACK
        for what, written, told in (
            ("applied", applied, book.applied),
            ("rolled back", undone, book.rolled_back),
        ):
            said = {name: count for (of, name), count in told.items() if of == run}
            for name in {*written, *said}:
                counts = (written[name], said.get(name, 0))
                if counts not in {(0, 0), (1, 1)}:
                    by = f"{counts[0]} times by the journal, {counts[1]} times by its outcomes"
                    yield ONE_EFFECT, f"{run}: {name} was {what} {by}"
        for intent in ledger.unfinished():
            yield ONE_EFFECT, f"{run}: {intent.command_id} was begun and has no result"
        for deferred in ledger.deferred():
            yield ONE_EFFECT, f"{run}: {deferred.command_id} still waits for {deferred.at_step}"


def alerts(house: House, book: Book, causes: Causes, readers: Readers) -> Iterator[tuple[str, str]]:
    """Is everything on the emergency stream, and nothing twice?"""
    for message_id, count in readers.heard.high.items():
        if count > 1:
            yield HIGH_ONCE, f"{message_id} is there {count} times"
    told = Counter[tuple[str, str]]()
    for alert in causes.alerts:
        told[alert.name, alert.run] += max(1, alert.folded)
    logged = Counter[tuple[str, str]]()
    for life in range(1, house.lives["weatherlight"] + 1):
        logged += _logged(house.log("weatherlight", life).read_text(errors="replace"))
    for (name, run), count in logged.items():
        if told[name, run] < count:
            yield LOGGED, f"{name} of {run}: logged {count} times, read {told[name, run]} times"
    announced = Counter(reason for _, _, reason in readers.heard.signals)
    for (run, name), sent in book.sent.items():
        applied = book.applied[run, name] == 1
        if sent.reason and announced[sent.reason] != applied:
            was, there = "applied" if applied else "not applied", announced[sent.reason]
            yield SIGNALS, f"{run}: {name} was {was}, its signal is there {there} times"
    for alert in causes.alerts:
        if alert.name in OF_A_FAULT and not any(item.fits(alert) for item in causes.expected):
            yield CAUSES, f"{alert.name} of {alert.run}: {dict(alert.attributes)}"


def leftovers(house: House, book: Book) -> Iterator[tuple[str, str]]:
    """Is anything left on the server, or in a spool?"""
    client = house.client
    for run in RUNS:
        control = STREAMS.control(run)
        if left := client.xlen(control):
            yield FINISHED, f"{left} entries are left on {control}"
    for stream in (*map(STREAMS.control, RUNS), STREAMS.fleet_control, STREAMS.emergency):
        groups: Any = client.xinfo_groups(stream) if client.exists(stream) else []
        for group in groups:
            if stream != STREAMS.emergency and group["pending"]:
                yield FINISHED, f"{stream}: {group['name'].decode()} has {group['pending']} pending"
    yield from _letters(house, book)
    folders = [house.folder(run) / "spool" for run in RUNS]
    for folder in (*folders, house.home / "runs" / ".weatherlight" / "spool"):
        with closing(Spool(folder)) as spool:
            if len(spool):
                yield FINISHED, f"{len(spool)} packets are left in {folder}"
            if spool.damaged:
                yield FINISHED, f"{spool.damaged} damaged places are in {folder}"


def checkpoints(house: House) -> Iterator[tuple[str, str]]:
    """Can every checkpoint be read?"""
    for run in RUNS:
        store = CheckpointStore(house.folder(run) / "checkpoints")
        for item in store.list():
            try:
                store.load(item.name)
            except CheckpointCorrupt as error:
                yield ORDER, f"{run}: {error}"


def watched(watch: Watch, readers: Readers, book: Book) -> Iterator[tuple[str, str]]:
    """What was seen meanwhile."""
    for line in watch.stuck:
        yield STEPS, line
    for life in watch.lives.values():
        for line in life.complaints():
            yield FLAT, line
    for follower in readers.followers:
        for place, why in follower.refused.items():
            if place not in book.hostile:
                yield GENUINE, f"{place[0]} {place[1]}: {why}"


def _letters(house: House, book: Book) -> Iterator[tuple[str, str]]:
    opener = Opener(house.ring, None)
    found: Counter[tuple[str, str]] = Counter()
    streams = {dead_letters_of(stream) for stream in (STREAMS.fleet_control, STREAMS.emergency)}
    for stream in {*map(STREAMS.dead, RUNS), *streams}:
        entries: Any = house.client.xrange(stream)
        for entry_id, fields in entries:
            letter = opener.open(stream, entry_id.decode(), fields).message
            assert isinstance(letter, DeadLetter)
            place = (letter.stream, letter.entry_id)
            found[place] += 1
            what, reasons = book.hostile.get(place, ("genuine", frozenset[str]()))
            if letter.reason not in reasons or not letter.detail:
                where = f"{what} entry {letter.entry_id} of {letter.stream}"
                yield LETTERS, f"{where}: a letter with {letter.reason}: {letter.detail}"
    for place, (what, _) in book.hostile.items():
        if found[place] != 1:
            yield LETTERS, f"{what} entry {place[1]} of {place[0]} has {found[place]} letters"


def _logged(text: str) -> Counter[tuple[str, str]]:
    """Alerts in a life's log, by name and run."""
    found = []
    for line in text.splitlines():
        if not re.search(r'"level": ?"error"', line):
            continue
        try:
            said = orjson.loads(line)
        except orjson.JSONDecodeError:
            continue
        if said.get("run") is not None:
            found.append((str(said["message"]), str(said["run"])))
    return Counter(found)


def _waits(name: str, run: str, kind: str, seconds: float) -> str:
    return f"{run}: {name} ({kind}) has no answer after {seconds:.0f} s"
