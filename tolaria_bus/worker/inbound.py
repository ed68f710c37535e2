"""A worker's way in: entries go to the mailbox, and their outcomes finish them."""

from __future__ import annotations

import asyncio

import structlog
from anyio.abc import TaskGroup
from redis.exceptions import RedisError

from tolaria_bus.leyline import CommandOutcome
from tolaria_bus.oona.consumer import Received
from tolaria_bus.safety.emergency_signal import UnusableSignal
from tolaria_bus.tolaria.control.mailbox import Delivery, Mailbox
from tolaria_bus.tolaria.control.outcomes import FATAL
from tolaria_bus.worker.bridge import command_delivery, signal_delivery


class Inbound:
    """Handlers of the consumers. Made in the event loop.

    Args:
        run: The run's id.
        mailbox: Where commands go.
        tasks: Where letters about commands that were given up are written; not entered yet.
    """

    def __init__(self, run: str, mailbox: Mailbox, tasks: TaskGroup) -> None:
        self._run = run
        self._mailbox = mailbox
        self._log = structlog.get_logger().bind(run=run)
        self._loop = asyncio.get_running_loop()
        self._tasks = tasks
        self._open: dict[tuple[str, str], Received] = {}

    async def take_command(self, received: Received) -> None:
        """Handle an entry of a control stream."""
        self._post(received, command_delivery(received))

    async def take_signal(self, received: Received) -> None:
        """Handle an entry of the emergency stream."""
        try:
            delivery = signal_delivery(received, self._run)
        except UnusableSignal as error:
            await received.dead_letter("malformed", str(error))
            return
        if delivery is None:
            # Not waited for: a signal may stand behind a thousand alerts, or an outage.
            received.ack_soon()
        else:
            self._post(received, delivery)

    def finish_soon(self, outcome: CommandOutcome, delivery: Delivery) -> None:
        """The outcome is in the spool and finishes the entry. Called on the training thread.

        That of a command that was given up doesn't: its entry becomes a dead letter here.
        """
        key = delivery.stream, delivery.entry_id

        def finish() -> None:
            received = self._open.pop(key, None)
            if received is None:
                return
            if outcome.code == FATAL:
                self._tasks.start_soon(self._bury, received, outcome.reason)
            else:
                received.forget()

        self._loop.call_soon_threadsafe(finish)

    def _post(self, received: Received, delivery: Delivery) -> None:
        self._open[received.stream, received.entry_id] = received
        self._mailbox.post(delivery)

    async def _bury(self, received: Received, reason: str) -> None:
        try:
            await received.dead_letter(FATAL, reason)
        except (RedisError, OSError) as error:
            # Only while leaving. The entry stays pending, and the next start comes here again.
            self._log.warning("no dead letter yet", entry_id=received.entry_id, reason=str(error))
