"""What the bus tells of itself: an event's name and details, for a log or for telemetry."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping

OnEvent = Callable[[str, Mapping[str, str]], None]
"""Called in the event loop's thread; must not block, and not raise."""

_log = logging.getLogger("tolaria_bus.oona")


def log_event(name: str, detail: Mapping[str, str]) -> None:
    """Tell an event to the log, for programs that don't listen themselves."""
    _log.warning("%s %s", name, " ".join(f"{key}={value!r}" for key, value in detail.items()))


def reason_of(error: BaseException) -> str:
    """One line for people."""
    text = " ".join(str(error).split())
    return f"{type(error).__name__}: {text}" if text else type(error).__name__
