"""An emergency for a run whose server is gone: left in its folder, where its worker looks."""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import Final

from tolaria_bus.cli.broadcast import signal_of
from tolaria_bus.cli.options import WAIT_SECONDS, Sending
from tolaria_bus.cli.style import Part, paint, wants_colour
from tolaria_bus.cli.verdict import Exit
from tolaria_bus.cli.who import user_name
from tolaria_bus.leyline import AdaptationCommand, CommandType, EmergencySignal
from tolaria_bus.safety import SignalView, WorkerState
from tolaria_bus.safety.emergency import HALT, level_name
from tolaria_bus.safety.passing import pass_on

_POLL: Final = 0.02  # seconds


def can_be_left(command: AdaptationCommand, given: Sending) -> bool:
    """Is this an emergency for now, for one run, whose folder is named and whose worker lives?"""
    if command.command_type != CommandType.COMMAND_EMERGENCY or given.run_dir is None:
        return False
    if command.emergency.scope not in ("", "run"):
        return False
    if given.at_step is not None or given.at_epoch is not None or given.dry_run:
        return False
    with SignalView(given.run_dir) as view:
        view.refresh()
        identity = view.identity
        return identity is not None and identity.lives()


def leave(command: AdaptationCommand, given: Sending, why: str) -> int:
    """Leave an emergency for the worker of ``--run-dir``; of a HALT, wait until it has stopped.

    Args:
        command: An EMERGENCY; see :func:`can_be_left`.
        given: How it is sent.
        why: There is no server, in words.

    Returns:
        The exit code: ``NO_ANSWER`` where a HALT wasn't seen to be obeyed in time.
    """
    folder = given.run_dir
    assert folder is not None
    signal = signal_of(command, given, f"operator/{user_name()}")
    # That file is its alone.
    pass_on(folder, signal)
    _say(signal, folder, why)
    wait = WAIT_SECONDS if given.wait is None else given.wait
    if signal.level != HALT or not wait:
        return Exit.APPLIED
    end = time.monotonic() + wait
    with SignalView(folder) as view:
        while time.monotonic() < end:
            if view.refresh() and view.state is WorkerState.HALTED:
                print(f"HALTED at step {view.step}")
                return Exit.APPLIED
            time.sleep(_POLL)
    print(f"tolaria-bus: it isn't halted within {wait:g} s", file=sys.stderr)
    return Exit.NO_ANSWER


def _say(signal: EmergencySignal, folder: Path, why: str) -> None:
    parts: list[Part] = [
        ("LEFT", "note"),
        (f"emergency {level_name(signal.level).upper()}", "name"),
        (f"in {folder}, for there is no server: {why}", "plain"),
        (f"id {signal.attributes['signal_id']}", "dim"),
    ]
    print(paint(parts, colour=wants_colour(sys.stdout)))
