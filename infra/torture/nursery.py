"""Workers that start at once, and note what they must not lose: see :mod:`infra.nursery`.

To import torch takes a worker some three seconds, in which there is little to kill.
"""

from __future__ import annotations

import os
import resource
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from infra import nursery
from infra.torture.jobs import SmallBytes, SmallDigits


class Nursery(nursery.Nursery):
    """The process that forks workers. A context manager; its children end with it."""

    def __init__(self) -> None:
        super().__init__(__name__)

    def start(
        self,
        words: list[str],
        *,
        cwd: Path,
        log: Path,
        environment: Mapping[str, str],
        said: Path,
        cold: bool = False,
    ) -> int:
        """Fork a worker.

        Args:
            words: Of the command line, behind ``tolaria-bus``.
            cwd: Its working folder.
            log: What it prints is appended there.
            environment: Variables beside those of this process.
            said: Where it notes each alert that it has queued.
            cold: Become a new interpreter, which imports everything and notes nothing.

        Returns:
            Its process id, which stays its own until :meth:`reap`.
        """
        return self.fork(
            words,
            cwd=cwd,
            environment={**os.environ, **environment},
            log=log,
            said=str(said),
            cold=cold,
        )


def main() -> None:
    """Fork on request until standard input ends."""
    for job in (SmallDigits(), SmallBytes()):
        job.train_data()  # Read from disk and kept by its module.
    nursery.serve(_prepare)


def _prepare(words: list[str], *, said: str, cold: bool) -> None:
    if cold:
        words = [sys.executable, "-m", "tolaria_bus", *words]
        os.execv(words[0], words)  # noqa: S606
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    _listen(said)


def _listen(said: str) -> None:
    """Note the id of each alert once it is queued: from then on it must not be lost."""
    from tolaria_bus.leyline import MessagePriority, TelemetryPacket
    from tolaria_bus.oona.outbox import Outbox

    notes = os.open(said, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    put = Outbox.put

    def put_and_note(self: Outbox, message: Any, **options: Any) -> bool:
        taken = put(self, message, **options)
        loud = options["priority"] >= MessagePriority.MESSAGE_PRIORITY_HIGH
        if loud and options["stream"] == self.streams.emergency:
            events = message.events if isinstance(message, TelemetryPacket) else ()
            names = ",".join(event.event_id for event in events) or type(message).__name__
            os.write(notes, f"{options['message_id']} {names}\n".encode())
        return taken

    Outbox.put = put_and_note  # type: ignore[method-assign]


if __name__ == "__main__":
    main()
