"""Batches that are drawn ahead can't be told from batches that are drawn when they are due."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, TensorDataset, WeightedRandomSampler

from tests.engine.loaders import Stateful, let_go
from tests.engine.test_data import Noisy
from tests.engine.test_loader_stream import Counting
from tolaria_bus.tolaria.engine import BatchStream, JobError
from tolaria_bus.tolaria.engine.batch import map_tensors, page_locked
from tolaria_bus.tolaria.engine.data import TrainingBatches, training_batches
from tolaria_bus.tolaria.engine.options import StepOptions, features, line
from tolaria_bus.tolaria.engine.prefetch import PrefetchedBatches, feature, prefetched

CPU = torch.device("cpu")
PAIRS = TensorDataset(torch.arange(23), torch.arange(23) * 10)


class Clones:
    """Copies at once, and holds its user to one copy at a time and to the wait before a draw."""

    def __init__(self) -> None:
        self.begun: Any = None
        self.waited = True
        self.without_memory = 0
        self.copies = 0

    def wait(self) -> None:
        self.waited = True

    def begin(self, batch: Any) -> Any:
        assert self.waited
        if self.without_memory:
            raise torch.OutOfMemoryError("CUDA out of memory.\n Tried to allocate much.")
        self.waited, self.copies = False, self.copies + 1
        self.begun = map_tensors(batch, Tensor.clone)
        return self.begun

    def take(self, moved: Any) -> Any:
        assert moved is self.begun
        self.begun = None
        return moved


def generators() -> tuple[Any, ...]:
    kind, keys, *rest = np.random.get_state()  # noqa: NPY002
    torchs = tuple(torch.default_generator.get_state().tolist())
    return random.getstate(), kind, tuple(keys), *rest, torchs


def disturb() -> None:
    """What is done at a fence, or by the job's own loss."""
    random.random()
    np.random.rand()  # noqa: NPY002
    torch.rand(())


def equal(one: Any, other: Any) -> bool:
    if isinstance(one, list):
        return len(one) == len(other) and all(map(equal, one, other))
    return torch.equal(one, other)


def weighted() -> DataLoader[Any]:
    sampler = WeightedRandomSampler([1.0] * 23, 15)
    return DataLoader(Noisy(), batch_size=5, sampler=sampler)


OPERATIONS = st.lists(
    st.one_of(
        st.sampled_from(["next", "ahead", "ahead", "next", "disturb", "close", "restore"]),
        st.tuples(st.integers(0, 9), st.sampled_from([None, 0, 1])),
    ),
    max_size=12,
)


@pytest.mark.parametrize(
    "make", [lambda: PAIRS, Noisy, weighted, lambda: DataLoader(PAIRS, 5, shuffle=True)]
)
@given(operations=OPERATIONS)
def test_a_run_with_prefetch_is_one_without(make: Callable[[], Any], operations: list[Any]) -> None:
    plain = BatchStream(make(), 5, 3)
    ours = PrefetchedBatches(BatchStream(make(), 5, 3), Clones())

    def both(do: Callable[[TrainingBatches], Any]) -> tuple[Any, Any]:
        """Do it from the same generators with both, which must leave them the same."""
        before = torch.default_generator.get_state(), random.getstate(), np.random.get_state()  # noqa: NPY002
        one = do(plain)
        left = generators()
        torch.default_generator.set_state(before[0])
        random.setstate(before[1])
        np.random.set_state(before[2])  # noqa: NPY002
        other = do(ours)
        assert generators() == left
        return one, other

    for operation in operations:
        if operation == "ahead":
            before = generators()
            ours.draw_ahead()
            assert generators() == before
        elif operation == "disturb":
            disturb()
        elif operation == "next":
            assert equal(*both(lambda batches: batches.next()))
        elif operation == "close":
            both(lambda batches: batches.close())
        elif operation == "restore":
            both(lambda batches: batches.restore(batches.position, 2, batches.own_state()))
        else:
            position, timeline = operation
            both(lambda batches, p=position, t=timeline: batches.seek(p, t))  # type: ignore[misc]
        assert (ours.position, ours.timeline) == (plain.position, plain.timeline)
    assert equal(*both(lambda batches: batches.next()))


def test_what_was_drawn_ahead_is_what_is_handed_out_and_nothing_is_read_twice() -> None:
    read: list[int] = []

    class Told(Noisy):
        def __getitem__(self, index: int) -> Tensor:
            read.append(index)
            sample: Tensor = super().__getitem__(index)  # type: ignore[no-untyped-call]
            return sample

    batches = PrefetchedBatches(BatchStream(Told(), 5, 3), Clones())
    batches.next()
    for _ in range(3):
        batches.draw_ahead()
    assert (len(read), batches.position) == (10, 1)
    batches.next()
    batches.next()
    assert (len(read), batches.position) == (15, 3)


@pytest.mark.parametrize("workers", [0, 1])
def test_a_rollback_drops_what_was_drawn_ahead_also_of_worker_processes(workers: int) -> None:
    loader = DataLoader(Noisy(), 5, shuffle=True, num_workers=workers)
    plain, inner = BatchStream(loader, 5, 3, timeline=1), BatchStream(loader, 5, 3, timeline=1)
    ours = PrefetchedBatches(inner, Clones())
    for batches in (plain, ours):
        for _ in range(3):
            batches.next()
    ours.draw_ahead()
    for batches in (plain, ours):
        batches.seek(3, 2)
    for _ in range(3):
        ours.draw_ahead()
        assert equal(ours.next(), plain.next())
    ours.draw_ahead()
    for batches in (plain, ours):
        batches.seek(1, 3)
    assert equal(ours.next(), plain.next())
    plain.close()
    ours.close()


def test_where_a_run_already_is_nothing_is_dropped() -> None:
    copies = Clones()
    batches = PrefetchedBatches(BatchStream(PAIRS, 5, 3, timeline=1), copies)
    batches.next()
    batches.draw_ahead()
    batches.seek(1, 1)
    batches.seek(1)
    batches.next()
    assert copies.copies == 2


def test_nothing_is_drawn_over_an_epochs_end() -> None:
    copies = Clones()
    batches = PrefetchedBatches(BatchStream(PAIRS, 5, 3), copies)
    for _ in range(batches.steps_per_epoch):
        batches.next()
        batches.draw_ahead()
    assert copies.copies == batches.steps_per_epoch


class Failing(Dataset[Tensor]):
    """Its second batch can't be read, as often as it is tried."""

    def __init__(self) -> None:
        self.tries = 0

    def __len__(self) -> int:
        return 20

    def __getitem__(self, index: int) -> Tensor:
        if index == 5:
            self.tries += 1
            disturb()
            raise KeyError(index)
        return torch.tensor(index)


@pytest.mark.parametrize("workers", [0, 1])
def test_an_error_ahead_is_raised_when_its_batch_is_due_and_names_the_users_line(
    workers: int,
) -> None:
    data = Failing()
    loader = DataLoader(data, 5, num_workers=workers)
    batches = PrefetchedBatches(BatchStream(loader, 5, 0), Clones())
    batches.next()
    before = generators()
    batches.draw_ahead()
    batches.draw_ahead()
    assert (generators(), batches.position) == (before, 1)
    with pytest.raises(
        JobError, match=r"reading a batch failed at .*test_prefetch.py:\d+: KeyE"
    ) as due:
        batches.next()
    assert batches.position == 1
    assert data.tries == (0 if workers else 1)
    with pytest.raises(JobError, match="KeyError") as again:
        batches.next()
    batches.close()
    for error in (due, again):
        let_go(error.value)


def test_an_error_ahead_is_never_raised_if_its_batch_is_never_due() -> None:
    batches = PrefetchedBatches(BatchStream(DataLoader(Failing(), 5), 5, 0), Clones())
    batches.next()
    batches.draw_ahead()
    batches.seek(2)
    assert batches.next().tolist() == [10, 11, 12, 13, 14]


@pytest.mark.parametrize("ahead", [True, False])
def test_without_memory_on_the_device_batches_come_as_they_are_and_it_is_told_once(
    ahead: bool,
) -> None:
    copies = Clones()
    told: list[str] = []
    plain, inner = BatchStream(Noisy(), 5, 3), BatchStream(Noisy(), 5, 3)
    ours = PrefetchedBatches(inner, copies)
    ours.on_failure = told.append
    assert equal(ours.next(), plain.next())
    copies.without_memory = True
    for _ in range(3):
        if ahead:
            ours.draw_ahead()
        assert equal(ours.next(), plain.next())
    assert told == ["CUDA out of memory. Tried to allocate much."]
    assert copies.copies == 1
    assert not ours.draws_ahead


@pytest.mark.parametrize("make", [Stateful, Counting])
def test_a_loader_of_the_users_own_is_read_when_a_batch_is_due(make: Callable[[], Any]) -> None:
    loader = make()
    plain = training_batches(make(), 4, seed=3, timeline=1)
    copies = Clones()
    ours = PrefetchedBatches(training_batches(loader, 4, seed=3, timeline=1), copies)
    assert not ours.draws_ahead
    for position in range(3):
        assert equal(ours.next(), plain.next())
        ours.draw_ahead()
        assert loader.read == copies.copies == position + 1
    own = ours.own_state()
    assert own.keys() == plain.own_state().keys()
    assert ours.caution == plain.caution
    for batches in (plain, ours):
        batches.seek(5, 2)
    assert equal(ours.next(), plain.next())
    again = PrefetchedBatches(training_batches(make(), 4, seed=3), Clones())
    again.restore(3, 1, own)
    again.seek(5, 2)
    plain.restore(3, 1, own)
    plain.seek(5, 2)
    assert equal(again.next(), plain.next())


def test_only_plain_tensors_of_the_cpus_are_page_locked() -> None:
    batch = [torch.ones(2, device="meta"), torch.eye(2).to_sparse(), "text"]
    assert all(one is other for one, other in zip(page_locked(batch), batch, strict=True))


def test_the_line_says_how_batches_come_and_why_not_ahead() -> None:
    stream = BatchStream(PAIRS, 5, 0)
    assert prefetched(stream, CPU, wanted=True) is stream
    optimizer = torch.optim.SGD([torch.zeros(1)])

    def said(data: Any, *, wanted: bool = True) -> str:
        found = feature(data, CPU, wanted=wanted)
        text = line(features(StepOptions(), CPU, optimizer=optimizer, prefetch=found))
        return next(part for part in text.split("; ") if part.startswith("prefetch"))

    assert said(stream) == "prefetch off (on a cpu the batches are there already)"
    assert said(stream, wanted=False) == "prefetch off (not wanted)"
    ahead = PrefetchedBatches(stream, Clones())
    assert said(ahead) == "prefetch 1 batch ahead, copies on a stream of their own"
    loader = PrefetchedBatches(training_batches(Stateful(), 4, seed=3), Clones())
    assert said(loader) == (
        "prefetch copies on a stream of their own "
        "(the job's own loader is read when a batch is due)"
    )
