"""A wall clock that jumps changes what messages say of the time, and nothing else."""

from __future__ import annotations

import itertools

from tests.trainer.test_commands import LR

BACK = '{"commandId": "back", "commandType": "ROLLBACK", "rollbackPayload": {}}'
ALARM = '{"commandId": "e", "commandType": "EMERGENCY", "emergency": {"level": "NOTICE"}}'
DAY = 86_400 * 10**9
NOON = 2_000_000_000 * 10**9


def test_a_clock_that_jumps_back_and_forth_changes_no_bit_and_no_answer(make_run) -> None:
    ends = []
    for name in ("steady", "jumping"):
        run = make_run(name)
        if name == "jumping":
            ticks = itertools.count()
            run.wall_ns = lambda ticks=ticks: NOON + (-1) ** next(ticks) * 3650 * DAY
        run.send(LR % ("a", 0.003), at_step=7)
        run.send(
            '{"commandId": "back", "commandType": "ROLLBACK", "rollbackPayload": {}}', at_step=40
        )
        run.send('{"commandId": "e", "commandType": "EMERGENCY", "emergency": {"level": "NOTICE"}}')
        ends.append((run.train().weights_sha256, run.outcomes()))
    assert ends[0] == ends[1]


def test_a_deadline_is_by_the_clock_that_there_is_and_is_judged_once(make_run) -> None:
    text = """{"commandId": "%s", "commandType": "LEARNING_RATE", "learningRate": {"factor": 0.5},
        "executionDeadlineMs": 1000, "issuedAt": "2033-05-18T03:33:20Z"}"""
    late = make_run("late", steps=5)
    late.wall_ns = lambda: NOON + DAY
    late.send(text % "x")
    late.train()
    assert late.outcome("x").code == "deadline"
    # Put off in time, and the clock jumps before its fence: it was judged when it came.
    kept = make_run("kept", steps=20)
    ticks = iter([NOON] * 40)
    kept.wall_ns = lambda: next(ticks, NOON + DAY)
    kept.send(text % "x", at_step=15)
    kept.train()
    assert kept.outcomes()[-1] == ("x", "APPLIED", 15)
