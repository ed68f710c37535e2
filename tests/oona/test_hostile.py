"""Whatever is written to a stream: no crash, no hang, and an end with a reason for every entry."""

import time
from collections.abc import AsyncIterator, Callable

import pytest
from redis.asyncio import Redis

from tests.oona.bus import CONTROL
from tests.oona.hostile import GOOD_EVERY, Hostile
from tests.oona.onslaught import onslaught
from tolaria_bus.leyline import (
    AdaptationCommand,
    SystemStatePacket,
    TelemetryPacket,
)
from tolaria_bus.leyline.codec import MAX_MESSAGE_BYTES, CodecError, decode, from_json
from tolaria_bus.oona.opening import REFUSED_REASONS, Opener, Refused
from tolaria_bus.oona.trust import KeyRing, NonceWindow

KEYS = {"k1": b"0123456789abcdef"}
SIGNED = KeyRing(dict(KEYS))
OFF = KeyRing()
ROOM = MAX_MESSAGE_BYTES - 64
ENTRIES = 5_000
"""For each of two passes."""
HANG = 30.0
"""Seconds of this thread's own work that are no work any more: all of these take some 0.1 s, and
what is quadratic in a megabyte takes hours."""


@pytest.fixture
async def unsynced(redis: Redis) -> AsyncIterator[None]:
    """The server doesn't wait for its disk: nobody looks at what it keeps of all the megabytes."""
    await redis.config_set("appendfsync", "no")
    yield
    await redis.config_set("appendfsync", "always")


@pytest.mark.slow
@pytest.mark.usefixtures("unsynced")
@pytest.mark.parametrize("keys", [KEYS, {}], ids=["signed", "unsigned"])
async def test_every_hostile_entry_is_handled_or_dead_and_nothing_else_happens(
    redis_url: str, keys: dict[str, bytes]
):
    found = await onslaught(redis_url, CONTROL, keys, ENTRIES, seed=1)
    assert found.wrong == []
    assert found.handled + sum(found.dead.values()) == sum(found.sent.values()) == ENTRIES
    assert found.sent["good"] > ENTRIES // GOOD_EVERY - 10
    expected = {"malformed", "oversize", "type", "audience", "stale", "future"}
    assert found.dead.keys() == expected | ({"signature", "replay"} if keys else set())
    # Once a window, however many there are.
    assert 1 <= found.told["bad_signatures"] <= 5 if keys else True
    # Of the process that reads, and does nothing else. Frames that held what they had refused cost
    # 60 MiB and more.
    assert found.growth < 16 << 20
    assert found.swing < 96 << 20


@pytest.mark.parametrize("ring", [SIGNED, OFF], ids=["signed", "unsigned"])
@pytest.mark.parametrize("kind", [sent.kind for sent in Hostile(0, CONTROL, OFF).each()])
def test_every_kind_is_opened_or_refused_in_little_time(kind: str, ring: KeyRing):
    hostile = Hostile(7, CONTROL, ring)
    opener = Opener(ring, NonceWindow())
    for number in range(5):
        fields = dict(getattr(hostile, kind)())
        began = time.thread_time()
        try:
            opener.open(CONTROL, f"{time.time_ns() // 1_000_000}-{number}", fields)
        except Refused as refused:
            assert refused.reason in REFUSED_REASONS  # noqa: PT017 - either way is right
        assert time.thread_time() - began < HANG


def repeated(one: bytes) -> bytes:
    return one * (ROOM // len(one))


@pytest.mark.parametrize(
    ("data", "kind"),
    [
        (repeated(b"\x42\x00"), SystemStatePacket),
        (repeated(b"\x52\x00"), TelemetryPacket),
        (repeated(b"\xa2\x01\x00"), TelemetryPacket),
        (repeated(b"\xf2\x01\x00"), TelemetryPacket),
        (repeated(b"\xa2\x01\x00"), AdaptationCommand),
        (repeated(b"\xa3\x06"), AdaptationCommand),
        (repeated(b"\xf8\x07\x01"), AdaptationCommand),
        (repeated(b"\x52\x00"), AdaptationCommand),
    ],
    ids=["seeds", "metrics", "events", "spans", "map", "groups", "unknown", "oneof"],
)
def test_a_megabyte_of_the_worst_bytes_is_read_or_refused_in_little_time(
    data: bytes, kind: type[AdaptationCommand]
):
    quickly(lambda: decode(data, kind))


def items(before: bytes, one: bytes, after: bytes) -> bytes:
    room = ROOM - len(before) - len(after)
    return before + b",".join([one] * (room // (len(one) + 1))) + after


@pytest.mark.parametrize(
    ("text", "kind"),
    [
        (items(b'{"rollbackPayload":{"a":[', b"0", b"]}}"), AdaptationCommand),
        (items(b'{"rollbackPayload":{"a":[', b"{}", b"]}}"), AdaptationCommand),
        (items(b'{"seedStates":[', b"{}", b"]}"), SystemStatePacket),
        (items(b'{"seedStates":[', b'{"stage":1}', b"]}"), SystemStatePacket),
        (items(b'{"spans":[', b'{"startTime":"2030-01-01T00:00:00Z"}', b"]}"), TelemetryPacket),
        (items(b"{", b'"version":1', b"}"), AdaptationCommand),
        (b"[" * (ROOM // 2) + b"]" * (ROOM // 2), AdaptationCommand),
        (b'{"commandType":"' + b"x" * ROOM + b'"}', AdaptationCommand),
        (b'{"' + b"x" * ROOM + b'":1}', AdaptationCommand),
        (b'{"issuedAt":"' + b"1" * ROOM + b'"}', AdaptationCommand),
        (b'{"version":' + b"9" * ROOM + b"}", AdaptationCommand),
    ],
    ids=[
        "numbers", "objects", "seeds", "enums", "times", "repeated key", "nesting", "enum name",
        "field name", "time", "number",
    ],
)  # fmt: skip
def test_a_megabyte_of_the_worst_json_is_read_or_refused_in_little_time(
    text: bytes, kind: type[AdaptationCommand]
):
    quickly(lambda: from_json(text, kind))


def quickly(read: Callable[[], object]) -> None:
    began = time.thread_time()
    try:
        read()
    except CodecError as error:
        assert (error.reason, len(error.detail) < 2000) == ("malformed", True)  # noqa: PT017
    assert time.thread_time() - began < HANG
