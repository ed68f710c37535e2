"""Entries that no friend would send: a seeded stream of them, for the tests and for the bench.

Every kind is a method of :class:`Hostile`. Most are cheap and come often; those that cost a
megabyte or many thousands of parts are rare, as they would be for whoever has to send them.
"""

from __future__ import annotations

import base64
import random
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

from google.protobuf.message import Message

from tests.oona.hostile_json import MEGABYTE, Fields, HostileJson
from tolaria_bus.leyline import (
    AdaptationCommand,
    BusEnvelope,
    BusMessageType,
    CommandOptimizerAdjustment,
    CommandType,
    MetricPoint,
    TelemetryPacket,
)
from tolaria_bus.oona.sealing import seal
from tolaria_bus.oona.trust import KeyRing

GOOD_EVERY = 8
"""One entry of so many is a good command."""
RARE = 400
"""One entry of so many is a big one."""


@dataclass(frozen=True)
class Sent:
    """One entry to be added.

    Attributes:
        kind: What is wrong with it; ``good`` if nothing is.
        fields: Its fields; a name may come twice.
        command_id: Of a good one.
    """

    kind: str
    fields: Fields = field(repr=False)
    command_id: str = ""


class Hostile(HostileJson):
    """Makes entries for one stream, the same kinds in the same order for the same seed.

    Args:
        seed: Of everything but nonces, ids and times.
        stream: Where the entries are sent.
        ring: What the reader trusts; a hostile sender may have the key as well.
    """

    def __init__(self, seed: int, stream: str, ring: KeyRing) -> None:
        super().__init__(random.Random(seed))
        self._stream = stream
        self._ring = ring
        self._other = KeyRing({"k1": b"another secret of the same name"})
        self._sent: list[Fields] = []
        self._good = 0
        self._often: list[Callable[[], Fields]] = [
            self.any_fields,
            self.any_payload,
            self.no_payload,
            self.flipped,
            self.cut,
            self.extended,
            self.unknown_fields,
            self.wrong_wire_type,
            self.wrong_enum,
            self.wrong_type,
            self.not_utf8,
            self.foreign_key,
            self.unknown_key,
            self.odd_signature,
            self.signed_rubbish,
            self.replayed,
            self.other_audience,
            self.other_time,
            self.odd_nonce,
            self.deep_struct,
            self.absurd_command,
            self.any_json,
            self.bad_json,
        ]
        self._rare: list[Callable[[], Fields]] = [
            self.oversize,
            self.megabyte_of_text,
            self.many_fields,
            self.many_annotations,
            self.many_parts,
            self.megabyte_of_json,
            self.many_json_values,
            self.deep_json,
            self.huge_json_number,
        ]

    def entries(self, count: int) -> Iterator[Sent]:
        """So many entries, good ones among them; first one of every kind."""
        first = [self.good(), *self.each()][:count]
        yield from first
        for number in range(len(first), count):
            if number % GOOD_EVERY == 0:
                yield self.good()
                continue
            rare = self._random.randrange(RARE) == 0
            make = self._random.choice(self._rare if rare else self._often)
            yield Sent(make.__name__, make())

    def each(self) -> Iterator[Sent]:
        """One of every kind."""
        for make in (*self._often, *self._rare):
            yield Sent(make.__name__, make())

    def good(self) -> Sent:
        """A command that has to be handled."""
        self._good += 1
        command_id = f"good-{self._good}"
        command = self._command(command_id)
        sealed = seal(command, stream=self._stream, source="operator/ann", ring=self._ring)
        fields = list(sealed.items())
        if len(self._sent) < 100:
            self._sent.append(fields)
        return Sent("good", fields, command_id)

    # Often.

    def any_fields(self) -> Fields:
        """Random names with random values."""
        names = (b"payload", b"signature", b"json", b"", b"PAYLOAD", b"\xff\x00", b"other")
        return [
            (self._random.choice(names) if self._random.random() < 0.7 else self._bytes(40),
             self._bytes(300))
            for _ in range(self._random.randint(1, 6))
        ]  # fmt: skip

    def any_payload(self) -> Fields:
        """Bytes that were never a message."""
        return [(b"payload", self._bytes(400)), (b"signature", self._bytes(60))]

    def no_payload(self) -> Fields:
        """A signature of nothing, or fields that mean nothing."""
        return [(self._random.choice((b"signature", b"type", b"data")), self._bytes(60))]

    def flipped(self) -> Fields:
        """A good envelope with some bits changed."""
        payload = bytearray(self._payload())
        for _ in range(self._random.randint(1, 8)):
            payload[self._random.randrange(len(payload))] ^= 1 << self._random.randrange(8)
        return self._maybe_signed(bytes(payload))

    def cut(self) -> Fields:
        """A good envelope without its end."""
        payload = self._payload()
        return self._maybe_signed(payload[: self._random.randrange(len(payload))])

    def extended(self) -> Fields:
        """A good envelope with rubbish before or behind it."""
        payload, more = self._payload(), self._bytes(80)
        return self._maybe_signed(more + payload if self._random.random() < 0.3 else payload + more)

    def unknown_fields(self) -> Fields:
        """Fields that no contract has, some of them many times."""
        more = b"".join(
            _bytes_field(self._random.randint(30, 5000), self._bytes(30))
            for _ in range(self._random.randint(1, 40))
        )
        return self._maybe_signed(self._payload() + more)

    def wrong_wire_type(self) -> Fields:
        """A known field's number with another wire type, groups that don't end among them."""
        number = self._random.choice((1, 2, 3, 10, 11, 12, 15, 16))
        tag = _varint(number << 3 | self._random.randrange(8))
        return self._maybe_signed(self._payload() + tag + self._bytes(20))

    def wrong_enum(self) -> Fields:
        """Enum values that have no name."""
        value = self._random.choice((77, 1 << 20, (1 << 31) - 1, -1))
        command = self._command("enum")
        match self._random.randrange(3):
            case 0:
                command.command_type = value  # type: ignore[assignment]
            case 1:
                command.seed_operation.operation = value  # type: ignore[assignment]
            case _:
                return self._changed(command, priority=value)
        return self._changed(command)

    def wrong_type(self) -> Fields:
        """Another kind of message than the stream carries, or one that is no kind."""
        number = self._random.choice((0, 1, 3, 4, 6, 10, 30, 31, 99, (1 << 31) - 1))
        if number == BusMessageType.BUS_MESSAGE_TYPE_TELEMETRY:
            return self._changed(TelemetryPacket(metrics=[MetricPoint(name="x")]))
        return self._changed(self._command("type"), message_type=number)

    def not_utf8(self) -> Fields:
        """Text that isn't UTF-8, in the envelope and in the message."""
        text = self._random.choice((b"\xff\xfe", b"\xed\xa0\x80", b"\xc0\x80", b"ok\x80"))
        if self._random.random() < 0.5:
            number = self._random.choice((10, 13, 14, 15, 17))
            return self._maybe_signed(self._payload() + _bytes_field(number, text))
        return self._changed(self._command("utf8"), payload=_bytes_field(2, text))

    def foreign_key(self) -> Fields:
        """Signed by somebody whose key has the same name."""
        sealed = seal(self._command("foreign"), stream=self._stream, source="x", ring=self._other)
        return list(sealed.items())

    def unknown_key(self) -> Fields:
        """Signed with a key that nobody has heard of, or that has no name."""
        key_id = self._random.choice(("", "k9", "\x00", "ключ", "k" * 500))
        return self._changed(self._command("unknown"), key_id=key_id)

    def odd_signature(self) -> Fields:
        """The right signature written otherwise, or something that is none."""
        payload = self._payload()
        right = self._ring.sign(payload)[1] if self._ring.enabled else b"c2lnbmF0dXJl"
        raw = base64.b64decode(right)
        odd = self._random.choice(
            (
                b"", raw, raw.hex().encode(), right.rstrip(b"="), right + b"=", right + b"\n",
                b" " + right, right.lower(), right.swapcase(), right * 2, b"\xff" * 44, b"\x00",
                b"A" * 10_000, right[:-4] + b"!!!!",
            )
        )  # fmt: skip
        return [(b"payload", payload), (b"signature", odd)]

    def signed_rubbish(self) -> Fields:
        """Somebody who has the key sends nonsense."""
        if self._random.random() < 0.5:
            return self._signed(self._bytes(200))
        return self._changed(self._command("rubbish"), payload=self._bytes(200))

    def replayed(self) -> Fields:
        """A good entry a second time."""
        return list(self._random.choice(self._sent)) if self._sent else self.any_fields()

    def other_audience(self) -> Fields:
        """Sealed for another stream."""
        audience = self._random.choice(("", "oona:{other}:control", self._stream + " ", "x" * 3000))
        return self._changed(self._command("audience"), audience=audience)

    def other_time(self) -> Fields:
        """Sealed long ago, or in times to come."""
        shift = self._random.choice((-3_600, -61, 6, 3_600, 10**9))
        issued = self._random.choice((0, 1, (1 << 64) - 1, time.time_ns() + shift * 10**9))
        return self._changed(self._command("time"), issued_at_ns=issued)

    def odd_nonce(self) -> Fields:
        """A nonce of any length."""
        return self._changed(self._command("nonce"), nonce=self._bytes(40))

    def deep_struct(self) -> Fields:
        """Lists in lists in lists."""
        value = b""
        for _ in range(self._random.choice((5, 30, 45, 60, 100, 1000))):
            value = _bytes_field(6, _bytes_field(1, value))
        struct = _bytes_field(1, _bytes_field(1, b"a") + _bytes_field(2, value))
        return self._changed(
            self._command("deep"), payload=_bytes_field(2, b"deep") + _bytes_field(13, struct)
        )

    def absurd_command(self) -> Fields:
        """A command that says what nobody can mean."""
        command = self._command("absurd")
        numbers = (float("nan"), float("inf"), -float("inf"), 1e308, -0.0, 5e-324)
        match self._random.randrange(5):
            case 0:
                command.command_id = ""
            case 1:
                command.command_id = "\n" * 5000
            case 2:
                command.issued_at.seconds = self._random.choice((-(1 << 62), (1 << 62)))
                command.issued_at.nanos = -1
            case 3:
                adjustment = CommandOptimizerAdjustment(optimizer_id="\x00")
                for number in numbers:
                    adjustment.hyperparameters[f"lr{number}"] = max(min(number, 3e38), -3e38)
                    adjustment.values[f"lr{number}"] = number
                command.optimizer_adjustment.CopyFrom(adjustment)
            case _:
                command.annotations["at_step"] = "9" * 5000
                command.execution_deadline_ms = (1 << 32) - 1
        return self._changed(command)

    # Rare.

    def oversize(self) -> Fields:
        """A little or a lot over the limit."""
        size = MEGABYTE + self._random.choice((1, 1000, MEGABYTE))
        return self._signed(self._payload() + _bytes_field(99, bytes(size)))

    def megabyte_of_text(self) -> Fields:
        """Just under the limit, all of it one text."""
        return self._changed(self._command("x" * (MEGABYTE - 500)))

    def many_fields(self) -> Fields:
        """An entry of very many fields."""
        return [(b"%d" % number, b"") for number in range(200_000)]

    def many_annotations(self) -> Fields:
        """A map as large as fits."""
        command = self._command("many")
        for number in range(90_000):
            command.annotations[f"{number:x}"] = ""
        return self._changed(command)

    def many_parts(self) -> Fields:
        """Very many empty messages in one."""
        number, tag = self._random.choice(((1, b"\x42"), (4, b"\xa2\x01"), (4, b"\x52")))
        one = tag + b"\x00"
        return self._changed(
            self._command("parts"),
            message_type=number,
            payload=one * ((MEGABYTE - 500) // len(one)),
        )

    # What they are made of.

    def _command(self, command_id: str) -> AdaptationCommand:
        return AdaptationCommand(
            version=1, command_id=command_id, command_type=CommandType.COMMAND_PAUSE
        )

    def _payload(self) -> bytes:
        sealed = seal(
            self._command("mutated"), stream=self._stream, source="operator/eve", ring=self._ring
        )
        return sealed[b"payload"]

    def _changed(self, message: Message, **values: object) -> Fields:
        """A sealed message with other values in its envelope, signed by who has the key."""
        sealed = seal(message, stream=self._stream, source="operator/eve", ring=self._ring)
        envelope = BusEnvelope.FromString(sealed[b"payload"])
        for name, value in values.items():
            setattr(envelope, name, value)
        return self._signed(envelope.SerializeToString(deterministic=True))

    def _maybe_signed(self, payload: bytes) -> Fields:
        if self._random.random() < 0.7:
            return self._signed(payload)
        return [(b"payload", payload), (b"signature", b"AAAA")]

    def _signed(self, payload: bytes) -> Fields:
        if not self._ring.enabled:
            return [(b"payload", payload)]
        return [(b"payload", payload), (b"signature", self._ring.sign(payload)[1])]


def _varint(number: int) -> bytes:
    parts = bytearray()
    while number > 0x7F:
        parts.append(number & 0x7F | 0x80)
        number >>= 7
    parts.append(number)
    return bytes(parts)


def _bytes_field(number: int, value: bytes) -> bytes:
    return _varint(number << 3 | 2) + _varint(len(value)) + value
