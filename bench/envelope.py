"""Envelope: serialise, sign and open one message, against protobuf and HMAC alone."""

from __future__ import annotations

import hashlib
import hmac
import os
import time
from base64 import b64encode

from bench.harness import Result, compare, interleave, microseconds, single
from bench.messages import telemetry
from tolaria_bus.leyline import BusEnvelope, BusMessageType, TelemetryPacket
from tolaria_bus.oona.envelope import Opener, seal
from tolaria_bus.oona.trust import KeyRing

ROUNDS = 9
CALLS = 4000
STREAM = "oona:{digits}:telemetry"
STEP = 100_000
"""Numbers take more bytes the larger they are: that of a run on its way."""


def run() -> Result:
    """Seal and open a typical telemetry packet, signed and unsigned."""
    result = Result("envelope", f"one telemetry packet of two metrics, at step {STEP:,}")
    secret = os.urandom(32)
    signed = KeyRing.parse(f"k1:{b64encode(secret).decode()}")
    unsigned = KeyRing()
    packet = telemetry(STEP)

    def bare_seal() -> bytes:
        payload = _bare_envelope(packet).SerializeToString()
        b64encode(hmac.digest(secret, payload, hashlib.sha256))
        return payload

    timings = interleave(
        {
            "signed": lambda: microseconds(lambda: _seal(packet, signed), CALLS),
            "unsigned": lambda: microseconds(lambda: _seal(packet, unsigned), CALLS),
            "bare": lambda: microseconds(bare_seal, CALLS),
        },
        ROUNDS,
    )
    result.figures.append(
        compare(
            "seal, signed; baseline: protobuf + HMAC, no checks",
            timings["signed"],
            timings["bare"],
            "us",
            goal="< 80 us",
        )
    )
    result.figures.append(single("seal, unsigned", timings["unsigned"], "us"))

    fields = _seal(packet, signed)
    entry = f"{time.time_ns() // 1_000_000}-0"
    # Without a window of nonces: the same entry is opened again and again.
    opener = Opener(signed, None)

    def bare_open() -> None:
        hmac.digest(secret, fields[b"payload"], hashlib.sha256)
        TelemetryPacket.FromString(BusEnvelope.FromString(fields[b"payload"]).payload)

    timings = interleave(
        {
            "open": lambda: microseconds(lambda: opener.open(STREAM, entry, fields), CALLS),
            "bare": lambda: microseconds(bare_open, CALLS),
        },
        ROUNDS,
    )
    result.figures.append(
        compare(
            "open and verify; baseline: HMAC + protobuf, no checks",
            timings["open"],
            timings["bare"],
            "us",
        )
    )
    for name, ring in (("signed", signed), ("unsigned", unsigned)):
        size = sum(len(key) + len(value) for key, value in _seal(packet, ring).items())
        goal = "< 280 bytes" if name == "signed" else ""
        result.figures.append(single(f"entry, {name}", [float(size)], "bytes", goal=goal))
    payload = float(len(packet.SerializeToString()))
    result.figures.append(single("the packet in it", [payload], "bytes"))
    return result


def _seal(packet: TelemetryPacket, ring: KeyRing) -> dict[bytes, bytes]:
    # As the worker sends it.
    return seal(packet, stream=STREAM, source="run/digits", ring=ring, message_id=packet.packet_id)


def _bare_envelope(packet: TelemetryPacket) -> BusEnvelope:
    return BusEnvelope(
        message_type=BusMessageType.BUS_MESSAGE_TYPE_TELEMETRY,
        payload=packet.SerializeToString(),
        message_id="bench-0000000000",
        issued_at_ns=time.time_ns(),
        nonce=os.urandom(16),
        key_id="bench",
        source="run/bench",
        audience=STREAM,
    )
