"""The new entry that a dead letter becomes when it is replayed, or the reason why it can't.

What may be signed with our key:

- an entry whose own signature is good for its stream by the keys of now: sealed with a new time and
  nonce, its source kept;
- anything else only where a person says ``resign``, having looked at it: it goes out as that
  person's;
- a message that a person wrote in its place (``message``): it is theirs.

Where signing is off the message goes out as it was. In each case the command id is kept, or the one
derived from the dead entry written down, so that what was done already isn't done again.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import timedelta
from typing import Final, Literal

import orjson
from google.protobuf.message import Message

from tolaria_bus.leyline import (
    AdaptationCommand,
    BusEnvelope,
    DeadLetter,
    EmergencySignal,
    MessagePriority,
)
from tolaria_bus.leyline.codec import CodecError, encode, from_json, message_class
from tolaria_bus.oona.by_hand import date, derived_id, identify, read_by_hand
from tolaria_bus.oona.examining import Contents
from tolaria_bus.oona.letters import Found
from tolaria_bus.oona.resent import mark
from tolaria_bus.oona.sealing import JSON, own_id, seal_envelope, wrap
from tolaria_bus.oona.streams import dead_letters_of
from tolaria_bus.oona.trust import KeyRing, parse_entry_id

LONGEST_DEADLINE: Final = timedelta(milliseconds=2**32 - 1)

Code = Literal[
    "unreadable", "unbelieved", "truncated", "foreign", "no_key", "no_deadline", "malformed",
    "oversize", "type", "server",
]  # fmt: skip


class NotReplayable(Exception):
    """A letter can't be replayed, or not without more being said; nothing was done."""

    def __init__(self, code: Code, reason: str) -> None:
        super().__init__(reason)
        self.code: Code = code
        """One word, for programs."""


@dataclass(frozen=True, slots=True)
class Terms:
    """How letters are replayed.

    Attributes:
        by: Who does it (``operator/ann``).
        resign: Also what isn't believed: whoever says so has looked at it and vouches for it.
        deadline: A new one for commands, from now on.
        message: JSON of a message in place of the letter's.
    """

    by: str
    resign: bool = False
    deadline: timedelta | None = None
    message: bytes | None = None

    def __post_init__(self) -> None:
        if self.deadline is not None and not (
            timedelta(milliseconds=1) <= self.deadline <= LONGEST_DEADLINE
        ):
            most = int(LONGEST_DEADLINE.total_seconds())
            raise ValueError(f"deadline: must be 0.001 to {most} seconds")


class Resealer:
    """Makes entries of letters.

    Args:
        ring: Signs, if it has a key.
        terms: How.
        clock: Nanoseconds since the epoch.
    """

    def __init__(
        self, ring: KeyRing, terms: Terms, clock: Callable[[], int] = time.time_ns
    ) -> None:
        self._ring = ring
        self._terms = terms
        self._clock = clock

    def fields(self, found: Found) -> Mapping[bytes, bytes]:
        """Return the fields of the new entry.

        Raises:
            NotReplayable: There is none.
        """
        letter, contents = found.letter, found.contents
        if letter is None or contents is None:
            raise NotReplayable("unreadable", f"the letter can't be read ({found.doubt})")
        if dead_letters_of(letter.stream) != found.dead or letter.stream == found.dead:
            text = f"it is about the stream {letter.stream[:200]!r}, whose letters are elsewhere"
            raise NotReplayable("foreign", text)
        self._check_letter(found)
        try:
            if self._terms.message is not None:
                envelope = self._mended(letter, contents, self._terms.message)
            elif contents.message is not None:
                envelope = self._kept(letter, contents, contents.message)
            elif self._ring.enabled or letter.truncated:
                raise NotReplayable(
                    "truncated" if letter.truncated else "unreadable",
                    f"the entry can't be read ({contents.problem}): put a message in its place",
                )
            else:
                # A newer reader may make sense of it.
                return contents.fields
            mark(envelope, dead=found.dead, letter_id=found.entry_id, by=self._terms.by)
            return seal_envelope(envelope, stream=letter.stream, ring=self._ring, clock=self._clock)
        except CodecError as error:
            raise NotReplayable(error.reason, error.detail) from None

    def _check_letter(self, found: Found) -> None:
        if not found.doubt:
            return
        if not self._ring.enabled:
            raise NotReplayable("no_key", f"the letter isn't believed ({found.doubt})")
        if not self._terms.resign and self._terms.message is None:
            raise NotReplayable("unbelieved", f"the letter isn't believed ({found.doubt})")

    def _kept(self, letter: DeadLetter, contents: Contents, message: Message) -> BusEnvelope:
        """The envelope of a message that stays as it was."""
        if contents.distrust and not self._terms.resign:
            raise NotReplayable("unbelieved", contents.distrust)
        if letter.truncated:
            # It can be read, but nobody can say what else the entry had.
            raise NotReplayable("truncated", "the letter has only a part of the entry")
        if contents.envelope is None:
            envelope = wrap(
                message,
                source=contents.source,
                message_id=derived_id(letter.stream, letter.entry_id),
            )
        else:
            envelope = BusEnvelope()
            envelope.CopyFrom(contents.envelope)
        complete = type(message)()
        complete.CopyFrom(message)
        self._complete(letter, complete, envelope)
        if complete != message:
            envelope.payload = encode(complete)
        if contents.distrust:
            envelope.source = self._terms.by
        return envelope

    def _complete(self, letter: DeadLetter, message: Message, envelope: BusEnvelope) -> None:
        """Give a message what it has to keep: its id, and the time that its deadline is from."""
        if isinstance(message, EmergencySignal) and not message.payload_checksum:
            # As a worker knows a signal without an id.
            message.attributes.setdefault("signal_id", f"{letter.stream}/{letter.entry_id}")
        if not isinstance(message, AdaptationCommand):
            if self._terms.deadline is not None:
                raise NotReplayable("no_deadline", "only a command has a deadline")
            return
        message.command_id = message.command_id or derived_id(letter.stream, letter.entry_id)
        if self._terms.deadline is not None:
            milliseconds = round(self._terms.deadline / timedelta(milliseconds=1))
            message.execution_deadline_ms = milliseconds
            message.issued_at.FromNanoseconds(self._clock())
        elif message.execution_deadline_ms:
            # Else it would count from the replay.
            _date(message, envelope.issued_at_ns or _entry_ns(letter))

    def _mended(self, letter: DeadLetter, contents: Contents, text: bytes) -> BusEnvelope:
        """The envelope of a message that a person wrote in place of the letter's."""
        message = _read(text, letter, contents)
        if isinstance(message, AdaptationCommand) and not message.command_id:
            message.command_id = _known_id(contents)
        identify(message, letter.stream, letter.entry_id)
        old = contents.envelope or BusEnvelope()
        known = old.priority in MessagePriority.values() and old.priority
        envelope = wrap(
            message,
            source=self._terms.by,
            priority=old.priority if known else MessagePriority.MESSAGE_PRIORITY_NORMAL,
            message_id=old.message_id
            or own_id(message)
            or derived_id(letter.stream, letter.entry_id),
            correlation_id=old.correlation_id,
        )
        envelope.attributes.update(old.attributes)
        if isinstance(message, AdaptationCommand) and message.execution_deadline_ms:
            _date(message, self._clock())
        self._complete(letter, message, envelope)
        envelope.payload = encode(message)
        return envelope


def _read(text: bytes, letter: DeadLetter, contents: Contents) -> Message:
    try:
        return read_by_hand(text, letter.stream)
    except CodecError as error:
        # The stream's name says nothing; perhaps the old message does.
        if error.reason != "type" or contents.envelope is None:
            raise
        return from_json(text, message_class(contents.envelope.message_type))


def _known_id(contents: Contents) -> str:
    """The command id of what was there, also if nothing else of it can be read."""
    if isinstance(contents.message, AdaptationCommand):
        return contents.message.command_id
    try:
        data = orjson.loads(contents.fields.get(JSON, b""))
    except orjson.JSONDecodeError:
        return ""
    if not isinstance(data, dict):
        return ""
    found = data.get("commandId", data.get("command_id"))
    return found if isinstance(found, str) else ""


def _date(command: AdaptationCommand, issued_at_ns: int) -> None:
    try:
        date(command, issued_at_ns)
    except ValueError as error:
        raise NotReplayable("malformed", f"its time of issue: {error}") from None


def _entry_ns(letter: DeadLetter) -> int:
    try:
        return parse_entry_id(letter.entry_id)[0] * 1_000_000
    except ValueError as error:
        raise NotReplayable("malformed", str(error)) from None
