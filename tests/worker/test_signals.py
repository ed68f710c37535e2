"""Which signals a worker obeys, and which it takes for broken."""

from __future__ import annotations

from datetime import timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from redis.asyncio import Redis

from tests.oona.bus import EMERGENCY, RUN, SOON, STREAMS, letters, messages, send, until
from tests.worker.test_drain import bus
from tolaria_bus.leyline import EmergencyLevel, EmergencySignal
from tolaria_bus.safety.emergency_signal import checksum
from tolaria_bus.tolaria.control.mailbox import Mailbox, RecordingOutbound
from tolaria_bus.tolaria.control.telemetry import Telemetry


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
