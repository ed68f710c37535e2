"""A user's own loader: with a state it is given it back, without one it is gone through again."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch.utils.data import BatchSampler, DataLoader, RandomSampler, TensorDataset

from tests.engine.loaders import Numbers, Stateful
from tolaria_bus.tolaria.engine import BatchStream, JobError
from tolaria_bus.tolaria.engine.data import training_batches
from tolaria_bus.tolaria.engine.loader_stream import LoaderStream
from tolaria_bus.tolaria.recovery.sections import pack, unpack

PAIRS = TensorDataset(torch.arange(20))


class Counting:
    """Gives numbers as batches and counts how many it read."""

    def __init__(self, batches: int = 4, length: int | None = None) -> None:
        self.batches = batches
        self.length = batches if length is None else length
        self.read = 0
        self.epochs: list[int] = []

    def __len__(self) -> int:
        return self.length

    def set_epoch(self, epoch: int) -> None:
        self.epochs.append(epoch)

    def __iter__(self) -> Any:
        for number in range(self.batches):
            self.read += 1
            yield torch.cat([torch.tensor([float(number)]), torch.rand(2)])


def with_batch_sampler() -> Any:
    sampler = RandomSampler(PAIRS, generator=torch.Generator())

    class Own(BatchSampler):
        pass

    return DataLoader(PAIRS, batch_sampler=Own(sampler, 4, drop_last=False))


def iterable_style() -> Any:
    return DataLoader(Numbers(), batch_size=4)


def by_workers() -> Any:
    return DataLoader(Numbers(), batch_size=4, num_workers=2)


LOADERS: list[Callable[[], Any]] = [
    Stateful,
    Counting,
    with_batch_sampler,
    iterable_style,
    Numbers,
    by_workers,
]


def draw(stream: Any, count: int) -> list[torch.Tensor]:
    found = []
    for _ in range(count):
        batch = stream.next()
        found.append(batch[0] if isinstance(batch, list) else batch)
    return found


def same(a: list[torch.Tensor], b: list[torch.Tensor]) -> bool:
    return len(a) == len(b) and all(torch.equal(x, y) for x, y in zip(a, b, strict=True))


def through_disk(own: dict[str, Any]) -> Any:
    """What a checkpoint gives back: JSON and copies of tensors."""
    value, tensors = pack(own, "data")
    return unpack(json.loads(json.dumps(value)), {k: t.clone() for k, t in tensors.items()})


@pytest.mark.parametrize("make", LOADERS)
@pytest.mark.parametrize("position", [0, 1, 3, 4, 5, 7, 10])
def test_another_process_goes_on_with_the_same_batches(make: Any, position: int) -> None:
    torch.default_generator.manual_seed(1)
    through = training_batches(make(), 4, seed=3, timeline=1)
    assert isinstance(through, LoaderStream)
    draw(through, position)
    own = through_disk(through.own_state())
    expected = draw(through, 9)
    torch.default_generator.manual_seed(2)
    again = training_batches(make(), 4, seed=3, timeline=1)
    again.restore(position, 1, own)
    # A checkpoint before the first batch of a resumed run is as good as the one it came from.
    third = training_batches(make(), 4, seed=3, timeline=1)
    third.restore(position, 1, through_disk(again.own_state()))
    assert same(draw(again, 9), expected)
    assert same(draw(third, 9), expected)
    assert again.position == position + 9
    for stream in (through, again, third):
        stream.close()


@pytest.mark.parametrize("make", [Stateful, Counting])
def test_the_same_process_goes_back(make: Any) -> None:
    stream = training_batches(make(), 4, seed=3, timeline=1)
    draw(stream, 3)
    own = through_disk(stream.own_state())
    expected = draw(stream, 8)
    stream.restore(3, 1, own)
    assert same(draw(stream, 8), expected)


@pytest.mark.parametrize("make", [Stateful, Counting])
def test_skipping_ahead_is_drawing_and_throwing_away(make: Any) -> None:
    drawn, sought = (training_batches(make(), 4, seed=3, timeline=1) for _ in range(2))
    draw(sought, 2)
    own = through_disk(sought.own_state())
    sought.restore(2, 1, own)
    sought.seek(8)
    waiting = through_disk(sought.own_state())
    assert same(draw(sought, 3), draw(drawn, 11)[8:])
    third = training_batches(make(), 4, seed=3, timeline=1)
    third.restore(8, 1, waiting)
    fresh = training_batches(make(), 4, seed=3, timeline=1)
    assert same(draw(third, 3), draw(fresh, 11)[8:])


def test_only_its_state_takes_a_loader_back() -> None:
    stream = training_batches(Counting(), 4, seed=3)
    draw(stream, 3)
    with pytest.raises(ValueError, match="position is 2; allowed: 3 or more"):
        stream.seek(2)


def test_a_loader_with_a_state_reads_nothing_twice_and_needs_no_caution() -> None:
    first = training_batches(Stateful(), 4, seed=3)
    draw(first, 4)
    own = through_disk(first.own_state())
    loader = Stateful()
    again = training_batches(loader, 4, seed=3)
    again.restore(4, 0, own)
    draw(again, 1)
    assert loader.read == 1
    assert again.caution == ""


def test_a_loader_without_one_reads_the_epoch_again_and_says_so() -> None:
    loader = Counting(batches=4)
    stream = training_batches(loader, 4, seed=3)
    assert "Counting tells no state" in stream.caution
    draw(stream, 6)
    own = through_disk(stream.own_state())
    resumed = Counting(batches=4)
    again = training_batches(resumed, 4, seed=3)
    again.restore(6, 0, own)
    draw(again, 1)
    assert resumed.read == 3
    assert resumed.epochs == [1]


def test_worker_processes_of_a_loader_with_a_state_are_a_caution() -> None:
    loader: Any = Stateful()
    loader.num_workers = 2
    assert "worker processes" in training_batches(loader, 4, seed=3).caution


def test_between_two_epochs_there_is_nothing_to_read_again() -> None:
    stream = training_batches(Counting(), 4, seed=3)
    draw(stream, 8)
    resumed = Counting()
    again = training_batches(resumed, 4, seed=3)
    again.restore(8, 0, through_disk(stream.own_state()))
    draw(again, 1)
    assert resumed.read == 1


def test_a_pass_that_ends_early_is_followed_by_the_next() -> None:
    stream = training_batches(Counting(batches=3, length=5), 4, seed=3)
    assert [int(batch[0]) for batch in draw(stream, 7)] == [0, 1, 2, 0, 1, 2, 0]


def test_telling_the_state_draws_nothing() -> None:
    stream = training_batches(Stateful(), 4, seed=3)
    draw(stream, 2)
    before = torch.default_generator.get_state()
    stream.own_state()
    assert torch.equal(torch.default_generator.get_state(), before)


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (iter([1]), "has no length"),
        (Counting(batches=0), "has a length of 0"),
        (Counting(batches=0, length=3), "gave no batch at all"),
    ],
)
def test_what_cannot_be_counted_or_is_empty_is_refused_in_one_line(data: Any, words: str) -> None:
    with pytest.raises(JobError, match=words) as error:
        training_batches(data, 4, seed=3).next()
    assert "\n" not in str(error.value)


def test_a_state_of_the_other_kind_is_refused() -> None:
    stateful, counting = (training_batches(k(), 4, seed=3) for k in (Stateful, Counting))
    draw(stateful, 2)
    draw(counting, 2)
    with pytest.raises(JobError, match="now takes none"):
        training_batches(Counting(), 4, seed=3).restore(2, 0, through_disk(stateful.own_state()))
    with pytest.raises(JobError, match="now tells one"):
        training_batches(Stateful(), 4, seed=3).restore(2, 0, through_disk(counting.own_state()))
    with pytest.raises(JobError, match="no longer is"):
        training_batches(PAIRS, 4, seed=3).restore(2, 0, through_disk(counting.own_state()))


def test_an_error_of_the_loader_names_the_users_line() -> None:
    class Bad(Counting):
        def __iter__(self) -> Any:
            raise KeyError("x")

    with pytest.raises(JobError, match=r"test_loader_stream.py:\d+: KeyError"):
        training_batches(Bad(), 4, seed=3).next()


def test_what_can_be_positioned_still_is() -> None:
    for data in (PAIRS, DataLoader(PAIRS, batch_size=4, shuffle=True), [1, 2, 3, 4, 5]):
        assert isinstance(training_batches(data, 4, seed=3), BatchStream)
