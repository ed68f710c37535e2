"""Fifty thousand commands at once: one effect, an answer for each, and an emergency goes first."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

import pytest

from tests.trainer.test_commands import LR
from tolaria_bus.leyline import AdaptationCommand
from tolaria_bus.leyline.codec import encode, from_json
from tolaria_bus.tolaria.control.mailbox import Delivery

MANY = 50_000
ALARM = '{"commandId": "e", "commandType": "EMERGENCY", "emergency": {"level": "NOTICE"}}'


@pytest.mark.slow
def test_a_sender_gone_mad_is_answered_each_time_and_obeyed_once(make_run) -> None:
    plain = make_run("plain", steps=30)
    plain.send(LR % ("a", 0.003))
    expected = plain.train()
    run = make_run(steps=30)
    command = from_json(LR % ("a", 0.003), AdaptationCommand)
    one = Delivery(
        command, encode(command), stream="oona:{r}:control", source="mad", group="tolaria"
    )
    for number in range(MANY):
        run.mailbox.post(replace(one, entry_id=f"2-{number}"))
    run.send(ALARM)
    summary = run.train()
    assert run.outcomes()[0][:2] == ("e", "APPLIED")
    statuses = Counter(status for name, status, _ in run.outcomes() if name == "a")
    assert statuses == {"APPLIED": 1, "DUPLICATE": MANY - 1}
    assert (summary.steps, summary.weights_sha256) == (30, expected.weights_sha256)
