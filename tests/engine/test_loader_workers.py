"""Batches read by worker processes: the same as those read here, from any position."""

import random

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader, Dataset, get_worker_info

from tests.engine.loaders import let_go
from tolaria_bus.tolaria.engine import BatchStream, JobError, ValidationBatches


class Augmented(Dataset[torch.Tensor]):
    def __len__(self):
        return 23

    def __getitem__(self, index):
        drawn = [torch.rand(()).item(), random.random(), np.random.rand()]  # noqa: NPY002
        return torch.tensor([float(index), *drawn], dtype=torch.float64)


class Failing(Augmented):
    def __getitem__(self, index):
        if get_worker_info() is None:
            raise AssertionError("to be read by a worker")
        raise KeyError(f"sample {index}")


def loader(data: Augmented, workers: int) -> DataLoader[torch.Tensor]:
    return DataLoader(data, batch_size=4, shuffle=True, num_workers=workers, drop_last=True)


@pytest.mark.parametrize("workers", [1, 2])
def test_workers_give_the_batches_that_this_process_gives(workers):
    here = BatchStream(loader(Augmented(), 0), 1, seed=5, timeline=1)
    there = BatchStream(loader(Augmented(), workers), 1, seed=5, timeline=1)
    expected = [here.next() for _ in range(12)]
    torch.default_generator.manual_seed(9)
    undisturbed = torch.default_generator.get_state()
    assert all(torch.equal(there.next(), batch) for batch in expected)
    assert torch.equal(torch.default_generator.get_state(), undisturbed)
    for position in (3, 11, 0):
        there.seek(position)
        assert torch.equal(there.next(), expected[position])
    assert there.position == 1
    there.close()


def test_validation_by_workers_is_the_same_each_time():
    held_out = DataLoader(Augmented(), batch_size=4, num_workers=1)
    batches = ValidationBatches(held_out, 1, seed=2)
    here = ValidationBatches(DataLoader(Augmented(), batch_size=4), 1, seed=2)
    for _ in range(2):
        sizes = []
        for (batch, size), (expected, _) in zip(batches.weighted(), here.weighted(), strict=True):
            assert torch.equal(batch, expected)
            sizes.append(size)
        assert sizes == [4, 4, 4, 4, 4, 3]


def test_an_error_in_a_worker_is_one_line_that_names_the_users_line():
    stream = BatchStream(loader(Failing(), 1), 1, seed=0)
    with pytest.raises(JobError) as error:
        stream.next()
    assert "\n" not in str(error.value)
    assert "test_loader_workers.py:" in str(error.value)
    assert "KeyError: 'sample" in str(error.value)
    stream.close()
    let_go(error.value)
