"""What a dead entry held, and whether it may still be taken for its sender's word.

A letter about a signature, an audience or a replay carries an entry that nobody believed. To sign
that with a key of ours would make a forgery genuine, so the entry is judged anew, by the keys of
now: it was late, or its key wasn't known yet, and its signature is good for the stream that it was
in (then it may be sealed again); or it is still not believed, and only a person can vouch for it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from google.protobuf.message import DecodeError, Message

from tolaria_bus.leyline import (
    AdaptationCommand,
    BusEnvelope,
    CommandOutcome,
    DeadLetter,
    EmergencySignal,
    FieldReport,
    TelemetryPacket,
)
from tolaria_bus.leyline.codec import CodecError, check_size, decode, message_class
from tolaria_bus.oona.by_hand import identify, read_by_hand
from tolaria_bus.oona.opening import Refused
from tolaria_bus.oona.sealing import JSON, PAYLOAD, SIGNATURE
from tolaria_bus.oona.streams import run_of
from tolaria_bus.oona.trust import Key, KeyRing

_COPIED: Final = "replay"
"""Reason of letters about entries that were copied from other ones."""
_UNTIMELY: Final = frozenset({"stale", "future"})
"""Reasons of letters about entries that came outside the window in which nonces are compared."""


@dataclass(frozen=True, slots=True)
class Contents:
    """What a dead entry held.

    Attributes:
        fields: The entry as it was, as far as the letter has it.
        envelope: Its envelope; ``None`` if it was written by hand, or can't be read.
        message: Its message; ``None`` if that can't be read.
        problem: Why it can't be.
        distrust: Why the entry isn't its sender's word for this stream; empty if it is, and where
            signing is off.
    """

    fields: Mapping[bytes, bytes]
    envelope: BusEnvelope | None = None
    message: Message | None = None
    problem: str = ""
    distrust: str = ""

    @property
    def source(self) -> str:
        """Who sent it, by its own word."""
        if self.envelope is not None:
            return self.envelope.source
        return self.message.issued_by if isinstance(self.message, AdaptationCommand) else ""

    @property
    def command_id(self) -> str:
        """The id that its effect is bound to; empty if it has none."""
        match self.message:
            case AdaptationCommand() | CommandOutcome() | FieldReport():
                return self.message.command_id
            case EmergencySignal():
                return self.message.attributes.get("signal_id", "")
            case TelemetryPacket():
                return self.message.packet_id
            case _:
                return ""


class Examiner:
    """Looks into dead letters with the keys of now.

    Args:
        ring: With keys, entries have to be signed to be believed.
        compat_secret: Also believes envelopes that have only fields 1 to 3, signed with this.
    """

    def __init__(self, ring: KeyRing, compat_secret: bytes | None = None) -> None:
        self.ring: Final = ring
        self._compat_key = None if compat_secret is None else Key(compat_secret)

    def examine(self, letter: DeadLetter) -> Contents:
        """Return what the dead entry held; whatever that is, something is returned."""
        fields = {bytes(field.name): bytes(field.value) for field in letter.fields}
        envelope, message, problem = None, None, ""
        try:
            if PAYLOAD in fields:
                envelope = _envelope(fields[PAYLOAD])
                message = decode(envelope.payload, message_class(envelope.message_type))
            elif JSON in fields:
                message = read_by_hand(fields[JSON], letter.stream)
                identify(message, letter.stream, letter.entry_id)
            else:
                problem = "malformed: the entry has neither payload nor json"
        except (CodecError, Refused) as error:
            problem = str(error)
        if problem and letter.truncated:
            problem = "the letter has only a part of the entry"
        distrust = self._distrust(letter, fields, envelope)
        return Contents(fields, envelope, message, problem, distrust)

    def _distrust(
        self, letter: DeadLetter, fields: Mapping[bytes, bytes], envelope: BusEnvelope | None
    ) -> str:
        if not self.ring.enabled and self._compat_key is None:
            return ""
        if envelope is None:
            return "the entry isn't signed"
        signature = fields.get(SIGNATURE)
        if signature is None:
            return "the entry isn't signed"
        payload = fields[PAYLOAD]
        if envelope.key_id:
            good = self.ring.verify(envelope.key_id, payload, signature)
            meant = envelope.audience == letter.stream
        else:
            good = self._compat_key is not None and self._compat_key.made(payload, signature)
            # Older programs don't say which stream they mean.
            meant = envelope.audience in ("", letter.stream)
        if not good:
            return "the entry's signature is by none of our keys"
        if not meant:
            return f"its sender meant the stream {envelope.audience[:200]!r}"
        if letter.reason == _COPIED:
            return "it is a copy of another entry"
        if letter.reason in _UNTIMELY and run_of(letter.stream) is None:
            # A run knows its commands by their ids; a run that is younger than this one doesn't.
            return "it may be a copy: it came when copies aren't known for what they are"
        return ""


def _envelope(payload: bytes) -> BusEnvelope:
    check_size(BusEnvelope, len(payload))
    envelope = BusEnvelope()
    try:
        envelope.ParseFromString(payload)
    except DecodeError as error:
        raise Refused("malformed", f"not a BusEnvelope: {error}") from None
    return envelope
