"""An error while a command is judged is that command's, not the run's.

Judging changes nothing, so the run can go on whatever it came to: the command is refused. Else it
would end every process that gets it, one after the other.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

import structlog
import torch

from tolaria_bus.leyline import AdaptationCommand, CommandType
from tolaria_bus.leyline.codec import short_name
from tolaria_bus.tolaria.control.steerable import CommandRefused
from tolaria_bus.tolaria.control.telemetry import Telemetry
from tolaria_bus.tolaria.engine.job_errors import in_one_line
from tolaria_bus.tolaria.recovery.journal import JournalUnwritable

JUDGING_FAILED: Final = "judging_failed"
"""Code of the outcome, and name of the alert, where judging a command raised an error."""
_TEXT_LENGTH = 400
"""Of an error's text, in a reason."""
# Of torch 2.8 and later.
_DEVICE_LOST: type[Exception] = getattr(torch, "AcceleratorError", torch.OutOfMemoryError)
# The process itself can't go on, whatever command it looks at.
_OF_THE_RUN = (JournalUnwritable, MemoryError, torch.OutOfMemoryError, _DEVICE_LOST)


@contextmanager
def judging(command: AdaptationCommand, telemetry: Telemetry) -> Iterator[None]:
    """Around what only looks at a command and at the run: let its errors refuse the command.

    Args:
        command: That is judged.
        telemetry: Gets an alert; the traceback goes to the log.

    Raises:
        CommandRefused: As raised inside, or ``judging_failed`` in place of another error.
        JournalUnwritable: As raised inside; so are MemoryError, torch's OutOfMemoryError and
            AcceleratorError, and what is no Exception.
    """
    try:
        yield
    except (CommandRefused, *_OF_THE_RUN):
        raise
    except Exception as error:
        reason = f"judging it failed: {in_one_line(error, _TEXT_LENGTH)}"
        name = short_name(CommandType, command.command_type)
        structlog.get_logger().error(
            JUDGING_FAILED, command_id=command.command_id, command_type=name, exc_info=error
        )
        telemetry.alert(JUDGING_FAILED, f"{name}: {reason}", command_id=command.command_id)
        raise CommandRefused(JUDGING_FAILED, reason) from error
