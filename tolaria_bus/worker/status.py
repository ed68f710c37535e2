"""What a worker says of its run each second: ``oona:{RUN}:status``, ``oona:runs``."""

from __future__ import annotations

import os
import platform
import time
from collections.abc import Mapping
from typing import Any

from tolaria_bus.safety import Signals, may_take_as_a_start
from tolaria_bus.settings import Settings
from tolaria_bus.tolaria.summary import Progress


def who(run: str, *, began: float, server_now: float | None) -> dict[str, Any]:
    """Which process has the run, and that it is there; the arguments are those of :func:`brief`."""
    return {
        "run": run,
        "host": platform.node(),
        "pid": os.getpid(),
        "started": began,
        "beat": time.time(),
        "beat_server": server_now,
    }


def brief(
    run: str, progress: Progress, *, began: float, read_age: float, server_now: float | None
) -> dict[str, Any]:
    """The run in a few numbers: its entry among all runs.

    Args:
        run: Its id.
        progress: Where it is.
        began: When this process began, in seconds since the epoch.
        read_age: Seconds since the read loop that is furthest behind went round.
        server_now: The server's time, as far as it is known: by that an age can be told on another
            machine.
    """
    return {
        **who(run, began=began, server_now=server_now),
        "step": progress.step,
        "total_steps": progress.total_steps,
        "epoch": progress.epoch,
        "epochs": progress.epochs,
        "loss": progress.loss,
        "accuracy": progress.accuracy,
        "learning_rate": progress.lr,
        "steps_per_second": progress.steps_per_second,
        "mode": progress.mode,
        "emergency": progress.emergency,
        "read_age": round(read_age, 1),
        "timeline": progress.timeline,
    }


def whole(
    brief: Mapping[str, Any],
    standing: Mapping[str, Any],
    *,
    job: str,
    signals: Signals | None,
    settings: Settings,
    ended: Mapping[str, str] | None,
) -> dict[str, Any]:
    """All that is told of a run.

    Args:
        brief: See there.
        standing: How it stands beside its numbers.
        job: The job's name.
        signals: Of this worker: since when its training thread hasn't got on.
        settings: After how long that is a hang.
        ended: How and why training ended; ``None`` while it goes on.
    """
    quiet = limit = None
    if signals is not None:
        quiet, phase, made_a_step = signals.training()
        limit = settings.hang_seconds
        if may_take_as_a_start(phase, made_a_step=made_a_step):
            limit = max(settings.start_seconds, limit)
    return {
        **brief,
        **standing,
        "job": job,
        "quiet": None if quiet is None else round(quiet, 1),
        "quiet_limit": limit,
        "ended": dict(ended) if ended is not None else None,
    }
