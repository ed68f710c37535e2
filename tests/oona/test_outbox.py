"""The outbox takes packets from any thread, sheds by priority, and loses nothing that matters."""

import os
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tolaria_bus.leyline import (
    CommandOutcome,
    MessagePriority,
    MetricPoint,
    Settlement,
    TelemetryEvent,
    TelemetryLevel,
    TelemetryPacket,
)
from tolaria_bus.leyline.codec import MAX_MESSAGE_BYTES, CodecError, decode
from tolaria_bus.oona.lanes import Packet
from tolaria_bus.oona.outbox import Outbox
from tolaria_bus.oona.sealing import seal_envelope
from tolaria_bus.oona.spool import Spool
from tolaria_bus.oona.streams import Streams
from tolaria_bus.oona.trust import KeyRing

LOW = MessagePriority.MESSAGE_PRIORITY_LOW
NORMAL = MessagePriority.MESSAGE_PRIORITY_NORMAL
HIGH = MessagePriority.MESSAGE_PRIORITY_HIGH
CRITICAL = MessagePriority.MESSAGE_PRIORITY_CRITICAL
STREAMS = Streams()
TELEMETRY = STREAMS.telemetry("r")
OUTCOMES = STREAMS.outcomes("r")


@pytest.fixture
def spool(tmp_path: Path) -> Iterator[Spool]:
    with Spool(tmp_path / "spool") as spool:
        yield spool


def outbox(capacity: int = 100, spool: Spool | None = None) -> Outbox:
    return Outbox(capacity, spool, STREAMS, "r")


def metric(value: float = 1.0) -> TelemetryPacket:
    return TelemetryPacket(metrics=[MetricPoint(name="m", value=value)])


def alert(name: str, step: int = 0) -> TelemetryPacket:
    level = TelemetryLevel.TELEMETRY_LEVEL_ERROR
    return TelemetryPacket(global_step=step, events=[TelemetryEvent(event_id=name, level=level)])


def take_all(box: Outbox) -> list[Packet]:
    return box.take(box.emergency, 10_000) + box.take(box.bulk, 10_000)


def test_low_is_taken_until_half_full_and_normal_until_three_quarters():
    box = outbox(100)
    taken = [box.put(metric(), stream=TELEMETRY, priority=LOW) for _ in range(80)]
    assert sum(taken) == 50
    taken = [box.put(metric(), stream=TELEMETRY, priority=NORMAL) for _ in range(80)]
    assert sum(taken) == 25
    assert box.shed == {LOW: 30, NORMAL: 55}
    assert box.depth == 75


def test_high_and_durable_packets_are_never_refused(spool: Spool):
    box = outbox(4, spool)
    for n in range(50):
        assert box.put(alert(f"a{n}"), stream=STREAMS.emergency, priority=CRITICAL)
        assert box.put(CommandOutcome(), stream=OUTCOMES, priority=NORMAL, durable=True)
    assert box.depth == len(spool) == 100
    assert not box.shed


def test_packets_being_sent_count_until_they_are_delivered():
    box = outbox(4)
    box.put(metric(), stream=TELEMETRY, priority=LOW)
    box.put(metric(), stream=TELEMETRY, priority=LOW)
    packets = take_all(box)
    assert not box.put(metric(), stream=TELEMETRY, priority=LOW)
    for packet in packets:
        box.delivered(packet)
    assert box.put(metric(), stream=TELEMETRY, priority=LOW)


def test_the_emergency_stream_has_its_own_lane():
    box = outbox()
    box.put(metric(), stream=TELEMETRY, priority=NORMAL)
    box.put(alert("a"), stream=STREAMS.emergency, priority=HIGH)
    assert (len(box.emergency), len(box.bulk)) == (1, 1)


def test_what_may_not_be_lost_goes_before_the_rest_of_its_lane():
    box = outbox()
    for n in range(3):
        box.put(metric(), stream=TELEMETRY, priority=NORMAL, message_id=f"t{n}")
        box.put(
            CommandOutcome(), stream=OUTCOMES, priority=NORMAL, durable=True, message_id=f"o{n}"
        )
    assert [p.message_id for p in take_all(box)] == ["o0", "o1", "o2", "t0", "t1", "t2"]


def test_what_comes_back_is_the_next_to_go_in_the_same_order():
    box = outbox()
    for n in range(5):
        box.put(metric(), stream=TELEMETRY, priority=NORMAL, message_id=str(n))
    box.give_back(box.bulk, box.take(box.bulk, 3))
    assert [packet.message_id for packet in take_all(box)] == list("01234")


class Clock:
    now = 100.0

    def __call__(self) -> float:
        return self.now


def ids(packets: list[Packet]) -> list[str]:
    return [packet.message_id for packet in packets]


def put_for(box: Outbox, *letters: str) -> None:
    for letter in letters:
        box.put(metric(), stream=letter[0], priority=NORMAL, message_id=letter)


def refuse(box: Outbox, packets: list[Packet], stream: str) -> None:
    """The server took what isn't for this stream."""
    for packet in packets:
        if packet.stream != stream:
            box.delivered(packet)
    box.answered(box.bulk, packets, {stream: False})
    box.give_back(box.bulk, packets)


def test_a_refused_stream_is_set_aside_and_tried_with_one_packet_when_it_is_due():
    clock = Clock()
    box = Outbox(100, None, STREAMS, "r", monotonic=clock)
    put_for(box, "a1", "b1", "a2", "a3", "b2")
    refuse(box, box.take(box.bulk, 3), "a")
    assert ids(box.take(box.bulk, 10)) == ["b2"]
    put_for(box, "a4", "b3")
    assert ids(box.take(box.bulk, 10)) == ["b3"]
    assert box.take(box.bulk, 10) == []
    assert 0 < (box.bulk.due_in() or 0) < 1
    clock.now += 1
    assert box.bulk.due_in() == 0
    put_for(box, "b4")
    probe = box.take(box.bulk, 10)
    assert ids(probe) == ["a1", "b4"]
    # Nothing may overtake it.
    assert (box.take(box.bulk, 10), box.bulk.due_in()) == ([], None)
    refuse(box, probe, "a")
    assert (box.take(box.bulk, 10), box.bulk.set_aside) == ([], 1)
    clock.now += 1
    probe = box.take(box.bulk, 10)
    box.delivered(probe[0])
    box.answered(box.bulk, probe, {})
    put_for(box, "a5")
    assert ids(box.take(box.bulk, 10)) == ["a2", "a3", "a4", "a5"]
    assert (box.bulk.set_aside, box.bulk.due_in()) == (0, None)


def test_a_stream_whose_trial_got_no_answer_is_tried_again_at_once():
    clock = Clock()
    box = Outbox(100, None, STREAMS, "r", monotonic=clock)
    put_for(box, "a1", "a2")
    refuse(box, box.take(box.bulk, 1), "a")
    clock.now += 1
    for _ in range(2):
        probe = box.take(box.bulk, 10)
        assert ids(probe) == ["a1"]
        box.give_back(box.bulk, probe)
        assert box.bulk.due_in() == 0
    # Also where it got there, and only the rest of the answer is missing.
    probe = box.take(box.bulk, 10)
    box.delivered(probe[0])
    box.give_back(box.bulk, probe)
    assert ids(box.take(box.bulk, 10)) == ["a2"]


def test_an_envelope_says_who_what_and_in_answer_to_what():
    box = outbox()
    box.put(
        CommandOutcome(command_id="c"),
        stream=OUTCOMES,
        priority=HIGH,
        message_id="m",
        correlation_id="c",
    )
    envelope = box.envelope(take_all(box)[0])
    assert (envelope.source, envelope.message_id, envelope.correlation_id, envelope.priority) == (
        "run/r",
        "m",
        "c",
        HIGH,
    )
    assert decode(envelope.payload, CommandOutcome).command_id == "c"


def test_ids_made_here_are_all_different():
    box = outbox(10_000)
    for _ in range(1000):
        box.put(metric(), stream=TELEMETRY, priority=NORMAL)
    packets = take_all(box)
    ids = [box.envelope(packet).message_id for packet in packets]
    assert len(set(ids)) == 1000
    assert [box.envelope(packet).message_id for packet in packets] == ids, "at every attempt"


def test_a_durable_packet_is_on_disk_when_put_returns_and_its_successor_sends_it(spool: Spool):
    settlement = Settlement(stream=STREAMS.control("r"), group="g", entry_id="1-0", delete=True)
    first = outbox(spool=spool)
    first.put(
        CommandOutcome(command_id="c"),
        stream=OUTCOMES,
        priority=NORMAL,
        message_id="m",
        correlation_id="c",
        settlement=settlement,
        durable=True,
    )
    first.put(alert("a"), stream=STREAMS.emergency, priority=HIGH)
    first.put(metric(), stream=TELEMETRY, priority=NORMAL)

    second = outbox(spool=spool)
    assert second.depth == 2
    assert len(second.emergency) == 1
    (packet,) = second.take(second.bulk, 10)
    assert (packet.stream, packet.message_id, packet.settlement) == (OUTCOMES, "m", settlement)
    assert second.envelope(packet) == first.envelope(first.take(first.bulk, 1)[0])

    second.delivered(packet)
    assert len(spool) == 1


def test_a_packet_left_alone_is_still_there_for_the_next_process(spool: Spool):
    box = outbox(spool=spool)
    box.put(CommandOutcome(), stream=OUTCOMES, priority=NORMAL, durable=True)
    box.leave(take_all(box)[0])
    assert (box.depth, len(spool)) == (0, 1)


def test_a_spool_without_room_costs_durability_but_no_packet(tmp_path: Path):
    with Spool(tmp_path / "spool", 4096) as spool:
        box = outbox(spool=spool)
        notes = CommandOutcome(reason="x" * 5000)
        assert box.put(notes, stream=OUTCOMES, priority=NORMAL, durable=True)
        assert box.unspooled == 1
        assert decode(box.envelope(take_all(box)[0]).payload, CommandOutcome) == notes


def test_records_that_are_no_packets_are_counted_and_left(spool: Spool):
    spool.append(b"\xff\xff\xff")
    box = outbox(spool=spool)
    assert (box.unreadable, box.depth, len(spool)) == (1, 0, 1)


def test_a_durable_message_that_no_reader_would_take_is_refused_at_once(spool: Spool):
    box = outbox(spool=spool)
    with pytest.raises(CodecError):
        box.put(CommandOutcome(reason="x" * (2 << 20)), stream=OUTCOMES, priority=LOW, durable=True)
    assert (box.depth, len(spool), len(box.bulk)) == (0, 0, 0)


@pytest.mark.parametrize("spooled", [True, False])
def test_a_durable_message_is_taken_only_if_it_can_be_sealed(spool: Spool, spooled: bool):
    """At the limit, with the longest of all that is around it."""
    box = outbox(spool=spool if spooled else None)
    ring = KeyRing({"k" * 64: b"secret" * 6})
    refused = taken = 0
    for size in range(MAX_MESSAGE_BYTES - 2000, MAX_MESSAGE_BYTES, 50):
        notes = CommandOutcome(reason="x" * size)
        try:
            box.put(
                notes,
                stream=OUTCOMES,
                priority=HIGH,
                message_id="m" * 100,
                correlation_id="\N{SNOWMAN}" * 100,
            )
        except CodecError:
            refused += 1
            continue
        taken += 1
        (packet,) = box.take(box.bulk, 10)
        seal_envelope(box.envelope(packet), stream=OUTCOMES, ring=ring)
        box.delivered(packet)
    assert refused
    assert taken
    assert (box.depth, len(spool)) == (0, 0)


def test_an_alert_that_is_too_large_is_refused_though_it_repeats_one(spool: Spool):
    box = outbox(spool=spool)
    for _ in range(2):
        box.put(alert("a"), stream=STREAMS.emergency, priority=HIGH)
    large = alert("a")
    large.events[0].description = "x" * (MAX_MESSAGE_BYTES - 100)
    with pytest.raises(CodecError, match="oversize"):
        box.put(large, stream=STREAMS.emergency, priority=HIGH)
    box.release_folded(everything=True)
    packets = take_all(box)
    assert [decode(box.envelope(packet).payload, TelemetryPacket).folded for packet in packets] == [
        0,
        0,
    ]


def test_the_bell_rings_once_for_a_flood_and_again_after_it_was_heard():
    box = outbox(10_000)
    rings: list[int] = []
    box.bulk.bell.attach(lambda: rings.append(box.depth))
    box.put(metric(), stream=TELEMETRY, priority=NORMAL)
    assert rings == []
    box.bulk.bell.arm()
    for _ in range(1000):
        box.put(metric(), stream=TELEMETRY, priority=NORMAL)
    assert rings == [2]
    box.bulk.bell.arm()
    box.put(alert("a"), stream=STREAMS.emergency, priority=HIGH)
    assert rings == [2]
    box.put(metric(), stream=TELEMETRY, priority=NORMAL)
    assert rings == [2, 1003]


def test_a_bell_whose_sleeper_is_gone_raises_nothing():
    def gone() -> None:
        raise RuntimeError("Event loop is closed")

    box = outbox()
    box.bulk.bell.attach(gone)
    box.bulk.bell.arm()
    assert box.put(metric(), stream=TELEMETRY, priority=NORMAL)
    assert box.bulk.bell.failed == 1


def test_threads_put_while_another_takes(spool: Spool):
    box = outbox(1_000_000, spool)
    taken: list[Packet] = []

    def put(own: int) -> None:
        for n in range(500):
            box.put(
                metric(),
                stream=TELEMETRY if n % 3 else OUTCOMES,
                priority=NORMAL,
                message_id=f"{own} {n}",
                durable=n % 3 == 0,
            )

    threads = [threading.Thread(target=put, args=(own,)) for own in range(3)]
    for thread in threads:
        thread.start()
    while any(thread.is_alive() for thread in threads) or len(box.bulk):
        batch = box.take(box.bulk, 64)
        taken += batch
        for packet in batch:
            box.delivered(packet)
    seen = [tuple(map(int, packet.message_id.split())) for packet in taken]
    assert len(seen) == len(set(seen)) == 1500
    for own in range(3):
        durable = [n for who, n in seen if who == own and n % 3 == 0]
        assert durable == sorted(durable)
    assert (box.depth, len(spool)) == (0, 0)


def test_put_takes_microseconds_and_waits_for_no_disk(
    spool: Spool, monkeypatch: pytest.MonkeyPatch
):
    """Of this thread's own work: what else the machine does is no matter of ours."""
    for sync in ("fsync", "fdatasync"):
        monkeypatch.setattr(os, sync, lambda _: pytest.fail("put waits for the disk"))
    box = outbox(1_000_000, spool)
    packets = [metric(n) for n in range(3000)]

    def each(durable: bool) -> float:
        start = time.thread_time()
        for packet in packets:
            box.put(packet, stream=TELEMETRY, priority=NORMAL, durable=durable)
        return (time.thread_time() - start) / len(packets)

    assert each(durable=False) < 400e-6
    assert each(durable=True) < 800e-6
