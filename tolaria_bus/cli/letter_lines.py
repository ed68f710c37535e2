"""One dead letter as a line, as a page, or as JSON."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, Final

import orjson

from tolaria_bus.cli.describe import describe
from tolaria_bus.cli.render import local_time
from tolaria_bus.cli.style import Part, paint
from tolaria_bus.leyline.codec import to_json
from tolaria_bus.leyline.json_form import plain
from tolaria_bus.oona.letters import Found
from tolaria_bus.oona.resent import REPLAY_OF, REPLAYED_BY, replays
from tolaria_bus.oona.where import types

_LONGEST_DETAIL: Final = 160
_DUMPED: Final = 512
"""Bytes of one field that a page shows; JSON has them all."""
_ROW: Final = 16
_NAME_WIDTH: Final = 11


def line(found: Found, now: float) -> list[Part]:
    """Parts of a line: id, age, reason, where from, what it says, why."""
    parts: list[Part] = [
        (found.entry_id, "name"),
        (f"{age(now - _died(found)):>4}", "dim"),
        (found.reason, "bad"),
    ]
    letter, contents = found.letter, found.contents
    if letter is None or contents is None:
        return [*parts, (found.doubt, "plain")]
    if found.doubt:
        parts.append(("UNVERIFIED", "loud"))
    parts.append((letter.stream, "note"))
    parts.append((f"delivered {letter.deliveries} times" if letter.deliveries > 1 else "", "warn"))
    parts.append((_replayed(found), "warn"))
    parts += what(found)
    detail = letter.detail
    parts.append((f"— {detail[:_LONGEST_DETAIL]}{'…' * (len(detail) > _LONGEST_DETAIL)}", "dim"))
    return parts


def what(found: Found) -> list[Part]:
    """What the message says, as far as it can be read."""
    contents = found.contents
    if contents is None:
        return []
    if contents.message is None:
        return [("(can't be read)", "dim")]
    return describe(contents.message)


def page(found: Found, *, colour: bool) -> Iterator[str]:
    """Lines that tell everything about a letter."""
    for name, value in _told(found):
        if value:
            yield paint([(f"{name:<{_NAME_WIDTH}}", "dim"), (value, "plain")], colour=colour)
    contents = found.contents
    if contents is None:
        return
    if contents.message is not None:
        yield ""
        # Line by line: it is written by whoever could write to the stream.
        for text in to_json(contents.message, indent=True).splitlines():
            indent = len(text) - len(text.lstrip())
            yield " " * indent + paint([(text.lstrip(), "plain")], colour=False)
    for field, content in contents.fields.items():
        yield ""
        title = f"field {_escaped(field)}, {len(content)} bytes"
        yield paint([(title, "name")], colour=colour)
        yield from _dump(content)


def as_json(found: Found, *, whole: bool = False) -> str:
    """One JSON object; ``whole`` has the entry's own fields too."""
    written: dict[str, Any] = {"dead": found.dead, "id": found.entry_id, "reason": found.reason}
    letter, contents = found.letter, found.contents
    if letter is not None and contents is not None:
        told = plain(letter)
        told.pop("fields", None)
        told.pop("reason", None)
        written |= told
        if found.last_ms is not None:
            written["lastMs"] = found.last_ms
        written["source"] = contents.source
        written["commandId"] = contents.command_id
        written["type"] = next(iter(types(contents.message)), None)
        written["message"] = None if contents.message is None else plain(contents.message)
        if contents.problem:
            written["problem"] = contents.problem
        if contents.distrust:
            written["distrust"] = contents.distrust
        if contents.envelope is not None and contents.envelope.attributes:
            written["attributes"] = dict(contents.envelope.attributes)
        if whole:
            written["fields"] = [_field(name, value) for name, value in contents.fields.items()]
    if found.doubt:
        written["doubt"] = found.doubt
    return orjson.dumps(written).decode()


def counts(reasons: Mapping[str, int]) -> str:
    """``signature 12, stale 3``, the most frequent first."""
    ordered = sorted(reasons.items(), key=lambda item: (-item[1], item[0]))
    return ", ".join(f"{reason} {count}" for reason, count in ordered)


def age(seconds: float) -> str:
    """``12s``, ``5m``, ``3h``, ``2d``."""
    whole = max(0, int(seconds))
    for unit, length in (("d", 86_400), ("h", 3_600), ("m", 60)):
        if whole >= length:
            return f"{whole // length}{unit}"
    return f"{whole}s"


def _told(found: Found) -> Iterator[tuple[str, str]]:
    letter, contents = found.letter, found.contents
    yield "letter", f"{found.entry_id} of {found.dead}"
    yield "reason", found.reason
    yield "UNVERIFIED" if letter is not None else "doubt", found.doubt
    if letter is None or contents is None:
        return
    yield "detail", letter.detail
    yield "entry", f"{letter.entry_id} of {letter.stream}"
    yield "given up by", f"group {letter.group}, consumer {letter.consumer}" if letter.group else ""
    yield "deliveries", str(letter.deliveries)
    yield "first seen", _time(letter.first_seen_at.seconds, letter.first_seen_at.nanos)
    yield "dead since", _time(letter.dead_at.seconds, letter.dead_at.nanos)
    if found.last_ms is not None:
        yield "last", local_time(found.last_ms / 1000)
    yield "replayed", _replay_told(found)
    yield "source", contents.source
    yield "type", ", ".join(types(contents.message))
    yield "command id", contents.command_id
    yield "distrust", contents.distrust
    yield "problem", contents.problem
    yield "truncated", "yes: the letter has only a part of the entry" if letter.truncated else ""


def _replayed(found: Found) -> str:
    envelope = found.contents.envelope if found.contents is not None else None
    times = replays(envelope) if envelope is not None else 0
    return f"replayed {times} times" if times else ""


def _replay_told(found: Found) -> str:
    envelope = found.contents.envelope if found.contents is not None else None
    if envelope is None or REPLAY_OF not in envelope.attributes:
        return ""
    by = envelope.attributes.get(REPLAYED_BY, "")
    return f"{replays(envelope)} times, last by {by} from letter {envelope.attributes[REPLAY_OF]}"


def _died(found: Found) -> float:
    if found.letter is not None and found.letter.dead_at.seconds > 0:
        return float(found.letter.dead_at.seconds)
    return int(found.entry_id.partition("-")[0]) / 1000


def _time(seconds: int, nanos: int) -> str:
    return local_time(seconds + nanos / 1e9) if seconds > 0 else ""


def _field(name: bytes, value: bytes) -> dict[str, Any]:
    """As text where it is text; else in hex, as no text could say it."""
    written: dict[str, Any] = {"name": _escaped(name)}
    try:
        written["text"] = value.decode()
    except UnicodeDecodeError:
        written["hex"] = value.hex()
    return written


def _escaped(value: bytes) -> str:
    try:
        return value.decode()
    except UnicodeDecodeError:
        return ascii(value)[2:-1]


def _dump(value: bytes) -> Iterator[str]:
    """Text as itself with escapes; anything else as hex with its letters beside it."""
    shown = value[:_DUMPED]
    try:
        text = value.decode()
    except UnicodeDecodeError:
        text = None
    if text is not None and (text.isprintable() or "\n" in text):
        yield "  " + paint([(text[:_DUMPED], "plain")], colour=False)
    else:
        for start in range(0, len(shown), _ROW):
            row = shown[start : start + _ROW]
            letters = "".join(chr(byte) if 32 <= byte < 127 else "." for byte in row)
            yield f"  {start:04x}  {row.hex(' '):<{3 * _ROW}} {letters}"
    if len(value) > _DUMPED:
        yield f"  … {len(value) - _DUMPED} bytes more; --json has them all"
