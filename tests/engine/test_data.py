import random
from typing import NamedTuple

import numpy as np
import pytest
import torch
from torch.utils.data import (
    BatchSampler,
    DataLoader,
    Dataset,
    IterableDataset,
    RandomSampler,
    SequentialSampler,
    Subset,
    TensorDataset,
    WeightedRandomSampler,
)

from tolaria_bus.tolaria.engine import BatchStream, JobError, ValidationBatches, to_device

X = torch.arange(23)
PAIRS = TensorDataset(X, X * 10)


class Noisy(Dataset[torch.Tensor]):
    """Draws from every global generator for every sample."""

    def __len__(self):
        return 23

    def __getitem__(self, index):
        drawn = [torch.rand(()).item(), random.random(), np.random.rand()]  # noqa: NPY002
        return torch.tensor([float(index), *drawn], dtype=torch.float64)


def draw(stream: BatchStream, count: int) -> list[torch.Tensor]:
    batches = []
    for _ in range(count):
        batch = stream.next()
        batches.append(batch[0] if isinstance(batch, list) else batch)
    return batches


def same(a: list[torch.Tensor], b: list[torch.Tensor]) -> bool:
    return len(a) == len(b) and all(torch.equal(x, y) for x, y in zip(a, b, strict=True))


def test_an_epoch_goes_through_the_data_once_in_an_order_of_its_own():
    stream = BatchStream(PAIRS, 5, seed=1)
    assert stream.steps_per_epoch == 4
    first, second = torch.cat(draw(stream, 4)), torch.cat(draw(stream, 4))
    assert len(set(first.tolist())) == len(set(second.tolist())) == 20
    assert not torch.equal(first, second)
    assert stream.position == 8


def test_samples_stay_together():
    x, y = BatchStream(PAIRS, 5, seed=1).next()
    assert torch.equal(y, x * 10)


@pytest.mark.parametrize("data", [PAIRS, Noisy(), DataLoader(Noisy(), 5, shuffle=True)])
@pytest.mark.parametrize("position", [0, 1, 3, 4, 9])
def test_the_batch_at_a_position_depends_on_nothing_that_was_drawn_before(data, position):
    through = BatchStream(data, 5, seed=3, timeline=2)
    expected = draw(through, 12)[position:]
    sought = BatchStream(data, 5, seed=3)
    draw(sought, 2)
    torch.rand(5)
    random.random()
    sought.seek(position, timeline=2)
    assert same(draw(sought, 12 - position), expected)


def test_seeds_differ_and_timelines_differ_only_in_what_samples_draw():
    first, other = (BatchStream(PAIRS, 5, seed=s) for s in (1, 2))
    assert not same(draw(first, 4), draw(other, 4))
    here, there = (torch.cat(draw(BatchStream(Noisy(), 5, 1, timeline=t), 4)) for t in (0, 1))
    assert torch.equal(here[:, 0], there[:, 0])
    assert not (here[:, 1:] == there[:, 1:]).any()


def test_the_two_ways_of_reading_give_the_same_batches():
    slow = [PAIRS[index] for index in range(len(PAIRS))]
    assert same(draw(BatchStream(PAIRS, 5, 1), 9), draw(BatchStream(slow, 5, 1), 9))


def test_a_subset_of_a_subset_is_read_as_torch_reads_it():
    subset = Subset(Subset(PAIRS, range(3, 20)), [0, 2, 4, 6, 8, 10])
    loader = DataLoader(subset, batch_size=3)
    expected = [x for x, _ in loader]
    assert same(draw(BatchStream(loader, 1, seed=0), 2), expected)


def test_a_last_batch_that_is_not_full_is_dropped_unless_a_loader_keeps_it():
    assert BatchStream(PAIRS, 5, 0).steps_per_epoch == 4
    assert BatchStream(DataLoader(PAIRS, 5, drop_last=True), 1, 0).steps_per_epoch == 4
    kept = BatchStream(DataLoader(PAIRS, 5, shuffle=True), 1, 0)
    assert [len(batch) for batch in draw(kept, 6)] == [5, 5, 5, 5, 3, 5]


def test_a_loaders_order_and_collate_function_are_kept():
    loader = DataLoader(PAIRS, batch_size=4, collate_fn=lambda samples: [len(samples), samples])
    assert BatchStream(loader, 1, 0).next() == [4, [PAIRS[i] for i in range(4)]]


@pytest.mark.parametrize("generator", [None, torch.Generator()])
def test_a_loaders_own_sampler_is_used_and_repeats_itself(generator):
    weights = [1.0] * 3 + [0.0] * 20
    sampler = WeightedRandomSampler(weights, num_samples=10, generator=generator)
    loader = DataLoader(PAIRS, batch_size=5, sampler=sampler)
    stream = BatchStream(loader, 1, seed=4)
    torch.default_generator.manual_seed(0)
    batches = draw(stream, 6)
    assert set(torch.cat(batches).tolist()) <= {0, 1, 2}
    again = BatchStream(loader, 1, seed=4)
    again.seek(3)
    assert same(draw(again, 3), batches[3:])
    assert stream.steps_per_epoch == 2


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (TensorDataset(X[:3]), "has 3 samples, less than one batch of 5"),
        (TensorDataset(X[:0]), "has 0 samples"),
        (DataLoader(PAIRS, batch_size=None), "its own batches"),
        (
            DataLoader(PAIRS, batch_sampler=type("B", (BatchSampler,), {})(X, 2, False)),
            "its own batches",
        ),
        (type("I", (IterableDataset,), {"__iter__": lambda self: iter(X)})(), "iterable-style"),
        (type("D", (Dataset,), {})(), "must be a map-style Dataset"),
        (7, "is a int; it must be a map-style Dataset"),
    ],
)
def test_data_that_cannot_be_positioned_is_refused_in_one_line(data, words):
    with pytest.raises(JobError, match=words) as error:
        BatchStream(data, 5, 0)
    assert "\n" not in str(error.value)


def test_an_error_in_a_sample_names_the_users_line():
    class Bad(Noisy):
        def __getitem__(self, index):
            raise KeyError(index)

    with pytest.raises(JobError, match=r"reading a batch failed at .*test_data.py:\d+: KeyError"):
        BatchStream(Bad(), 5, 0).next()


def test_a_position_below_zero_is_refused():
    with pytest.raises(ValueError, match="position is -1"):
        BatchStream(PAIRS, 5, 0).seek(-1)


def test_training_order_draws_nothing_from_the_global_generator():
    torch.default_generator.manual_seed(9)
    expected = torch.rand(3)
    torch.default_generator.manual_seed(9)
    draw(BatchStream(PAIRS, 5, 0), 9)
    assert torch.equal(torch.rand(3), expected)


def test_validation_keeps_the_rest_and_repeats_itself():
    batches = ValidationBatches(PAIRS, 5)
    first = [x for x, _ in batches]
    assert len(batches) == len(first) == 5
    assert torch.equal(torch.cat(first), X)
    assert [size for _, size in batches.weighted()] == [5, 5, 5, 5, 3]
    noisy = ValidationBatches(Noisy(), 5, seed=1)
    assert same(list(noisy), list(noisy))


def test_validation_with_a_shuffling_loader_is_the_same_each_time():
    batches = ValidationBatches(DataLoader(PAIRS, 5, sampler=RandomSampler(PAIRS)), 1, seed=1)
    first = [x for x, _ in batches]
    assert same(first, [x for x, _ in batches])
    dropping = ValidationBatches(
        DataLoader(PAIRS, 5, sampler=SequentialSampler(PAIRS), drop_last=True), 1
    )
    assert len(list(dropping)) == len(dropping) == 4


class Point(NamedTuple):
    x: torch.Tensor
    tag: str


def test_nested_batches_move_to_a_device_and_keep_their_shape():
    batch = {"a": [X, (X, "text")], "p": Point(X, "t"), "n": 3}
    moved = to_device(batch, torch.device("meta"))
    assert moved["a"][0].is_meta
    assert moved["a"][1][0].is_meta
    assert moved["a"][1][1] == "text"
    assert isinstance(moved["p"], Point)
    assert moved["p"].x.is_meta
    assert moved["n"] == 3
