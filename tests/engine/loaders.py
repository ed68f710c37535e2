"""Loaders as users bring them."""

from __future__ import annotations

import traceback
from collections.abc import Iterator
from typing import Any

import torch
from torch.utils.data import IterableDataset


class Stateful:
    """Tells its state, as torchdata's does: the order in a tensor, the place in it, nested.

    Shuffles with a generator of its own that goes on from pass to pass.
    """

    def __init__(self, batches: int = 5) -> None:
        self.batches = batches
        self.generator = torch.Generator().manual_seed(7)
        self.read = 0
        self._order: list[int] = []
        self._place = 0
        self._loaded = False

    def __len__(self) -> int:
        return self.batches

    def __iter__(self) -> Iterator[torch.Tensor]:
        if not self._loaded:
            self._order = torch.randperm(self.batches, generator=self.generator).tolist()
            self._place = 0
        self._loaded = False
        while self._place < self.batches:
            self.read += 1
            self._place += 1
            yield torch.cat([torch.tensor([float(self._order[self._place - 1])]), torch.rand(2)])

    def state_dict(self) -> dict[str, Any]:
        order = torch.tensor(self._order)
        return {"at": (self._place, {0: order}), "rng": self.generator.get_state()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._place, orders = state["at"]
        self._order = orders[0].tolist()
        self.generator.set_state(state["rng"])
        self._loaded = True


class Numbers(IterableDataset[torch.Tensor]):
    """Iterable-style: numbers in order, each with a random one."""

    def __init__(self, samples: int = 20) -> None:
        self.samples = samples

    def __len__(self) -> int:
        return self.samples

    def __iter__(self) -> Iterator[torch.Tensor]:
        info = torch.utils.data.get_worker_info()
        first, step = (0, 1) if info is None else (info.id, info.num_workers)
        for number in range(first, self.samples, step):
            yield torch.cat([torch.tensor([float(number)]), torch.rand(1)])


def let_go(error: BaseException) -> None:
    """Free what the frames of a loader's error hold.

    Its iterator is among that. Where that is left to the garbage collector, which takes it apart in
    any order, its worker processes aren't told to end and are waited for, for five seconds.
    """
    found: BaseException | None = error
    while found is not None:
        traceback.clear_frames(found.__traceback__)
        found = found.__cause__ or found.__context__
