"""What a worker lets a supervisor see: its signal block, and its threads' stacks when asked.

SIGUSR2 writes the stacks of all threads to ``stacks.txt`` in the run's folder, by faulthandler:
that works while a thread hangs in foreign code and while one holds the interpreter's lock. Nobody
should send it before the block names this process: it would end it.
"""

from __future__ import annotations

import faulthandler
import signal
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Final

import anyio

from tolaria_bus.oona.events import reason_of
from tolaria_bus.safety import Signals, WorkerState
from tolaria_bus.tolaria.summary import RunSummary
from tolaria_bus.tolaria.trainer import Trainer

STACKS: Final = "stacks.txt"
BEAT_SECONDS: Final = 0.2

_ENDS: Final = {"finished": WorkerState.FINISHED, "lease": WorkerState.TAKEN}
"""By what a summary says in ``stopped_by``; everything else is a stop."""
_MODES: Final = {"paused": WorkerState.PAUSED, "halted": WorkerState.HALTED}


@contextmanager
def heartbeat(folder: Path) -> Iterator[Signals]:
    """The signals of the worker that holds a run's folder; an error that leaves it is their end.

    Raises:
        OSError: There is no room for them.
    """
    with ExitStack() as stack:
        _dump_on_signal(stack, folder)
        # Not closed: a training thread that is left behind may write to it to the very end.
        signals = Signals.create(folder)
        try:
            yield signals
        except BaseException as error:
            signals.end(WorkerState.FAILED, reason_of(_cause(error)))
            raise


def end(signals: Signals, summary: RunSummary) -> None:
    """The worker has come to a good end."""
    signals.end(_ENDS.get(summary.stopped_by, WorkerState.STOPPED), summary.stopped_by)


async def keep_beating(signals: Signals, trainer: list[Trainer]) -> None:
    """Show that the event loop goes round, and in which mode the run is, until cancelled."""
    while True:
        signals.beat()
        if trainer:
            signals.state(_MODES.get(trainer[0].progress.mode, WorkerState.RUNNING))
        await anyio.sleep(BEAT_SECONDS)


def _cause(error: BaseException) -> BaseException:
    """What task groups have wrapped."""
    while isinstance(error, BaseExceptionGroup) and len(error.exceptions) == 1:
        (error,) = error.exceptions
    return error


def _dump_on_signal(stack: ExitStack, folder: Path) -> None:
    # As long as it is registered the descriptor must be the file's.
    file = stack.enter_context((folder / STACKS).open("ab"))
    faulthandler.register(signal.SIGUSR2, file=file, all_threads=True)
    stack.callback(faulthandler.unregister, signal.SIGUSR2)
