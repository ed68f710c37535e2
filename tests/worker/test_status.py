"""What a worker says of its training thread, by which others tell a hang from a pause."""

from __future__ import annotations

import json
from typing import Any

from tolaria_bus.safety import Phase, Signals
from tolaria_bus.settings import load
from tolaria_bus.tolaria.summary import Progress
from tolaria_bus.worker.status import brief, whole

PROGRESS = Progress(
    step=3,
    total_steps=9,
    epoch=0,
    epochs=1,
    loss=0.5,
    accuracy=None,
    lr=0.1,
    mode="running",
    timeline=1,
    steps_per_second=2.0,
)


def test_how_long_training_may_not_get_on_depends_on_what_it_does() -> None:
    now = 1_000_000_000
    signals = Signals.private(monotonic_ns=lambda: now)
    settings, _ = load(hang_seconds=5, start_seconds=60)
    few = brief("r", PROGRESS, began=1.0, read_age=0.25, server_now=None)

    def told() -> tuple[Any, Any]:
        status = whole(
            few, {"seeds": []}, job="tiny", signals=signals, settings=settings, ended=None
        )
        json.dumps(status)
        return status["quiet"], status["quiet_limit"]

    signals.begin(0)
    now += 7_000_000_000
    # It hasn't made a step yet: it may compile.
    assert told() == (7.0, 60.0)
    signals.step(1)
    now += 2_000_000_000
    assert told() == (2.0, 5.0)
    with signals.phase(Phase.SAVING):
        assert told() == (0.0, 60.0)
    with signals.phase(Phase.VALIDATING):
        now += 6_000_000_000
        assert told() == (6.0, 5.0)
