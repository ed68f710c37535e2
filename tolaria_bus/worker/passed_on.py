"""Obeying what a supervisor passes on: signals of the workers beside this one."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Final

from google.protobuf.message import DecodeError

from tolaria_bus.safety import waking
from tolaria_bus.safety.emergency_signal import UnusableSignal
from tolaria_bus.safety.passing import NAME, PassedOn
from tolaria_bus.tolaria.control.mailbox import Mailbox
from tolaria_bus.worker.bridge import passed_delivery

LOOK_SECONDS: Final = 0.25
"""Between two looks where a bell says when to look; for those who can't ring it."""
BLIND_LOOK_SECONDS: Final = 0.02
"""Where there is no bell. A HALT has 100 ms from its cause to the trainer, the supervisor's look
among them."""


async def obey_passed_on(
    folder: Path,
    run: str,
    mailbox: Mailbox,
    on_event: Callable[[str, Mapping[str, str]], None],
) -> None:
    """Hand what is passed on to the trainer, until cancelled.

    The same signal comes by the bus as well, before or after: it has one id, and is obeyed once.

    Args:
        folder: The run's.
        run: Its id.
        mailbox: Where commands go.
        on_event: Told ``signal_refused``.
    """
    where = waking.address(folder, NAME)
    with PassedOn(folder) as inbox, waking.listening(where) as bell:
        while True:
            try:
                for signal in inbox.take():
                    delivery = passed_delivery(signal, run)
                    if delivery is not None:
                        mailbox.post(delivery)
            except (DecodeError, UnusableSignal) as error:
                detail = {"stream": folder.name, "reason": "malformed", "detail": str(error)}
                on_event("signal_refused", detail)
            await waking.rung(bell, BLIND_LOOK_SECONDS if bell is None else LOOK_SECONDS)
