"""Breakers of a run: driven by hand, by what goes wrong, and never decided twice."""

from __future__ import annotations

import itertools

import pytest

from tests.trainer.conftest import STEPS_PER_EPOCH
from tests.trainer.test_commands import GERMINATE
from tolaria_bus.leyline import TelemetryPacket
from tolaria_bus.tolaria.recovery.journal import read_records

BREAKER = """{"commandId": "%s", "commandType": "CIRCUIT_BREAKER",
    "circuitBreaker": {"breaker": "%s", "desiredState": "%s", "rationale": "maintenance"}}"""
IMPOSSIBLE = 1e-6  # milliseconds


def changes(run) -> list[str]:
    return [
        event.description
        for packet, _ in run.outbound.packets
        for event in packet.events
        if event.event_id == "breaker" and not packet.replayed
    ]


def decisions(run) -> list[str]:
    records = read_records(run.path)
    return [record.decision.kind for record in records if record.HasField("decision")]


def test_a_breaker_is_opened_and_closed_by_hand(make_run) -> None:
    run = make_run(steps=30)
    run.send(BREAKER % ("a", "kasmina", "CIRCUIT_STATE_OPEN"), at_step=5)
    run.send(BREAKER % ("b", "kasmina", "CIRCUIT_STATE_CLOSED"), at_step=9)
    run.train()
    assert run.outcomes()[-2:] == [("a", "APPLIED", 5), ("b", "APPLIED", 9)]
    assert dict(run.outcome("a").details) == {
        "breaker": "kasmina", "before": "closed", "after": "open",
    }  # fmt: skip
    assert changes(run) == [
        "kasmina: closed → open: maintenance", "kasmina: open → closed: maintenance",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("breaker", "state", "named"),
    [("engine", "CIRCUIT_STATE_OPEN", "timing, tamiyo, kasmina"), ("timing", "UNKNOWN", "closed")],
)
def test_an_unknown_breaker_or_state_is_refused_naming_what_is_known(
    make_run, breaker: str, state: str, named: str
) -> None:
    run = make_run(steps=1)
    text = BREAKER % ("a", breaker, state)
    run.send(text.replace(', "desiredState": "UNKNOWN"', ""))
    run.train()
    assert run.outcome("a").code == "bad_payload"
    assert named in run.outcome("a").reason


def test_an_open_breaker_around_kasmina_refuses_what_grows(make_run) -> None:
    run = make_run(steps=5)
    run.send(BREAKER % ("a", "kasmina", "CIRCUIT_STATE_OPEN"))
    run.send(GERMINATE)
    run.train()
    assert run.outcome("g").code == "breaker_open"
    assert "maintenance" in run.outcome("g").reason


def test_epochs_that_end_too_slowly_lead_to_conservative_mode_and_quick_ones_out_of_it(
    make_run,
) -> None:
    slow = make_run(epochs=4, boundary_ms=IMPOSSIBLE)
    slow.send(GERMINATE, at_step=3 * STEPS_PER_EPOCH + 1)
    assert slow.train().mode == "conservative"
    assert slow.outcome("g").code == "conservative"
    assert [alert.split(":")[0] for alert in alerts_of(slow)] == ["breaker", "conservative_mode"]
    assert decisions(slow) == ["breaker", "conservative", "emergency"]
    # Nobody decides again what the journal has; six good epochs, and all is as before.
    quick = make_run(epochs=12)
    assert quick.train().mode == "running"
    assert [line.split(":")[1] for line in changes(quick)] == [
        " open → half_open", " half_open → closed",
    ]  # fmt: skip
    assert decisions(quick) == [
        "breaker", "conservative", "emergency", "breaker", "breaker", "conservative",
    ]  # fmt: skip


def test_conservative_mode_that_an_operator_asked_for_is_not_ended_by_quick_epochs(
    make_run,
) -> None:
    slow = make_run(epochs=4, boundary_ms=IMPOSSIBLE)
    slow.send('{"commandId": "m", "commandType": "MODE", "mode": {"conservative": true}}')
    slow.train()
    assert make_run(epochs=12).train().mode == "conservative"


def test_an_epochs_end_is_published_as_spans_that_follow_one_another(make_run) -> None:
    run = make_run(epochs=1)
    run.train()
    (packet,) = (packet for packet, _ in run.outbound.packets if packet.spans)
    assert isinstance(packet, TelemetryPacket)
    parent, *phases = packet.spans
    assert [span.name for span in phases] == [
        f"tolaria.boundary.{phase}"
        for phase in (
            "validation", "assembly", "tamiyo", "adaptation", "work", "check", "checkpoint",
        )
    ]  # fmt: skip
    assert {span.parent_span_id for span in phases} == {parent.span_id}
    for before, after in itertools.pairwise(phases):
        assert before.end_time == after.start_time


def alerts_of(run) -> list[str]:
    return [
        f"{event.event_id}: {event.description}"
        for packet in run.outbound.alerts()
        for event in packet.events
    ]
