"""A job's data, taken apart: the dataset, and how its samples are to be ordered and batched."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils.data import (
    BatchSampler,
    DataLoader,
    IterableDataset,
    RandomSampler,
    SequentialSampler,
    Subset,
    TensorDataset,
    default_collate,
)

from tolaria_bus.tolaria.engine.job_errors import JobError, user_error
from tolaria_bus.tolaria.engine.seeding import Domain, mix, seed_globals, seeded


class Request(NamedTuple):
    """One batch to read: where it stands, and the samples in it."""

    timeline: int
    position: int
    indices: list[Any]


class Fetch:
    """Reads one batch; the same in this process and in a loader's worker.

    The global generators are seeded from the batch's position first, so that what the dataset draws
    doesn't depend on which process reads it, nor on what that process read before.
    """

    def __init__(self, dataset: Any, collate: Callable[[list[Any]], Any], key: int) -> None:
        self._dataset = dataset
        self._collate = collate
        self._key = key

    def __getitem__(self, request: Request) -> Any:
        """Return the collated batch.

        Raises:
            JobError: the dataset or the collate function raised.
        """
        seed_globals(mix(self._key, request.timeline, request.position))
        try:
            whole_batch = getattr(self._dataset, "__getitems__", None)
            if whole_batch is not None:
                return self._collate(whole_batch(request.indices))
            return self._collate([self._dataset[index] for index in request.indices])
        except Exception as error:
            raise user_error("the data", "reading a batch", error) from error


@dataclass
class Source:
    """What a Dataset or a DataLoader of the job comes to.

    Attributes:
        batches: In one epoch.
        tensors: The fast path: whole tensors to index; None: read sample by sample.
    """

    dataset: Any
    batch_size: int
    samples: int
    batches: int
    shuffle: bool
    sampler: Any
    collate: Callable[[list[Any]], Any]
    workers: int
    pin_memory: bool
    given: "DataLoader[Any] | None"
    tensors: tuple[Tensor, ...] | None
    subset: Tensor | None

    @classmethod
    def of(cls, data: object, batch_size: int, *, what: str, training: bool) -> "Source":
        """Take ``data`` apart.

        Raises:
            JobError: it can't be positioned, or is less than a batch (training) or empty.
        """
        given = data if isinstance(data, DataLoader) else None
        dataset: Any = data if given is None else given.dataset
        _check_dataset(dataset, what)
        shuffle, sampler, drop_last = training, None, training
        if given is not None:
            _check_loader(given, what)
            batch_size, drop_last = given.batch_size or 1, given.drop_last
            shuffle = _is_plain_shuffle(given.sampler)
            plain = shuffle or type(given.sampler) is SequentialSampler
            sampler = None if plain else given.sampler
        ordered: Any = dataset if sampler is None else sampler
        samples = len(ordered)
        batches = samples // batch_size if drop_last else -(-samples // batch_size)
        if not batches:
            raise JobError(
                f"the {what} has {samples} samples, less than one batch of {batch_size}; "
                "lower the batch size"
            )
        collate = default_collate if given is None else given.collate_fn
        tensors, subset = _whole_tensors(dataset) if collate is default_collate else (None, None)
        return cls(
            dataset=dataset,
            batch_size=batch_size,
            samples=samples,
            batches=batches,
            shuffle=shuffle,
            sampler=sampler,
            collate=collate,
            workers=0 if given is None or tensors is not None else given.num_workers,
            pin_memory=given is not None and given.pin_memory,
            given=given,
            tensors=tensors,
            subset=subset,
        )

    def order(self, seed: int, epoch: int) -> "Tensor | list[Any]":
        """Return the sample indices of an epoch, in order: a pure function of (seed, epoch)."""
        key = mix(seed, Domain.ORDER, epoch)
        if self.sampler is not None:
            return self._sampled(key, epoch)
        if self.shuffle:
            order = torch.randperm(self.samples, generator=torch.Generator().manual_seed(key))
        else:
            order = torch.arange(self.samples)
        return order if self.tensors is None else order.to(self.tensors[0].device)

    def _sampled(self, key: int, epoch: int) -> list[Any]:
        generator = getattr(self.sampler, "generator", None)
        if isinstance(generator, torch.Generator):
            generator.manual_seed(key)
        if hasattr(self.sampler, "set_epoch"):
            self.sampler.set_epoch(epoch)
        with seeded(key):
            return list(self.sampler)

    def rows(self, indices: "Tensor | list[Any]") -> Tensor:
        """Return the rows of ``tensors`` that the sample ``indices`` stand for."""
        assert self.tensors is not None
        rows = torch.as_tensor(indices, device=self.tensors[0].device)
        return rows if self.subset is None else self.subset.index_select(0, rows)

    def fetch(self, key: int) -> Fetch:
        """Return what reads a batch of this source."""
        return Fetch(self.dataset, self.collate, key)

    def loader(
        self, fetch: Fetch, requests: Iterable[Request], generator: torch.Generator, pin: bool
    ) -> "DataLoader[Any]":
        """Return a DataLoader with the given one's workers, that reads ``requests`` in order."""
        assert self.given is not None
        # The generic types are of samples; here one "sample" is a whole batch.
        reader: Any = fetch
        order: Any = requests
        return DataLoader(
            reader,
            batch_size=None,
            sampler=order,
            num_workers=self.workers,
            collate_fn=_unchanged,
            pin_memory=pin,
            timeout=self.given.timeout,
            worker_init_fn=self.given.worker_init_fn,
            multiprocessing_context=self.given.multiprocessing_context,
            generator=generator,
            prefetch_factor=self.given.prefetch_factor,
        )


def _unchanged(batch: Any) -> Any:
    return batch


def is_map_style(dataset: object) -> bool:
    """Can samples be read by index, and counted?"""
    return (
        not isinstance(dataset, IterableDataset)
        and hasattr(dataset, "__getitem__")
        and hasattr(dataset, "__len__")
    )


def can_be_positioned(loader: "DataLoader[Any]") -> bool:
    """Can a loader's batches be made from indices here? Else it has to be gone through."""
    return is_map_style(loader.dataset) and not _makes_own_batches(loader)


def _makes_own_batches(loader: "DataLoader[Any]") -> bool:
    return loader.batch_size is None or type(loader.batch_sampler) is not BatchSampler


def _check_dataset(dataset: Any, what: str) -> None:
    if isinstance(dataset, IterableDataset):
        raise JobError(
            f"the {what} is iterable-style, which can't be resumed at a position; "
            "give a map-style Dataset (with __len__ and __getitem__)"
        )
    if not is_map_style(dataset):
        raise JobError(
            f"the {what} is a {type(dataset).__name__}; it must be a map-style Dataset "
            "(with __len__ and __getitem__) or a DataLoader"
        )


def _check_loader(loader: "DataLoader[Any]", what: str) -> None:
    if _makes_own_batches(loader):
        raise JobError(
            f"the {what}'s DataLoader makes its own batches (batch_sampler, or batch_size=None); "
            "give batch_size, and sampler if one is needed"
        )


def _is_plain_shuffle(sampler: object) -> bool:
    if type(sampler) is not RandomSampler:
        return False
    return not sampler.replacement and sampler.num_samples == len(sampler.data_source)


def _whole_tensors(dataset: Any) -> tuple[tuple[Tensor, ...] | None, Tensor | None]:
    """Return a TensorDataset's tensors, and which rows a Subset (of a Subset …) of it has."""
    rows: Tensor | None = None
    while type(dataset) is Subset:
        indices = torch.as_tensor(dataset.indices, dtype=torch.int64)
        rows = indices if rows is None else indices.index_select(0, rows)
        dataset = dataset.dataset
    if type(dataset) is not TensorDataset or len({t.device for t in dataset.tensors}) != 1:
        return None, None
    return dataset.tensors, None if rows is None else rows.to(dataset.tensors[0].device)
