"""Which signals a worker obeys, and which it takes for broken."""

from __future__ import annotations

from datetime import timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from redis.asyncio import Redis

from tests.oona.bus import (
    EMERGENCY,
    RUN,
    SOON,
    STREAMS,
    alert,
    entries,
    letters,
    messages,
    send,
    until,
)
from tests.worker.test_drain import bus
from tolaria_bus.leyline import (
    BusEnvelope,
    BusMessageType,
    EmergencyLevel,
    EmergencySignal,
    TelemetryPacket,
)
from tolaria_bus.oona.trust import KeyRing
from tolaria_bus.safety.emergency_signal import checksum
from tolaria_bus.tolaria.control.mailbox import Mailbox, RecordingOutbound
from tolaria_bus.tolaria.control.telemetry import Telemetry
from tolaria_bus.worker.emergency_times import EmergencyTimes


def signal(signal_id: str, **values: Any) -> EmergencySignal:
    """One that every run has to obey."""
    made = EmergencySignal(level=EmergencyLevel.EMERGENCY_LEVEL_HALT, **values)
    made.triggered_at.GetCurrentTime()
    made.attributes.update(scope="all", signal_id=signal_id, more="x", and_more="y")
    return made


@pytest.mark.parametrize("own", [False, True])
async def test_a_signal_whose_checksum_is_wrong_is_a_dead_letter_and_one_without_is_obeyed(
    redis: Redis, redis_url: str, tmp_path: Path, own: bool
):
    mailbox = Mailbox()
    wrong = signal("wrong", payload_checksum=b"0" * 32, origin=f"run/{RUN}" if own else "x")
    right = signal("right", reason="too hot")
    right.payload_checksum = checksum(right)
    async with bus(redis_url, tmp_path, mailbox) as made:
        for one in (wrong, right, signal("none")):
            await send(redis, EMERGENCY, one)
        taken: list[str] = []

        def both() -> bool:
            taken.extend(delivery.command.command_id for delivery in mailbox.take())
            return len(taken) == 2

        await until(both)
        assert sorted(taken) == ["signal:none", "signal:right"]
        (letter,) = await letters(redis, EMERGENCY)
        assert letter.reason == "malformed"
        assert "payload_checksum" in letter.detail
        await made.drain(timedelta(seconds=SOON))
    packets = await messages(redis, STREAMS.telemetry(RUN))
    told = [event for packet in packets for event in packet.events]
    (dead,) = [event.attributes for event in told if event.event_id == "dead_letter"]
    assert "payload_checksum" in dead["detail"]


def test_a_signal_of_a_run_has_the_checksum_that_others_want():
    outbound = RecordingOutbound()
    nowhere: Any = SimpleNamespace(step=0, timeline=1)
    telemetry = Telemetry(outbound, RUN, nowhere)
    halt = EmergencyLevel.EMERGENCY_LEVEL_HALT
    telemetry.emergency(halt, "fire", scope="pattern", runs="r*")
    (sent,) = outbound.signals
    assert sent.payload_checksum == checksum(sent)


RIGHT = KeyRing({"k1": b"the right secret"})
WRONG = KeyRing({"k1": b"another secret"})


async def refused(redis: Redis) -> list[tuple[str, int]]:
    """The reasons in alerts about signals, and for how many each alert stands."""
    found = [
        BusEnvelope.FromString(fields.get(b"payload", b""))
        for _, fields in await entries(redis, EMERGENCY)
    ]
    packets = [
        TelemetryPacket.FromString(envelope.payload)
        for envelope in found
        if envelope.message_type == BusMessageType.BUS_MESSAGE_TYPE_TELEMETRY
    ]
    return [
        (event.attributes["reason"], max(1, packet.folded))
        for packet in packets
        for event in packet.events
        if event.event_id == "signal_refused"
    ]


async def test_a_forged_signal_does_nothing_but_alert_and_many_are_one_alert(
    redis: Redis, redis_url: str, tmp_path: Path
):
    mailbox = Mailbox()
    async with bus(redis_url, tmp_path, mailbox, RIGHT) as made:
        for number in range(20):
            await send(redis, EMERGENCY, signal(f"forged{number}"), WRONG)
        await redis.xadd(EMERGENCY, {"json": '{"level": "HALT", "attributes": {"scope": "all"}}'})
        # An alert of somebody with another key is no signal: two that don't trust each other
        # would go on for ever.
        await send(redis, EMERGENCY, alert("hot"), WRONG)
        await send(redis, EMERGENCY, signal("right"), RIGHT)
        await until(lambda: mailbox.waiting)
        (delivery,) = mailbox.take()
        assert delivery.command.command_id == "signal:right"
        await made.drain(timedelta(seconds=SOON))
    found = await refused(redis)
    assert sum(count for _, count in found) == 21
    assert len(found) < 21
    assert {reason for reason, _ in found} == {"signature"}


@pytest.mark.parametrize(
    ("attributes", "says"),
    [({"scope": "everybody"}, "everybody"), ({"scope": "pattern"}, "glob"),
     ({"scope": "all", "runs": "x*"}, "glob")],
)  # fmt: skip
async def test_a_signal_whose_scope_means_nothing_is_a_dead_letter_with_an_alert(
    redis: Redis, redis_url: str, tmp_path: Path, attributes: dict[str, str], says: str
):
    mailbox = Mailbox()
    odd = signal("odd")
    odd.attributes.update(attributes)
    async with bus(redis_url, tmp_path, mailbox) as made:
        await send(redis, EMERGENCY, odd)
        await send(redis, EMERGENCY, signal("right"))
        await until(lambda: mailbox.waiting)
        assert [item.command.command_id for item in mailbox.take()] == ["signal:right"]
        (letter,) = await letters(redis, EMERGENCY)
        assert (letter.reason, says in letter.detail) == ("malformed", True)
        await made.drain(timedelta(seconds=SOON))
    assert await refused(redis) == [("malformed", 1)]


async def test_how_long_a_signal_took_to_the_stream_is_published_and_too_long_is_told(
    redis: Redis, redis_url: str, tmp_path: Path
):
    quick, slow = signal("quick"), signal("slow")
    now = 100.0
    async with bus(redis_url, tmp_path, Mailbox()) as made:
        times = EmergencyTimes(
            RUN,
            lambda packet: made.outbound.telemetry(packet, packet.priority),
            monotonic=lambda: now,
        )
        made.outbound.emergency(quick)
        for one, seconds in ((quick, 0.01), (slow, 0.2)):
            times.began(one)
            now += seconds
            times.published(one.attributes["signal_id"])
        await until(lambda: made.outbound.times.idle)
        await made.drain(timedelta(seconds=SOON))
    packets = await messages(redis, STREAMS.telemetry(RUN), TelemetryPacket)
    took = [
        (round(metric.value), metric.attributes["level"])
        for packet in packets
        for metric in packet.metrics
        if metric.name == "tolaria.emergency.published_ms"
    ]
    # The third is the real one: whatever it took.
    assert len(took) == 3
    assert {(10, "halt"), (200, "halt")} <= set(took)
    late = [event for packet in packets for event in packet.events if "slow" in str(event)]
    assert [event.event_id for event in late] == ["emergency_late"]
    assert late[0].attributes["limit_seconds"] == "0.1"


def test_signals_that_are_never_published_take_no_memory() -> None:
    times = EmergencyTimes(RUN, lambda packet: None)
    for number in range(1000):
        times.began(signal(f"s{number}"))
    assert not times.idle
    for number in range(256):
        times.published(f"s{number}")
    assert times.idle
