"""One entry of a stream as one line: readable and coloured, or JSON."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final

import orjson
from google.protobuf.message import Message

from tolaria_bus.cli.describe import describe
from tolaria_bus.cli.style import Part, Style, paint
from tolaria_bus.leyline import (
    AdaptationCommand,
    BusMessageType,
    CommandOutcome,
    DeadLetter,
    EmergencySignal,
    FieldReport,
    SystemStatePacket,
    TelemetryPacket,
)
from tolaria_bus.leyline.codec import message_type, short_name
from tolaria_bus.leyline.json_form import plain
from tolaria_bus.oona.streams import run_of

_KIND_WIDTH: Final = len("emergency")
_KIND_STYLES: Final[dict[str, Style]] = {"emergency": "warn", "dead": "bad", "control": "note"}


@dataclass(frozen=True, slots=True)
class Shown:
    """One entry as it was read.

    Attributes:
        stream: The key it came from.
        entry_id: As the server gave it.
        message: What it carries; ``None`` if that can't be read.
        verified: Its signature is good; ``None`` where no keys are set.
        doubt: Why it wasn't believed or can't be read; else empty.
        source: Who sent it, by its own word.
        correlation_id: Of what it answers.
    """

    stream: str
    entry_id: str
    message: Message | None
    verified: bool | None = None
    doubt: str = ""
    source: str = ""
    correlation_id: str = ""


def render_line(shown: Shown, *, colour: bool) -> str:
    """Local time, run and stream, what it says; what isn't verified is marked so."""
    kind = shown.stream.rpartition(":")[2]
    parts: list[Part] = [
        (local_time(happened_at(shown)), "dim"),
        (run_shown(shown), "name"),
        (f"{kind:<{_KIND_WIDTH}}", _KIND_STYLES.get(kind, "dim")),
    ]
    if shown.message is None:
        parts += [("UNREADABLE", "bad"), (shown.doubt, "plain"), (shown.entry_id, "dim")]
    else:
        if shown.verified is False:
            parts.append((f"UNVERIFIED ({shown.doubt})", "bad"))
        parts += describe(shown.message)
    return paint(parts, colour=colour)


def render_json(shown: Shown) -> str:
    """One JSON object without line breaks: ``stream``, ``id``, ``type``, ``message``.

    Where there is something to say also ``source``, ``correlation_id``, ``verified``, ``error``.
    """
    written: dict[str, Any] = {"stream": shown.stream, "id": shown.entry_id}
    if shown.message is None:
        written.update(type=None, message=None, error=shown.doubt)
    else:
        kind = short_name(BusMessageType, message_type(shown.message))
        written.update(type=kind, message=plain(shown.message))
        if shown.doubt:
            written["error"] = shown.doubt
    if shown.source:
        written["source"] = shown.source
    if shown.correlation_id:
        written["correlation_id"] = shown.correlation_id
    if shown.verified is not None:
        written["verified"] = shown.verified
    return orjson.dumps(written).decode()


def run_shown(shown: Shown) -> str:
    """The run that an entry is about; the stream's, else the message's own word; ``-`` if none."""
    message = shown.message
    named = run_of(shown.stream) or ""
    if not named and isinstance(message, TelemetryPacket):
        named = message.training_run_id
    elif not named and isinstance(message, EmergencySignal):
        named = message.run_id
    elif not named and isinstance(message, AdaptationCommand):
        named = "fleet"
    return named or "-"


def happened_at(shown: Shown) -> float:
    """Seconds since the epoch: when it happened by the message's word, else by the entry's id."""
    told = _told_ns(shown.message)
    if told > 0:
        return told / 1e9
    milliseconds = shown.entry_id.partition("-")[0]
    return int(milliseconds) / 1000 if milliseconds.isdecimal() else 0.0


def _told_ns(message: Message | None) -> int:
    match message:
        case TelemetryPacket():
            stamp = message.timestamp
        case EmergencySignal():
            stamp = message.triggered_at
        case CommandOutcome():
            stamp = message.decided_at
        case AdaptationCommand() | FieldReport():
            stamp = message.issued_at
        case DeadLetter():
            stamp = message.dead_at
        case SystemStatePacket():
            return message.timestamp_ns
        case _:
            return 0
    return stamp.seconds * 1_000_000_000 + stamp.nanos


def local_time(seconds: float) -> str:
    """``14:03:07.250`` in local time, with its date in front if that isn't today."""
    try:
        moment = datetime.fromtimestamp(seconds).astimezone()
    except (ValueError, OverflowError, OSError):
        return "(no time)"
    clock = moment.strftime("%H:%M:%S.") + f"{moment.microsecond // 1000:03d}"
    today = datetime.now().astimezone().date()
    return clock if moment.date() == today else f"{moment.date()} {clock}"
