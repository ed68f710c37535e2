"""The next batch, drawn and on its way to the device while a step computes.

The training thread is a step ahead of the device. When a step is queued the next batch is drawn and
its copy begun, on a stream of its own (``copy_stream``), so that neither reading nor copying is
between two steps. Nobody else can tell: position, checkpoints and generators are those of a run
that draws each batch when it is due.

- ``position`` counts batches that were handed out. To go elsewhere drops what was drawn ahead, and
  the batches under it go back first.
- A dataset that is read in this process seeds the global generators and draws from them. They are
  put aside around a draw ahead, and are as it left them when its batch is handed out.
- What a draw ahead raises is raised when its batch is due, and never if it never is.
- Nothing is drawn over an epoch's end: the device waits there anyway, and validation needs the
  memory. So a run of whole epochs draws nothing that it doesn't train on.

A user's own loader (``LoaderStream``) is not drawn ahead, as the state that it tells would be one
batch too far. It has its copies made on the stream of their own when its batches are due: as the
device is a step behind then, they are beside its work too.

The price is memory of the device for two more batches.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import torch

from tolaria_bus.tolaria.engine.copy_stream import CopyStream
from tolaria_bus.tolaria.engine.data import BatchStream, TrainingBatches
from tolaria_bus.tolaria.engine.options import Feature
from tolaria_bus.tolaria.engine.seeding import GlobalGenerators


class Copies(Protocol):
    """Takes batches to where they are trained on, one at a time; see ``CopyStream``."""

    def wait(self) -> None:
        """Wait until what was copied from may be drawn over."""

    def begin(self, batch: Any) -> Any:
        """Begin to copy, and return the batch to be."""

    def take(self, moved: Any) -> Any:
        """Return what :meth:`begin` returned, ready for use."""


@dataclass(frozen=True, slots=True)
class _Ahead:
    """A batch that isn't due yet, or why there is none; and the generators as its draw left them.

    No generators: it drew from none.
    """

    batch: Any
    error: Exception | None
    generators: GlobalGenerators | None


class PrefetchedBatches:
    """The training batches of a run on the device, one ahead where they can be.

    Args:
        batches: Nobody else may draw from them, or move them, from now on.
        copies: Takes them to the device.

    Attributes:
        draws_ahead: :meth:`draw_ahead` does something.
        on_failure: Told why there is no prefetch from now on: the device has no memory for it. A
            batch is then as ``batches`` gives it, and the step copies it.
    """

    def __init__(self, batches: TrainingBatches, copies: Copies) -> None:
        self.draws_ahead = isinstance(batches, BatchStream)
        self.on_failure: Callable[[str], object] = lambda why: None
        self._seeds_generators = isinstance(batches, BatchStream) and batches.seeds_generators
        self._batches = batches
        self._copies: Copies | None = copies
        self._position = batches.position
        self._ahead: _Ahead | None = None

    @property
    def position(self) -> int:
        """How many batches have been handed out since the start of the run."""
        return self._position

    @property
    def timeline(self) -> int:
        """The timeline whose augmentations are drawn."""
        return self._batches.timeline

    @property
    def steps_per_epoch(self) -> int:
        """Batches of one epoch."""
        return self._batches.steps_per_epoch

    @property
    def caution(self) -> str:
        """What a user should know about resuming with this data, or empty."""
        return self._batches.caution

    def draw_ahead(self) -> None:
        """Draw the next batch, unless it was drawn already or is the first of an epoch."""
        if not self.draws_ahead or self._ahead is not None:
            return
        if self._position % self.steps_per_epoch == 0:
            return
        before = GlobalGenerators() if self._seeds_generators else None
        batch, error = None, None
        try:
            batch = self._draw()
        except Exception as failed:  # noqa: BLE001 - raised by next()
            error = failed
            self._batches.close()
            self._batches.seek(self._position)
        self._ahead = _Ahead(batch, error, None if before is None else GlobalGenerators())
        if before is not None:
            before.put_back()

    def next(self) -> Any:
        """Return the batch at ``position`` and move on by one.

        Raises:
            JobError: As drawing it raised, now or ahead.
        """
        ahead, self._ahead = self._ahead, None
        if ahead is None:
            batch = self._draw()
        else:
            if ahead.generators is not None:
                ahead.generators.put_back()
            if ahead.error is not None:
                raise ahead.error
            batch = ahead.batch
        self._position += 1
        return batch if self._copies is None else self._copies.take(batch)

    def seek(self, position: int, timeline: int | None = None) -> None:
        """Go to ``position``, and to another timeline if one is given.

        Raises:
            ValueError: The batches can't go there.
        """
        if position == self._position and timeline in {None, self.timeline}:
            return
        self._drop()
        self._batches.seek(position, timeline)
        self._position = position

    def own_state(self) -> dict[str, Any]:
        """See the batches' own."""
        return self._batches.own_state()

    def restore(self, position: int, timeline: int, own: Mapping[str, Any]) -> None:
        """Go to where the batches were when :meth:`own_state` gave ``own``.

        Raises:
            JobError: The state is of other data.
        """
        self._drop()
        self._batches.restore(position, timeline, own)
        self._position = position

    def close(self) -> None:
        """Drop what was drawn ahead and stop worker processes; it can still be used."""
        self._drop()
        self._batches.close()

    def _draw(self) -> Any:
        if self._copies is None:
            return self._batches.next()
        self._copies.wait()
        batch = self._batches.next()
        try:
            return self._copies.begin(batch)
        except torch.OutOfMemoryError as error:
            # The step's own copy needs no memory beside what a run without this has.
            self._copies, self.draws_ahead = None, False
            self.on_failure(" ".join(str(error).split()))
            return batch

    def _drop(self) -> None:
        self._ahead = None
        if self._batches.position != self._position:
            self._batches.seek(self._position)


def prefetched(batches: TrainingBatches, device: torch.device, *, wanted: bool) -> TrainingBatches:
    """Return the batches with prefetch if it is wanted and there is something to gain by it."""
    if not wanted or device.type != "cuda":
        return batches
    return PrefetchedBatches(batches, CopyStream(device))


def feature(batches: TrainingBatches, device: torch.device, *, wanted: bool) -> Feature:
    """Say of the prefetch whether it is on, as what, and why not."""
    if isinstance(batches, PrefetchedBatches):
        if batches.draws_ahead:
            return Feature("prefetch", True, "1 batch ahead, copies on a stream of their own", "")
        why = "the job's own loader is read when a batch is due"
        return Feature("prefetch", True, "copies on a stream of their own", why)
    why = "not wanted" if not wanted else f"on a {device.type} the batches are there already"
    return Feature("prefetch", False, "", why)
