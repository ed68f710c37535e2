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
from typing import Final, Literal, NoReturn, get_args

from google.protobuf.message import DecodeError, Message

from tolaria_bus.leyline import AdaptationCommand, BusEnvelope, BusMessageType, MessagePriority
from tolaria_bus.leyline.codec import (
    MAX_MESSAGE_BYTES,
    CodecError,
    check_size,
    decode,
    encode,
    message_class,
    message_type,
    parse_enum,
)
from tolaria_bus.oona.by_hand import date, derived_id, identify, read_by_hand, undated
from tolaria_bus.oona.sealing import JSON, PAYLOAD, SIGNATURE, own_id
from tolaria_bus.oona.trust import (
    FRESH_AHEAD_MS,
    FRESH_BACK_MS,
    NONCE_BYTES,
    EntryId,
    Key,
    KeyRing,
    NonceWindow,
    parse_entry_id,
)

RefusedReason = Literal[
    "malformed", "oversize", "type", "signature", "stale", "future", "replay", "audience"
]
REFUSED_REASONS: Final[tuple[str, ...]] = get_args(RefusedReason)

_BACK_NS: Final = FRESH_BACK_MS * 1_000_000
_AHEAD_NS: Final = FRESH_AHEAD_MS * 1_000_000
_PRIORITIES: Final = frozenset(MessagePriority.values())


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


@dataclass(slots=True, eq=False)
class Opened:
    """One entry that may be used. What isn't asked for isn't worked out.

    Attributes:
        message: What it carries, with the time of issue filled in where its sender left it out.
        envelope: What it came in.
        issued_at_ns: When it was sealed; where the sender doesn't say, when the server took it.
    """

    message: Message
    envelope: BusEnvelope
    issued_at_ns: int
    _sent: bytes | None = None  # the message's bytes, where they are not those of ``message``

    @property
    def message_type(self) -> BusMessageType.ValueType:
        """What ``message`` is."""
        return self.envelope.message_type

    @property
    def payload(self) -> bytes:
        """The bytes of ``message``, with whatever was filled in for its sender."""
        return encode(self.message)

    @property
    def digest(self) -> bytes:
        """SHA-256 of the message as its sender wrote it: equal for the same command sent twice."""
        sent = encode(self.message) if self._sent is None else self._sent
        return hashlib.sha256(sent).digest()

    @property
    def priority(self) -> MessagePriority.ValueType:
        """The sender's; NORMAL where it doesn't say."""
        return self.envelope.priority or MessagePriority.MESSAGE_PRIORITY_NORMAL

    @property
    def source(self) -> str:
        """Who sent it."""
        return self.envelope.source

    @property
    def message_id(self) -> str:
        """The same at every attempt to send; the packet's own where its envelope has none."""
        return self.envelope.message_id or own_id(self.message)

    @property
    def correlation_id(self) -> str:
        """What it answers."""
        return self.envelope.correlation_id


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
        self._keys = ring.keys
        self._nonces = nonces
        self._compat_key = None if compat_secret is None else Key(compat_secret)
        self.signed = ring.enabled or compat_secret is not None
        """Whether only signed entries are taken."""
        self._allow_json = allow_json
        self._server_now_ms = server_now_ms

    @property
    def knows_time(self) -> bool:
        """Entry ids are held against the server's clock."""
        return self._server_now_ms() is not None

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
        name = entry_id.decode("ascii", "replace") if isinstance(entry_id, bytes) else entry_id
        try:
            entry = parse_entry_id(name)
        except ValueError as error:
            raise Refused("malformed", str(error)) from None
        now = self._server_now_ms()
        if now is not None and entry[0] > now + FRESH_AHEAD_MS:
            _refuse_entry_ahead(name, entry[0] - now)
        if not fields:
            raise Refused("malformed", "the entry has no fields")
        try:
            payload = fields.get(PAYLOAD)
            if payload is not None:
                return self._open_payload(stream, entry, payload, fields.get(SIGNATURE))
            if JSON in fields:
                return self._open_json(stream, name, entry, fields[JSON], json_type)
        except CodecError as error:
            raise Refused(error.reason, error.detail) from None
        raise Refused("malformed", "the entry has neither payload nor json")

    def save_nonces(self) -> None:
        """See to it that a restart knows what was opened: to be called before it is used."""
        if self._nonces is not None:
            self._nonces.flush()

    def _open_payload(
        self, stream: str, entry: EntryId, payload: bytes, signature: bytes | None
    ) -> Opened:
        if len(payload) > MAX_MESSAGE_BYTES:
            check_size(BusEnvelope, len(payload))
        try:
            envelope = BusEnvelope.FromString(payload)
        except DecodeError as error:
            raise Refused("malformed", f"not a BusEnvelope: {error}") from None
        # The key's id decides in nearly every case, and is cheap to look at.
        key_id = envelope.key_id
        complete = bool(key_id) or not _only_compat_fields(envelope)
        trusted = self.signed and complete
        if self.signed:
            key = self._keys.get(key_id) if complete else self._compat_key
            if signature is None or key is None or not key.made(payload, signature):
                self._refuse_signature(key_id, complete, key, signature)
        audience = envelope.audience
        if audience != stream and (audience or trusted):
            _refuse_audience(audience, stream, key_id if trusted else "")
        entry_ns = entry[0] * 1_000_000
        issued_at_ns = envelope.issued_at_ns
        if issued_at_ns or trusted:
            delay = entry_ns - issued_at_ns
            if not -_AHEAD_NS <= delay <= _BACK_NS:
                _refuse_delay(delay)
        message = decode(envelope.payload, message_class(envelope.message_type))
        if type(message) is AdaptationCommand and not message.command_id:
            raise Refused("malformed", "AdaptationCommand.command_id is empty")
        if envelope.priority not in _PRIORITIES:
            _refuse_priority(envelope.priority)
        if trusted:
            nonce = envelope.nonce
            if len(nonce) != NONCE_BYTES:
                detail = f"nonce has {len(nonce)} bytes, must have {NONCE_BYTES}"
                raise Refused("malformed", detail)
            if self._nonces is not None and not self._nonces.check(nonce, stream, entry):
                raise Refused("replay", "the nonce came in another entry before", key_id)
        if undated(message):
            return _dated(message, envelope, issued_at_ns or entry_ns)
        return Opened(message, envelope, issued_at_ns or entry_ns)

    def _open_json(
        self, stream: str, name: str, entry: EntryId, text: bytes, json_type: int | None
    ) -> Opened:
        if self.signed:
            raise Refused("signature", "an entry with json is not signed, and signing is on")
        if not self._allow_json:
            raise Refused("type", "entries with json are not taken here")
        message = read_by_hand(text, stream, json_type)
        identify(message, stream, name)
        envelope = BusEnvelope(
            message_type=message_type(message),
            payload=encode(message),
            message_id=derived_id(stream, name),
            source=message.issued_by if isinstance(message, AdaptationCommand) else "",
            audience=stream,
        )
        issued_at_ns = entry[0] * 1_000_000
        if undated(message):
            return _dated(message, envelope, issued_at_ns)
        return Opened(message, envelope, issued_at_ns)

    def _refuse_signature(
        self, key_id: str, complete: bool, key: Key | None, signature: bytes | None
    ) -> NoReturn:
        if signature is None:
            detail = "the entry is not signed, and signing is on"
        elif key is not None:
            detail = "the signature doesn't match the payload"
        elif complete:
            detail = f"key_id {key_id[:64]!r} is not in the key ring"
        else:
            detail = "key_id is empty: envelopes of fields 1-3 are off"
        raise Refused("signature", detail, key_id)


def _only_compat_fields(envelope: BusEnvelope) -> bool:
    return all(field.number <= 3 for field, _ in envelope.ListFields())


def _refuse_entry_ahead(entry_id: str, ahead_ms: int) -> NoReturn:
    # Such an id would move the end of every window of this stream.
    detail = f"entry id {entry_id} is {ahead_ms / 1000:.1f} s ahead of the server"
    raise IdAhead("future", detail)


def _refuse_audience(audience: str, stream: str, key_id: str) -> NoReturn:
    detail = f"audience {audience[:200]!r} is not the stream {stream!r}"
    raise Refused("audience", detail, key_id)


def _refuse_delay(delay_ns: int) -> NoReturn:
    seconds = abs(delay_ns) / 1e9
    if delay_ns > 0:
        limit = FRESH_BACK_MS // 1000
        detail = f"sealed {seconds:.1f} s before the server took it; at most {limit} s"
        raise Refused("stale", detail)
    limit = FRESH_AHEAD_MS // 1000
    raise Refused("future", f"sealed {seconds:.1f} s after the server took it; at most {limit} s")


def _refuse_priority(number: int) -> NoReturn:
    try:
        parse_enum(MessagePriority, number)
    except ValueError as error:
        raise Refused("malformed", f"BusEnvelope.priority: {error}") from None
    raise AssertionError(number)


def _dated(message: Message, envelope: BusEnvelope, issued_at_ns: int) -> Opened:
    sent = encode(message)
    try:
        date(message, issued_at_ns)
    except ValueError as error:
        raise Refused("malformed", f"BusEnvelope.issued_at_ns: {error}") from None
    return Opened(message, envelope, issued_at_ns, sent)
