"""Entries of streams, good and bad, and readers to open them with."""

from typing import Any

import pytest
from google.protobuf.message import Message

from tolaria_bus.leyline import (
    AdaptationCommand,
    BusEnvelope,
    BusMessageType,
    CommandType,
)
from tolaria_bus.oona.envelope import (
    REFUSED_REASONS,
    Opener,
    Refused,
    seal,
)
from tolaria_bus.oona.trust import Key, KeyRing, NonceWindow

CONTROL = "oona:{digits}:control"
TELEMETRY = "oona:{digits}:telemetry"
EMERGENCY = "oona:emergency"
NOW_MS = 1_800_000_000_000
ENTRY = f"{NOW_MS}-0"
COMPAT_SECRET = b"an older program's secret"
RING = KeyRing({"k1": b"0123456789abcdef", "k0": b"fedcba9876543210"})
OFF = KeyRing()
PAUSE = AdaptationCommand(version=1, command_id="c1", command_type=CommandType.COMMAND_PAUSE)
PAUSE.issued_at.FromMilliseconds(NOW_MS)

Fields = dict[bytes, bytes]


def at(milliseconds: int) -> Any:
    return lambda: milliseconds * 1_000_000


def sealed(
    message: Message = PAUSE, *, stream: str = CONTROL, ring: KeyRing = RING, ms: int = NOW_MS
) -> Fields:
    return seal(message, stream=stream, source="operator/ann", ring=ring, clock=at(ms))


def opener(ring: KeyRing = RING, **options: Any) -> Opener:
    return Opener(ring, NonceWindow(), **options)


def refusal(
    fields: Fields | None,
    *,
    ring: KeyRing = RING,
    stream: str = CONTROL,
    entry: str = ENTRY,
    **options: Any,
) -> Refused:
    with pytest.raises(Refused) as error:
        opener(ring, **options).open(stream, entry, fields)
    assert error.value.reason in REFUSED_REASONS
    assert len(str(error.value).splitlines()) == 1
    return error.value


def changed(fields: Fields, **values: Any) -> Fields:
    """The same entry with other values in its envelope, signed by who has the key."""
    envelope = BusEnvelope.FromString(fields[b"payload"])
    for name, value in values.items():
        envelope.ClearField(name)  # type: ignore[arg-type]
        if value is not None:
            setattr(envelope, name, value)
    payload = envelope.SerializeToString(deterministic=True)
    return {b"payload": payload, b"signature": RING.sign(payload)[1]}


def unsigned(message: Message = PAUSE, **values: Any) -> Fields:
    number = BusMessageType.BUS_MESSAGE_TYPE_ADAPTATION_COMMAND
    values = {"message_type": number, "payload": message.SerializeToString(), **values}
    return {b"payload": BusEnvelope(**values).SerializeToString()}


def compat(secret: bytes = COMPAT_SECRET, **values: Any) -> Fields:
    payload = unsigned(**values)[b"payload"]
    return {b"payload": payload, b"signature": Key(secret).sign(payload)}
