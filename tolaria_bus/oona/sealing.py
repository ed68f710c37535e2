"""Sealing a message into the fields of one stream entry."""

import os
import time
from base64 import urlsafe_b64encode
from collections.abc import Callable
from typing import Final

from google.protobuf.message import Message

from tolaria_bus.leyline import BusEnvelope, MessagePriority, SystemStatePacket, TelemetryPacket
from tolaria_bus.leyline.codec import (
    MAX_MESSAGE_BYTES,
    CodecError,
    check_size,
    encode,
    message_type,
)
from tolaria_bus.oona.trust import NONCE_BYTES, KeyRing

PAYLOAD: Final = b"payload"
SIGNATURE: Final = b"signature"
JSON: Final = b"json"

_ROOM: Final = 256
"""More bytes than a sealed envelope has besides its message and the texts given to it: numbers,
nonce, the ids of the message and the key, and what protobuf writes before each field."""
_UTF8_BYTES: Final = 4  # of one character, at most
_NORMAL: Final = MessagePriority.MESSAGE_PRIORITY_NORMAL


def new_message_id() -> str:
    """Return a new id: 16 letters with 96 random bits, of no global generator."""
    return urlsafe_b64encode(os.urandom(12)).decode()


def own_id(message: Message) -> str:
    """Return the id that a packet has itself; empty for one without, and for other messages."""
    if isinstance(message, TelemetryPacket | SystemStatePacket):
        return message.packet_id
    return ""


def check_fits(message: Message, *texts: str) -> None:
    """Refuse a message that could not be sealed, with whatever key and however often it is folded.

    Args:
        message: What is to be sent.
        texts: What the envelope says: the stream, the source, ids.

    Raises:
        CodecError: it is too large with its envelope, or of no type that travels on the bus.
    """
    message_type(message)
    size = message.ByteSize()
    around = _ROOM + _UTF8_BYTES * sum(map(len, texts))
    if size + around > MAX_MESSAGE_BYTES:
        name = message.DESCRIPTOR.name
        most = MAX_MESSAGE_BYTES - around
        raise CodecError("oversize", f"{name} of {size} bytes; at most {most} with its envelope")


def wrap(
    message: Message,
    *,
    source: str,
    priority: MessagePriority.ValueType = MessagePriority.MESSAGE_PRIORITY_NORMAL,
    message_id: str | None = None,
    correlation_id: str = "",
) -> BusEnvelope:
    """Return an unsealed envelope, as it may wait in a spool.

    What goes without saying isn't said, for most envelopes are about small packets: priority
    NORMAL, and a message id that the packet has itself.

    Raises:
        CodecError: the message is too large or of no type that travels on the bus.
    """
    # Set one by one: keyword arguments take protobuf three times as long.
    envelope = BusEnvelope()
    envelope.message_type = message_type(message)
    envelope.payload = encode(message)
    if message_id is None:
        envelope.message_id = new_message_id()
    elif message_id != own_id(message):
        envelope.message_id = message_id
    envelope.source = source
    if priority != _NORMAL:
        envelope.priority = priority
    if correlation_id:
        envelope.correlation_id = correlation_id
    return envelope


def seal_envelope(
    envelope: BusEnvelope,
    *,
    stream: str,
    ring: KeyRing,
    clock: Callable[[], int] = time.time_ns,
) -> dict[bytes, bytes]:
    """Seal an unsealed envelope for one attempt to send, and return the entry's fields.

    The envelope is changed (nonce, time, audience, key) and may be sealed again: its message id
    stays, so a receiver knows the second copy.

    Args:
        envelope: from :func:`wrap`.
        stream: the key that the entry is for.
        ring: signs, if it has a key.
        clock: nanoseconds since the epoch.

    Raises:
        CodecError: ``oversize``: no reader would take the entry.
    """
    envelope.issued_at_ns = clock()
    envelope.nonce = os.urandom(NONCE_BYTES)
    envelope.audience = stream
    envelope.key_id = ring.signing_key
    payload = envelope.SerializeToString()
    check_size(BusEnvelope, len(payload))
    if not ring.enabled:
        return {PAYLOAD: payload}
    return {PAYLOAD: payload, SIGNATURE: ring.sign(payload)[1]}


def seal(
    message: Message,
    *,
    stream: str,
    source: str,
    ring: KeyRing,
    priority: MessagePriority.ValueType = MessagePriority.MESSAGE_PRIORITY_NORMAL,
    message_id: str | None = None,
    correlation_id: str = "",
    clock: Callable[[], int] = time.time_ns,
) -> dict[bytes, bytes]:
    """Return the fields of one entry that carries ``message``.

    Args:
        message: of a type that travels on the bus.
        stream: the key that the entry is for; nobody takes it from another.
        source: who sends: ``run/digits``, ``operator/ann``, ``tamiyo/1``.
        ring: signs, if it has a key.
        priority: told to the reader; routing is the sender's.
        message_id: the same at every attempt to send; by default a new one.
        correlation_id: of what this answers.
        clock: nanoseconds since the epoch.

    Raises:
        CodecError: the message is too large or of no type that travels on the bus.
    """
    envelope = wrap(
        message,
        source=source,
        priority=priority,
        message_id=message_id,
        correlation_id=correlation_id,
    )
    return seal_envelope(envelope, stream=stream, ring=ring, clock=clock)
