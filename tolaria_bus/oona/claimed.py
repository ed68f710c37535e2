"""What an entry that was refused claims to be. Nothing of it is to be believed, but shown."""

from __future__ import annotations

from typing import Final

from google.protobuf.message import DecodeError

from tolaria_bus.leyline import BusEnvelope, BusMessageType, DeadLetter
from tolaria_bus.leyline.codec import CodecError, message_type, short_name
from tolaria_bus.oona.by_hand import read_by_hand
from tolaria_bus.oona.sealing import JSON, PAYLOAD

_LOOKED_AT: Final = 16 * 1024
"""Bytes of an entry: whoever floods us with large ones gets no more work done for it."""


def claimed_kind(letter: DeadLetter) -> str:
    """Short name of a ``BusMessageType``; empty: it is large, or doesn't even look like one."""
    if letter.ByteSize() > _LOOKED_AT:
        return ""
    fields = {field.name: field.value for field in letter.fields}
    try:
        if PAYLOAD in fields:
            kind = BusEnvelope.FromString(fields[PAYLOAD]).message_type
        elif JSON in fields:
            kind = message_type(read_by_hand(fields[JSON], letter.stream))
        else:
            return ""
    except (DecodeError, CodecError):
        return ""
    return short_name(BusMessageType, kind) if kind in BusMessageType.values() else ""
