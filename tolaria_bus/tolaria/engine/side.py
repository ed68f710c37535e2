"""Seeds that learn beside the host: when in a step, under which generators, at what cost."""

import time
from collections.abc import Callable
from typing import Any

from torch import Tensor, nn

from tolaria_bus.kasmina import Kasmina
from tolaria_bus.tolaria.engine.job_errors import in_one_line
from tolaria_bus.tolaria.engine.optimizer import seed_group
from tolaria_bus.tolaria.engine.seeding import seeded


class SideTraining:
    """Gives each TRAINING seed its gradient, in a pass of its own over the step's batch.

    The global generators are forked around a pass, and seeded in it as the host's own was: what
    comes to the slot is what came to it there. The host can't be told from one without the seed,
    but for what the job's own ``loss`` does outside the model and torch: it is called once more.

    Args:
        kasmina: Whose seeds.
        model: The host.
        loss: The job's.

    Attributes:
        failed: Seeds whose pass raised, and why. They are left out until somebody decides.
        passes: How many were made since ``take_cost``.
        changes: How many changes of stage there were: each may change what the host's pass is.
    """

    def __init__(
        self, kasmina: Kasmina, model: nn.Module, loss: Callable[[nn.Module, Any], Tensor]
    ) -> None:
        self.failed: dict[str, str] = {}
        self.passes = 0
        self.changes = 0
        self._seconds = 0.0
        self._kasmina = kasmina
        self._model = model
        self._loss = loss

    @property
    def waits(self) -> bool:
        """Whether a seed learns on the side; all that a step pays where none does."""
        return bool(self._kasmina.side)

    @property
    def learning(self) -> tuple[str, ...]:
        """The optimizer's groups of the seeds that learn, and aren't the host's."""
        kasmina = self._kasmina
        return tuple(seed_group(seed_id) for seed_id in (*kasmina.side, *kasmina.tasks))

    def __call__(self, batch: Any, seed: int, scale: Tensor | None = None) -> None:
        """Make the passes of one step.

        Args:
            batch: On the device.
            seed: What the generators were seeded with for the host's pass.
            scale: Of the host's fp16 gradients; a scalar on the device.
        """
        started = time.perf_counter()
        scaled = {} if scale is None else {"scale": scale}
        for seed_id in self._kasmina.side:
            if seed_id in self.failed:
                continue
            try:
                with seeded(seed):
                    self._kasmina.learn(seed_id, lambda: self._loss(self._model, batch), **scaled)
            except Exception as error:  # noqa: BLE001 - the host's step must not fail with it
                self.failed[seed_id] = in_one_line(error)
            self.passes += 1
        self._seconds += time.perf_counter() - started

    def take_cost(self) -> float:
        """Return the mean milliseconds of a pass since this was asked last; 0 if none was made.

        On an accelerator it is the time to queue the work.
        """
        mean = self._seconds * 1e3 / self.passes if self.passes else 0.0
        self.passes, self._seconds = 0, 0.0
        return mean
