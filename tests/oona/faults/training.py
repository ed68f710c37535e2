"""A thread that plays training: at each step it says things to the outbox, and answers commands."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable
from typing import Final

from tests.oona.bus import CRITICAL, EMERGENCY, HIGH, NORMAL, OUTCOMES, TELEMETRY, alert, metric
from tolaria_bus.leyline import CommandOutcome, EmergencySignal, Settlement
from tolaria_bus.oona.consumer import Received
from tolaria_bus.oona.outbox import Outbox

STEP: Final = 0.004  # seconds
_HIGH_EVERY: Final = 5  # steps
_CRITICAL_EVERY: Final = 20  # steps


class Training:
    """Metrics at each step, alerts and signals at some, an outcome for each command.

    Args:
        outbox: Where it says them.
        forget: Told, on this thread, that a command's outcome is in the outbox.

    Attributes:
        mailbox: Commands to answer.
        urgent: Message ids of alerts and signals, in the order in which they were put.
        answered: Message ids of outcomes, in the order in which they were put.
        steps: Steps done.
    """

    def __init__(self, outbox: Outbox, forget: Callable[[Received], None]) -> None:
        self.mailbox: queue.SimpleQueue[Received] = queue.SimpleQueue()
        self.urgent: list[str] = []
        self.answered: list[str] = []
        self.steps = 0
        self._outbox = outbox
        self._forget = forget
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._train, name="training", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        """End it, and wait for that."""
        self._stopped.set()
        self._thread.join()

    def _train(self) -> None:
        while not self._stopped.wait(STEP):
            self._step()
        self._answer()

    def _step(self) -> None:
        self.steps += 1
        step = self.steps
        self._put(metric(step), stream=TELEMETRY, priority=NORMAL, message_id=f"m{step}")
        if step % _HIGH_EVERY == 0:
            self._put_urgent(alert(f"a{step}", step), HIGH)
        if step % _CRITICAL_EVERY == 0:
            self._put_urgent(EmergencySignal(version=1, reason=f"s{step}"), CRITICAL)
        self._answer()

    def _put_urgent(self, message: object, priority: int) -> None:
        message_id = f"u{len(self.urgent)}"
        self.urgent.append(message_id)
        self._put(message, stream=EMERGENCY, priority=priority, message_id=message_id)

    def _answer(self) -> None:
        while not self.mailbox.empty():
            received = self.mailbox.get_nowait()
            command_id: str = received.opened.message.command_id  # type: ignore[attr-defined]
            self.answered.append(command_id)
            self._put(
                CommandOutcome(command_id=command_id),
                stream=OUTCOMES,
                priority=NORMAL,
                message_id=command_id,
                settlement=Settlement(
                    stream=received.stream,
                    group=received.group,
                    entry_id=received.entry_id,
                    delete=True,
                ),
                durable=True,
            )
            self._forget(received)

    def _put(self, message: object, **how: object) -> None:
        self._outbox.put(message, **how)  # type: ignore[arg-type]
