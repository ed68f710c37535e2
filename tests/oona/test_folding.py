"""A flood of one alert is folded; a new alert is never held back."""

from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path

import pytest

from tests.oona.bus import CRITICAL, HIGH, STREAMS
from tolaria_bus.leyline import TelemetryEvent, TelemetryLevel, TelemetryPacket
from tolaria_bus.leyline.codec import decode
from tolaria_bus.oona.folding import IDENTIFYING, Folding, alert_kind
from tolaria_bus.oona.lanes import Lane
from tolaria_bus.oona.outbox import Outbox
from tolaria_bus.oona.spool import Spool

ERROR = TelemetryLevel.TELEMETRY_LEVEL_ERROR
WARNING = TelemetryLevel.TELEMETRY_LEVEL_WARNING


def alert(
    name: str, step: int = 0, level: TelemetryLevel.ValueType = ERROR, run: str = "r"
) -> TelemetryPacket:
    event = TelemetryEvent(event_id=name, level=level)
    return TelemetryPacket(training_run_id=run, global_step=step, events=[event])


def about(**attributes: str) -> TelemetryPacket:
    packet = alert("entries_lost")
    packet.events[0].attributes.update(attributes)
    return packet


def test_alerts_are_equal_by_event_name_level_and_source():
    kind = alert_kind(alert("loss_spike"), HIGH)
    same = alert("loss_spike")
    same.events[0].description = "at step 18"
    same.events[0].attributes["loss"] = "7.5"
    assert alert_kind(same, HIGH) == kind
    others = [alert("stall"), alert("loss_spike", level=WARNING), alert("loss_spike", run="other")]
    assert kind not in [alert_kind(other, HIGH) for other in others]


def test_alerts_of_another_priority_are_others():
    assert alert_kind(alert("a"), CRITICAL) != alert_kind(alert("a"), HIGH)


@pytest.mark.parametrize("name", IDENTIFYING)
def test_alerts_about_something_else_are_others(name: str):
    kind = alert_kind(about(**{name: "a", "count": "3"}), HIGH)
    assert alert_kind(about(**{name: "a", "count": "4"}), HIGH) == kind
    assert alert_kind(about(**{name: "b", "count": "3"}), HIGH) != kind
    assert alert_kind(about(count="3"), HIGH) != kind


def test_metrics_are_no_alerts():
    assert alert_kind(TelemetryPacket(), HIGH) is None


def test_the_same_alert_about_three_streams_goes_out_three_times_at_once():
    box = Outbox(100, None, STREAMS, "r")
    for stream in ("control", "fleet", "emergency"):
        box.put(about(stream=stream), stream=STREAMS.emergency, priority=HIGH)
    box.put(about(stream="control"), stream=STREAMS.emergency, priority=CRITICAL)
    sent = [packet.events[0].attributes["stream"] for packet in payloads(box, box.emergency)]
    assert sent == ["control", "fleet", "emergency", "control"]


def test_the_first_goes_at_once_and_repeats_go_as_one_at_the_end_of_the_window():
    folding: Folding[str] = Folding(timedelta(seconds=1))
    assert folding.repeats("a", 10.0) == 0
    assert folding.repeats("a", 10.5) == 1
    assert folding.hold("a", "first repeat") is None
    assert folding.repeats("a", 10.9) == 2
    assert folding.hold("a", "second repeat") == "first repeat"
    assert list(folding.due(10.99)) == []
    assert list(folding.due(11.0)) == ["second repeat"]
    assert list(folding.due(11.0)) == []


def test_a_flood_that_goes_on_costs_one_packet_a_window():
    folding: Folding[int] = Folding(timedelta(seconds=1))
    sent = 0
    for tick in range(1000):
        now = tick / 100
        if folding.repeats("a", now) == 0:
            sent += 1
        else:
            folding.hold("a", tick)
        sent += len(list(folding.due(now)))
    assert sent == 10


def test_after_a_quiet_window_the_next_is_the_first_again():
    folding: Folding[str] = Folding(timedelta(seconds=1))
    assert folding.repeats("a", 0.0) == 0
    assert list(folding.due(1.0)) == []
    assert folding.repeats("a", 1.5) == 0
    # Also where nobody asked what was due in between.
    assert folding.repeats("a", 9.0) == 0


def test_kinds_dont_hold_each_other_back_and_their_number_is_bounded():
    folding: Folding[str] = Folding(timedelta(seconds=1))
    assert [folding.repeats(kind, 0.0) for kind in range(2000)] == [0] * 2000
    assert folding.repeats(0, 0.1) == 1
    assert folding.repeats(1999, 0.1) == 0


def test_everything_held_can_be_asked_for_before_its_time():
    folding: Folding[str] = Folding(timedelta(seconds=1))
    folding.repeats("a", 0.0)
    folding.repeats("a", 0.1)
    folding.hold("a", "held")
    assert list(folding.due(0.2, everything=True)) == ["held"]


@pytest.fixture
def spool(tmp_path: Path) -> Iterator[Spool]:
    with Spool(tmp_path / "spool") as spool:
        yield spool


def payloads(box: Outbox, lane: Lane) -> list[TelemetryPacket]:
    packets = box.take(lane, 10_000)
    return [decode(box.envelope(packet).payload, TelemetryPacket) for packet in packets]


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


def test_equal_alerts_are_folded_into_one_with_a_count(spool: Spool):
    clock = Clock()
    box = Outbox(100, spool, STREAMS, "r", fold=timedelta(seconds=1), monotonic=clock)
    for step in range(5):
        box.put(alert("spike", step), stream=STREAMS.emergency, priority=HIGH)
    box.put(alert("stall"), stream=STREAMS.emergency, priority=HIGH)
    assert [(p.global_step, p.folded) for p in payloads(box, box.emergency)] == [(0, 0), (0, 0)]
    # Also the ones held back are safe: one record stands for all of them.
    assert len(spool) == 3

    box.release_folded()
    assert len(box.emergency) == 0
    clock.now = 1.0
    box.release_folded()
    assert [(p.global_step, p.folded) for p in payloads(box, box.emergency)] == [(4, 4)]


def test_one_repeat_stands_for_itself():
    box = Outbox(100, None, STREAMS, "r")
    box.put(alert("spike", 1), stream=STREAMS.emergency, priority=HIGH)
    box.put(alert("spike", 2), stream=STREAMS.emergency, priority=HIGH)
    box.release_folded(everything=True)
    assert [(p.global_step, p.folded) for p in payloads(box, box.emergency)] == [(1, 0), (2, 0)]


def test_the_same_event_in_the_telemetry_stream_is_not_folded():
    box = Outbox(100, None, STREAMS, "r")
    for _ in range(3):
        box.put(alert("epoch"), stream=STREAMS.telemetry("r"), priority=HIGH)
    assert len(box.bulk) == 3


def test_what_was_held_back_when_the_process_died_is_sent_by_the_next(spool: Spool):
    first = Outbox(100, spool, STREAMS, "r")
    for step in range(5):
        first.put(alert("spike", step), stream=STREAMS.emergency, priority=HIGH)
    second = Outbox(100, spool, STREAMS, "r")
    assert [(p.global_step, p.folded) for p in payloads(second, second.emergency)] == [
        (0, 0),
        (4, 4),
    ]
