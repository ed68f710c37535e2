"""Batches by position: the batch at position p is a pure function of (seed, timeline, p).

*Position* counts the batches drawn since the start of the run. Epoch e's order is a permutation
made from (seed, e), so a resumed run seeks to its position and goes on with the same batches, and
what a dataset draws while it reads a sample (augmentation) is seeded from the position too, in
whichever process it is read.

Two ways: a ``TensorDataset`` (or a ``Subset`` of one) is indexed a whole batch at a time, which
costs what slicing tensors by hand costs; any other map-style dataset is read sample by sample and
collated, in the loader's worker processes where the job gave a ``DataLoader`` that has them. One
worker pool serves all epochs: it isn't started anew at each.

What can't be indexed by position, or brings a state of its own, is gone through as it is: see
``loader_stream``. ``training_batches`` chooses.
"""

from collections.abc import Iterable, Iterator, Mapping
from copy import copy
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.utils.data import DataLoader, IterableDataset

from tolaria_bus.tolaria.engine.batch import page_locked, to_device
from tolaria_bus.tolaria.engine.job_errors import JobError, user_error
from tolaria_bus.tolaria.engine.loader_stream import LoaderStream, is_stateful
from tolaria_bus.tolaria.engine.seeding import Domain, mix
from tolaria_bus.tolaria.engine.source import Request, Source, can_be_positioned, is_map_style

__all__ = [
    "BatchStream",
    "LoaderStream",
    "TrainingBatches",
    "ValidationBatches",
    "to_device",
    "training_batches",
    "validation_batches",
]

_ORDERS_KEPT = 2


class BatchStream:
    """The training batches of a run, from any position on.

    Args:
        data: A map-style dataset, or a DataLoader, whose dataset, batch size, collate function,
            workers, pinning and sampler are kept. Without a DataLoader the order is random.
        batch_size: Samples in a batch, where ``data`` isn't a DataLoader.
        seed: The run's seed.
        timeline: The run's timeline: another one draws other augmentations, in the same order.
        pin_memory: Give batches in page-locked memory, for copies that don't block. Ignored where
            there is no accelerator.

    A last batch that isn't full is left out, unless a DataLoader was given and keeps it
    (``drop_last=False`` is torch's default there).

    Raises:
        JobError: the data can't be positioned (iterable-style, a batch sampler of its own), or is
            less than one batch.
    """

    def __init__(
        self,
        data: object,
        batch_size: int,
        seed: int,
        *,
        timeline: int = 0,
        pin_memory: bool = False,
    ) -> None:
        self._source = Source.of(data, batch_size, what="training data", training=True)
        self._seed = seed
        self._timeline = timeline
        self._position = 0
        self._pin = (pin_memory or self._source.pin_memory) and _has_accelerator()
        self._fetch = self._source.fetch(mix(seed, Domain.FETCH))
        self._tensors = self._source.tensors
        self._orders: dict[int, Any] = {}
        self._loader: Iterator[Any] | None = None
        self.steps_per_epoch = self._source.batches

    @property
    def position(self) -> int:
        """How many batches have been drawn since the start of the run."""
        return self._position

    @property
    def timeline(self) -> int:
        """The timeline whose augmentations are drawn."""
        return self._timeline

    @property
    def caution(self) -> str:
        """Nothing: a resume is exact."""
        return ""

    @property
    def seeds_generators(self) -> bool:
        """Does :meth:`next` seed the global generators, as the dataset is read in this process?"""
        return self._tensors is None and not self._source.workers

    def next(self) -> Any:
        """Return the batch at ``position`` and move on by one.

        Raises:
            JobError: the dataset or its collate function raised.
        """
        position = self._position
        if self._tensors is not None:
            rows = self._source.rows(self._indices(position))
            batch: Any = [tensor.index_select(0, rows) for tensor in self._tensors]
        elif self._source.workers:
            batch = self._from_workers()
        else:
            batch = self._fetch[self._request(position)]
        self._position = position + 1
        if self._pin and not self._source.workers:
            batch = page_locked(batch)
        return batch

    def seek(self, position: int, timeline: int | None = None) -> None:
        """Go to ``position``, and to another timeline if one is given.

        Worker processes are stopped; the next batch starts them again.

        Raises:
            ValueError: ``position`` is below 0.
        """
        if position < 0:
            raise ValueError(f"position is {position}; allowed: 0 or more")
        if position == self._position and timeline in {None, self._timeline}:
            return
        self.close()
        self._position = position
        self._timeline = self._timeline if timeline is None else timeline

    def own_state(self) -> dict[str, Any]:
        """Nothing: position and timeline say all."""
        return {}

    def restore(self, position: int, timeline: int, own: Mapping[str, Any]) -> None:
        """Go to ``position`` on ``timeline``.

        Raises:
            JobError: ``own`` is the state of a loader: the job's data was another.
        """
        if own:
            raise JobError("the saved state is of a loader that the training data no longer is")
        self.seek(position, timeline)

    def close(self) -> None:
        """Stop the worker processes, if there are any. The stream can still be used."""
        self._loader = None

    def _indices(self, position: int) -> Any:
        epoch, batch = divmod(position, self.steps_per_epoch)
        order = self._orders.get(epoch)
        if order is None:
            # Workers run ahead into the next epoch while this one is not yet done.
            for old in sorted(self._orders)[: max(0, len(self._orders) - _ORDERS_KEPT + 1)]:
                del self._orders[old]
            order = self._orders[epoch] = self._source.order(self._seed, epoch)
        size = self._source.batch_size
        return order[batch * size : (batch + 1) * size]

    def _request(self, position: int) -> Request:
        indices = self._indices(position)
        listed = indices.tolist() if isinstance(indices, Tensor) else indices
        return Request(self._timeline, position, listed)

    def _from_workers(self) -> Any:
        if self._loader is None:
            requests = _Requests(self, self._position)
            loader = self._source.loader(self._fetch, requests, self._loader_generator(), self._pin)
            self._loader = iter(loader)
        return _take(self._loader, "the training data")

    def _loader_generator(self) -> torch.Generator:
        # DataLoader draws its workers' base seed when it starts: from here, not the global one.
        return torch.Generator().manual_seed(mix(self._seed, Domain.LOADER))


class TrainingBatches(Protocol):
    """What the trainer draws its batches from, and what of it must survive."""

    @property
    def position(self) -> int:
        """How many batches have been drawn since the start of the run."""

    @property
    def timeline(self) -> int:
        """The timeline whose augmentations are drawn."""

    @property
    def steps_per_epoch(self) -> int:
        """Batches of one epoch."""

    @property
    def caution(self) -> str:
        """What a user should know about resuming with this data, or empty."""

    def next(self) -> Any:
        """Return the batch at ``position`` and move on by one."""

    def seek(self, position: int, timeline: int | None = None) -> None:
        """Go to ``position``, and to another timeline if one is given."""

    def own_state(self) -> dict[str, Any]:
        """What beside position and timeline says where it is."""

    def restore(self, position: int, timeline: int, own: Mapping[str, Any]) -> None:
        """Go to where it was when :meth:`own_state` gave ``own``."""

    def close(self) -> None:
        """Stop worker processes, if there are any; it can still be used."""


def training_batches(
    data: object,
    batch_size: int,
    seed: int,
    *,
    timeline: int = 0,
    pin_memory: bool = False,
) -> BatchStream | LoaderStream:
    """Return the training batches of a run, exactly resumable as far as ``data`` allows.

    A map-style dataset, and a DataLoader over one, is positioned from here. A loader that tells its
    state is used as it is, and so is whatever else can be gone through: a DataLoader over an
    iterable-style dataset or with a batch sampler of its own, or any other iterable of batches. An
    iterable-style dataset by itself gets a DataLoader.

    Args:
        data: As the job gave it.
        batch_size: As for ``BatchStream``.
        seed: As for ``BatchStream``.
        timeline: As for ``BatchStream``.
        pin_memory: As for ``BatchStream``.

    Raises:
        JobError: the data has no length, is less than one batch, or can't be gone through at all.
    """
    if isinstance(data, IterableDataset):
        data = DataLoader(data, batch_size=batch_size, drop_last=True)
    if isinstance(data, Iterable) and (
        is_stateful(data) or not (isinstance(data, DataLoader) or is_map_style(data))
    ):
        return LoaderStream(data, seed, timeline=timeline, pin_memory=pin_memory)
    if isinstance(data, DataLoader) and not can_be_positioned(data):
        pin_memory = pin_memory and not data.pin_memory
        return LoaderStream(data, seed, timeline=timeline, pin_memory=pin_memory)
    return BatchStream(data, batch_size, seed, timeline=timeline, pin_memory=pin_memory)


class _Requests:
    """What the workers are to read: from a position on, without an end."""

    def __init__(self, stream: BatchStream, position: int) -> None:
        self._stream = stream
        self._position = position

    def __iter__(self) -> Iterator[Request]:
        position = self._position
        while True:
            yield self._stream._request(position)
            position += 1


class ValidationBatches:
    """The held-out data: the same batches in the same order each time that it is gone through.

    The last batch is kept though it isn't full, unless a DataLoader with ``drop_last`` was given.
    Reading in this process seeds the global generators; ``validate`` restores them.

    Raises:
        JobError: the data can't be positioned, or is empty.
    """

    def __init__(self, data: object, batch_size: int, seed: int = 0) -> None:
        self._source = Source.of(data, batch_size, what="validation data", training=False)
        self._fetch = self._source.fetch(mix(seed, Domain.VALIDATION))
        self._tensors = self._source.tensors
        self._count = self._source.batches
        self.seed = seed

    def __len__(self) -> int:
        """Return the number of batches."""
        return self._count

    def first(self, count: int) -> "ValidationBatches":
        """Return the first ``count`` of these batches, or all where there are fewer."""
        few = copy(self)
        few._count = min(count, self._count)
        return few

    def __iter__(self) -> Iterator[Any]:
        """Yield each batch."""
        for batch, _ in self.weighted():
            yield batch

    def weighted(self) -> Iterator[tuple[Any, int]]:
        """Yield each batch with the number of samples in it.

        Raises:
            JobError: the dataset or its collate function raised.
        """
        order = self._source.order(self.seed, 0)
        size = self._source.batch_size
        parts = [order[start : start + size] for start in range(0, len(self) * size, size)]
        if self._tensors is not None:
            for part in parts:
                rows = self._source.rows(part)
                yield [tensor.index_select(0, rows) for tensor in self._tensors], len(part)
            return
        requests = [
            Request(0, index, part.tolist() if isinstance(part, Tensor) else part)
            for index, part in enumerate(parts)
        ]
        batches = self._read(requests)
        for request in requests:
            yield _take(batches, "the validation data"), len(request.indices)

    def _read(self, requests: list[Request]) -> Iterator[Any]:
        if not self._source.workers:
            return (self._fetch[request] for request in requests)
        generator = torch.Generator().manual_seed(mix(self.seed, Domain.LOADER))
        pin = self._source.pin_memory and _has_accelerator()
        return iter(self._source.loader(self._fetch, requests, generator, pin))


def validation_batches(data: object, batch_size: int, seed: int = 0) -> ValidationBatches:
    """Return the held-out data in batches; see ``ValidationBatches``."""
    return ValidationBatches(data, batch_size, seed)


def _take(batches: Iterator[Any], what: str) -> Any:
    try:
        return next(batches)
    except JobError as error:
        text = str(error)
        if not text.startswith("Caught JobError"):
            raise
        # From a worker process: torch put that process's whole trace before our line.
        raise JobError(text.strip().splitlines()[-1].partition("JobError: ")[2]) from error
    except Exception as error:
        raise user_error(what, "reading a batch", error) from error


def _has_accelerator() -> bool:
    return torch.accelerator.is_available()
