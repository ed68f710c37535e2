"""What must hold in the end, looked for from outside: streams, journal, checkpoints, summary."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass
from typing import Any

from infra.torture.operator import Operator, own_signal
from infra.torture.orders import INITIAL, TRAPPED
from infra.torture.run import Run
from tolaria_bus.leyline import (
    BusEnvelope,
    BusMessageType,
    CommandOutcome,
    CommandStatus,
    EmergencyLevel,
    TelemetryPacket,
)
from tolaria_bus.leyline.codec import short_name
from tolaria_bus.oona.sealing import PAYLOAD
from tolaria_bus.oona.spool import Spool
from tolaria_bus.oona.streams import Streams
from tolaria_bus.safety.emergency import ROLLBACK_FAILED
from tolaria_bus.tolaria.control.outcomes import FATAL
from tolaria_bus.tolaria.recovery.checkpoints import CheckpointCorrupt, CheckpointStore
from tolaria_bus.tolaria.recovery.journal import read_records
from tolaria_bus.tolaria.recovery.ledger import ID_CONFLICT
from tolaria_bus.tolaria.recovery.targets import ACCURACY

SAME = ("weights_sha256", "steps", "epochs", "timeline", "loss", "accuracy")
"""Of two summaries of the same script."""
STREAMS = Streams()
DEFERRED = CommandStatus.COMMAND_STATUS_DEFERRED
REPEATED = frozenset({"duplicate", ID_CONFLICT})
"""Codes of the answers to further entries with a command's id."""
FINAL = frozenset(
    {
        CommandStatus.COMMAND_STATUS_APPLIED,
        CommandStatus.COMMAND_STATUS_REJECTED,
        CommandStatus.COMMAND_STATUS_EXPIRED,
    }
)


@dataclass(frozen=True)
class Finished:
    """A run that has come to its end: itself, who steered it, its summary."""

    run: Run
    operator: Operator
    summary: dict[str, Any]


def complaints(tortured: Finished, whole: Finished | None) -> list[str]:
    """What is wrong, a line each; none if everything is as it must be.

    Args:
        tortured: The run that was killed.
        whole: One with the same script that was not; ``None`` if it was steered freely, so that no
            other run has to come to the same.
    """
    return [
        *([] if whole is None else _differences(tortured, whole)),
        *_unanswered(tortured),
        *_repeated_outcomes(tortured),
        *_left_entries(tortured),
        *_lost_alerts(tortured),
        *_wrong_journal(tortured),
        *_bad_files(tortured),
    ]


def _differences(tortured: Finished, whole: Finished) -> Iterator[str]:
    yield from _other_ends(tortured, whole)
    yield from _other_outcomes(tortured, whole)
    yield from _other_signals(tortured, whole)
    yield from _left_waiting(tortured)


def _left_waiting(tortured: Finished) -> Iterator[str]:
    for deferred in tortured.run.ledger().deferred():
        yield f"{deferred.command_id} still waits for step {deferred.at_step}"


def _unanswered(tortured: Finished) -> Iterator[str]:
    """Each command has one answer that counts; further entries with its id have one each."""
    answers: Counter[str] = Counter()
    repetitions: Counter[str] = Counter()
    for outcome in tortured.operator.outcomes():
        if outcome.code in REPEATED:
            repetitions[outcome.command_id] += 1
        elif outcome.status in FINAL:
            answers[outcome.command_id] += 1
    ledger = tortured.run.ledger()
    for command_id, entries in tortured.operator.entries_sent.items():
        expected = 1 if ledger.waiting(command_id) is None else 0
        if answers[command_id] != expected:
            yield f"{command_id} was answered {answers[command_id]} times for good"
        if repetitions[command_id] != entries - 1:
            yield f"{command_id} was sent {entries} times, {repetitions[command_id]} found repeated"


def _other_ends(tortured: Finished, whole: Finished) -> Iterator[str]:
    for name in SAME:
        found, expected = tortured.summary[name], whole.summary[name]
        if found != expected:
            yield f"{name} is {found}, in the run that was never killed {expected}"


def _other_outcomes(tortured: Finished, whole: Finished) -> Iterator[str]:
    found = Counter(map(_told, tortured.operator.outcomes()))
    expected = Counter(map(_told, whole.operator.outcomes()))
    for name in {told[0] for told in found if told[0].startswith(TRAPPED)}:
        mine = {told[1:3] for told in found if told[0] == name} - {("DEFERRED", "deferred")}
        if mine != {("REJECTED", "fatal")}:
            yield f"{name} kills its process, and was answered {sorted(mine)}"
    for told in sorted((found - expected).keys()):
        if not told[0].startswith(TRAPPED):
            yield f"an outcome too many: {' '.join(told)}"
    for told in sorted((expected - found).keys()):
        yield f"an outcome is missing: {' '.join(told)}"


def _told(outcome: CommandOutcome) -> tuple[str, ...]:
    """What must be the same.

    Where a command was put off, or found repeated, depends on when it came: of two streams neither
    is read before the other.
    """
    status = short_name(CommandStatus, outcome.status)
    on_arrival = outcome.status == DEFERRED or outcome.code in REPEATED
    loose = on_arrival or outcome.command_id.endswith(INITIAL)
    where = "" if loose else f"step {outcome.step} timeline {outcome.timeline}"
    return outcome.command_id, status, outcome.code, where


def _repeated_outcomes(tortured: Finished) -> Iterator[str]:
    ids = Counter(_envelope(fields).message_id for fields in _fields(tortured, _outcomes(tortured)))
    for message_id, count in ids.items():
        if count > 1:
            yield f"outcome {message_id} is on its stream {count} times"


def _left_entries(tortured: Finished) -> Iterator[str]:
    control = STREAMS.control(tortured.run.name)
    if left := len(tortured.operator.entries(control)):
        yield f"{left} entries are left on {control}"
    for stream in (control, STREAMS.fleet_control, STREAMS.emergency):
        if pending := tortured.operator.pending(stream):
            yield f"{pending} entries of {stream} were never finished"
    dead = len(tortured.operator.entries(STREAMS.dead(tortured.run.name)))
    traps = _given_up(tortured)
    if dead != tortured.operator.rubbish + traps:
        yield f"{dead} dead letters for {tortured.operator.rubbish} of rubbish and {traps} given up"


def _given_up(tortured: Finished) -> int:
    """Commands given up: where it is steered freely, one may have been refused before."""
    return sum(outcome.code == FATAL for outcome in tortured.operator.outcomes())


def _lost_alerts(tortured: Finished) -> Iterator[str]:
    there: Counter[str] = Counter()
    folded: set[str] = set()
    names: Counter[str] = Counter()
    for fields in _fields(tortured, STREAMS.emergency):
        envelope = _envelope(fields)
        there[envelope.message_id] += 1
        if envelope.message_type == BusMessageType.BUS_MESSAGE_TYPE_TELEMETRY:
            packet = TelemetryPacket.FromString(envelope.payload)
            name = ",".join(event.event_id for event in packet.events)
            names[name] += max(1, packet.folded)
            if packet.folded:
                folded.add(name)
    for line in _said(tortured.run):
        message_id, _, name = line.partition(" ")
        if message_id not in there and name not in folded:
            yield f"alert {message_id} ({name}) was queued and is not on the emergency stream"
    for message_id, count in there.items():
        if count > 1:
            yield f"alert {message_id} is on the emergency stream {count} times"
    for record in read_records(tortured.run.folder):
        if record.HasField("cut") and record.cut.cause != "command":
            cause = record.cut.cause
            names["accuracy_collapsed" if cause == ACCURACY else f"loss_{cause}"] -= 1
    names["command_given_up"] -= _given_up(tortured)
    for name, left in names.items():
        if left < 0:
            yield f"{-left} alerts {name} are missing, by what the journal says"


def _other_signals(tortured: Finished, whole: Finished) -> Iterator[str]:
    found, expected = _signals(tortured), _signals(whole)
    for told, count in (expected - found).items():
        yield f"a signal was sent {count} times too seldom: {told}"
    for told, count in (found - expected).items():
        yield f"a signal was sent {count} times too often: {told}"


def _signals(finished: Finished) -> Counter[str]:
    """The emergency signals of a run's own."""
    found: Counter[str] = Counter()
    for fields in _fields(finished, STREAMS.emergency):
        signal = own_signal(fields, finished.run.name)
        # A full disk, say, is a cause in the one run and not in the other.
        if signal is not None and signal.attributes["cause"] in ("", ROLLBACK_FAILED):
            found[f"{short_name(EmergencyLevel, signal.level)}: {signal.reason}"] += 1
    return found


def _said(run: Run) -> list[str]:
    lines = run.said.read_text().split("\n") if run.said.exists() else []
    # A line is written at once, or not at all.
    return [line for line in lines if line]


def _wrong_journal(tortured: Finished) -> Iterator[str]:
    applied: Counter[str] = Counter()
    for record in read_records(tortured.run.folder):
        if record.HasField("result"):
            outcome = record.result.outcome
            if outcome.status == CommandStatus.COMMAND_STATUS_APPLIED:
                applied[outcome.command_id] += 1
    for command_id, count in applied.items():
        if count > 1:
            yield f"the journal says {count} times that {command_id} was applied"
    ledger = tortured.run.ledger()
    for intent in ledger.unfinished():
        yield f"{intent.command_id} was begun and never came to a result"


def _bad_files(tortured: Finished) -> Iterator[str]:
    with closing(Spool(tortured.run.folder / "spool")) as spool:
        if len(spool):
            yield f"{len(spool)} packets are left in the spool"
        if spool.damaged:
            yield f"{spool.damaged} damaged places are in the spool"
    store = CheckpointStore(tortured.run.folder / "checkpoints")
    for item in store.list():
        try:
            store.load(item.name)
        except CheckpointCorrupt as error:
            yield str(error)


def _outcomes(finished: Finished) -> str:
    return STREAMS.outcomes(finished.run.name)


def _fields(finished: Finished, stream: str) -> list[dict[bytes, bytes]]:
    return [fields for _, fields in finished.operator.entries(stream)]


def _envelope(fields: dict[bytes, bytes]) -> BusEnvelope:
    return BusEnvelope.FromString(fields.get(PAYLOAD, b""))
