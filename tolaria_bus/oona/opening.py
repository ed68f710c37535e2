"""Opening what came in a stream entry.

This is a border. Its input may be anything that anybody can write to a stream, so
:meth:`Opener.open` either returns a message that may be believed as far as its signature says, or
raises :class:`Refused`; no other error comes from an entry. The signature is checked before
anything that the sender says is acted upon, the nonce last, so that only entries that are taken
use theirs up.
"""

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Final, Literal, get_args

from google.protobuf.message import DecodeError, Message

from tolaria_bus.leyline import AdaptationCommand, BusEnvelope, BusMessageType, MessagePriority
from tolaria_bus.leyline.codec import (
    CodecError,
    check_size,
    decode,
    encode,
    message_class,
    message_type,
    parse_enum,
)
from tolaria_bus.oona.by_hand import date, derived_id, identify, read_by_hand
from tolaria_bus.oona.sealing import JSON, PAYLOAD, SIGNATURE
from tolaria_bus.oona.trust import (
    FRESH_AHEAD_MS,
    FRESH_BACK_MS,
    NONCE_BYTES,
    KeyRing,
    NonceWindow,
    made_with,
    parse_entry_id,
)

RefusedReason = Literal[
    "malformed", "oversize", "type", "signature", "stale", "future", "replay", "audience"
]
REFUSED_REASONS: Final[tuple[str, ...]] = get_args(RefusedReason)


class Refused(Exception):
    """An entry can't be used; it belongs into the dead letters."""

    def __init__(self, reason: RefusedReason, detail: str, key_id: str = "") -> None:
        super().__init__(f"{reason}: {detail}")
        self.reason: RefusedReason = reason
        self.detail = detail
        """One sentence for people, naming the field and the value."""
        self.key_id = key_id
        """The key that an entry with a bad signature, nonce or audience says it was signed with;
        nothing where signing is off."""


class IdAhead(Refused):
    """The entry's own id is ahead of the server: so are all that are added after it."""


@dataclass(frozen=True, slots=True)
class Opened:
    """One entry that may be used."""

    message: Message
    message_type: BusMessageType.ValueType
    payload: bytes
    """The bytes of ``message``, with whatever was filled in for its sender."""
    digest: bytes
    """SHA-256 of the message as its sender wrote it, without a time filled in here: equal for the
    same command sent twice."""
    priority: MessagePriority.ValueType
    source: str
    message_id: str
    correlation_id: str
    issued_at_ns: int
    """When it was sealed; where the sender doesn't say, when the server took it."""
    envelope: BusEnvelope


class Opener:
    """Opens entries under one key ring.

    Args:
        ring: with keys, only signed entries are taken; without, all that can be read are.
        nonces: where nonces are remembered; ``None`` for readers that only show entries, to whom
            a replay does no harm.
        compat_secret: also take envelopes that have only fields 1 to 3, signed with this.
        allow_json: take entries written by hand (field ``json``) where signing is off.
        server_now_ms: the server's clock, for refusing entry ids that were chosen ahead of it;
            ``None`` as long as it isn't known. See ``connection.ServerClock``.
    """

    def __init__(
        self,
        ring: KeyRing,
        nonces: NonceWindow | None,
        compat_secret: bytes | None = None,
        allow_json: bool = True,
        server_now_ms: Callable[[], int | None] = lambda: None,
    ) -> None:
        self._ring = ring
        self._nonces = nonces
        self._compat_secret = compat_secret
        self._allow_json = allow_json
        self._server_now_ms = server_now_ms

    def open(
        self,
        stream: str,
        entry_id: str | bytes,
        fields: Mapping[bytes, bytes] | None,
        *,
        json_type: int | None = None,
    ) -> Opened:
        """Return what the entry carries.

        Args:
            stream: the key that it was read from.
            entry_id: as the server gave it; its time is what freshness is judged against.
            fields: as the server gave them.
            json_type: the ``BusMessageType`` of an entry with ``json`` alone; by default what the
                stream carries (see ``by_hand``).

        Raises:
            Refused: the entry can't be used.
        """
        try:
            entry = entry_id.decode("ascii", "replace") if isinstance(entry_id, bytes) else entry_id
            entry_ms = self._entry_ms(entry)
            if not fields:
                raise Refused("malformed", "the entry has no fields")
            if PAYLOAD in fields:
                return self._open_payload(stream, entry, entry_ms, fields)
            if JSON in fields:
                return self._open_json(stream, entry, entry_ms, fields[JSON], json_type)
            raise Refused("malformed", "the entry has neither payload nor json")
        except CodecError as error:
            raise Refused(error.reason, error.detail) from None

    def _entry_ms(self, entry_id: str) -> int:
        try:
            milliseconds, _ = parse_entry_id(entry_id)
        except ValueError as error:
            raise Refused("malformed", str(error)) from None
        now = self._server_now_ms()
        # Such an id would move the end of every window of this stream.
        if now is not None and milliseconds > now + FRESH_AHEAD_MS:
            ahead = (milliseconds - now) / 1000
            raise IdAhead("future", f"entry id {entry_id} is {ahead:.1f} s ahead of the server")
        return milliseconds

    def _open_payload(
        self, stream: str, entry_id: str, entry_ms: int, fields: Mapping[bytes, bytes]
    ) -> Opened:
        payload = fields[PAYLOAD]
        check_size(BusEnvelope, len(payload))
        envelope = BusEnvelope()
        try:
            envelope.ParseFromString(payload)
        except DecodeError as error:
            raise Refused("malformed", f"not a BusEnvelope: {error}") from None
        complete = not _only_compat_fields(envelope)
        if self.signed:
            self._verify(envelope, complete, payload, fields.get(SIGNATURE))
        _check_audience(envelope, stream, required=self.signed and complete)
        if envelope.issued_at_ns or (self.signed and complete):
            _check_fresh(envelope.issued_at_ns, entry_ms)
        message = decode(envelope.payload, message_class(envelope.message_type))
        if isinstance(message, AdaptationCommand) and not message.command_id:
            raise Refused("malformed", "AdaptationCommand.command_id is empty")
        priority = _priority(envelope)
        if self.signed and complete:
            self._check_nonce(envelope, stream, entry_id)
        return _opened(message, envelope, priority, envelope.issued_at_ns or entry_ms * 1_000_000)

    def _open_json(
        self, stream: str, entry_id: str, entry_ms: int, text: bytes, json_type: int | None
    ) -> Opened:
        if self.signed:
            raise Refused("signature", "an entry with json is not signed, and signing is on")
        if not self._allow_json:
            raise Refused("type", "entries with json are not taken here")
        message = read_by_hand(text, stream, json_type)
        identify(message, stream, entry_id)
        envelope = BusEnvelope(
            message_type=message_type(message),
            payload=encode(message),
            message_id=derived_id(stream, entry_id),
            source=message.issued_by if isinstance(message, AdaptationCommand) else "",
            audience=stream,
        )
        return _opened(message, envelope, _priority(envelope), entry_ms * 1_000_000)

    @property
    def signed(self) -> bool:
        """Whether only signed entries are taken."""
        return self._ring.enabled or self._compat_secret is not None

    def _verify(
        self, envelope: BusEnvelope, complete: bool, payload: bytes, signature: bytes | None
    ) -> None:
        if signature is None:
            raise Refused("signature", "the entry is not signed, and signing is on")
        if not complete:
            if self._compat_secret is None:
                raise Refused("signature", "key_id is empty: envelopes of fields 1-3 are off")
            good = made_with(self._compat_secret, payload, signature)
        elif envelope.key_id in self._ring:
            good = self._ring.verify(envelope.key_id, payload, signature)
        else:
            detail = f"key_id {envelope.key_id[:64]!r} is not in the key ring"
            raise Refused("signature", detail, envelope.key_id)
        if not good:
            detail = "the signature doesn't match the payload"
            raise Refused("signature", detail, envelope.key_id)

    def _check_nonce(self, envelope: BusEnvelope, stream: str, entry_id: str) -> None:
        nonce = envelope.nonce
        if len(nonce) != NONCE_BYTES:
            raise Refused("malformed", f"nonce has {len(nonce)} bytes, must have {NONCE_BYTES}")
        if self._nonces is not None and not self._nonces.check(nonce, stream, entry_id):
            raise Refused("replay", "the nonce came in another entry before", envelope.key_id)


def _only_compat_fields(envelope: BusEnvelope) -> bool:
    # The key's id decides in nearly every case, and is cheap to look at.
    return not envelope.key_id and all(field.number <= 3 for field, _ in envelope.ListFields())


def _check_audience(envelope: BusEnvelope, stream: str, *, required: bool) -> None:
    if envelope.audience != stream and (envelope.audience or required):
        detail = f"audience {envelope.audience[:200]!r} is not the stream {stream!r}"
        raise Refused("audience", detail, envelope.key_id if required else "")


def _check_fresh(issued_at_ns: int, entry_ms: int) -> None:
    delay = entry_ms * 1_000_000 - issued_at_ns
    seconds = abs(delay) / 1e9
    if delay > FRESH_BACK_MS * 1_000_000:
        limit = FRESH_BACK_MS // 1000
        detail = f"sealed {seconds:.1f} s before the server took it; at most {limit} s"
        raise Refused("stale", detail)
    if -delay > FRESH_AHEAD_MS * 1_000_000:
        limit = FRESH_AHEAD_MS // 1000
        detail = f"sealed {seconds:.1f} s after the server took it; at most {limit} s"
        raise Refused("future", detail)


def _priority(envelope: BusEnvelope) -> MessagePriority.ValueType:
    if not envelope.priority:
        return MessagePriority.MESSAGE_PRIORITY_NORMAL
    try:
        parse_enum(MessagePriority, envelope.priority)
    except ValueError as error:
        raise Refused("malformed", f"BusEnvelope.priority: {error}") from None
    return envelope.priority


def _opened(
    message: Message,
    envelope: BusEnvelope,
    priority: MessagePriority.ValueType,
    issued_at_ns: int,
) -> Opened:
    sent = encode(message)
    try:
        dated = date(message, issued_at_ns)
    except ValueError as error:
        raise Refused("malformed", f"BusEnvelope.issued_at_ns: {error}") from None
    return Opened(
        message=message,
        message_type=envelope.message_type,
        payload=encode(message) if dated else sent,
        digest=hashlib.sha256(sent).digest(),
        priority=priority,
        source=envelope.source,
        message_id=envelope.message_id,
        correlation_id=envelope.correlation_id,
        issued_at_ns=issued_at_ns,
        envelope=envelope,
    )
