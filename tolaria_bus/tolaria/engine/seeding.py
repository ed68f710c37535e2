"""Where every random draw of a run comes from: one seed, mixed with *where* the draw happens.

Exact recovery needs a step to draw the same numbers when it is run again. So nothing here carries a
generator's state along: each place that draws (a step, a fetch of a batch, the making of the model)
is seeded from (run's seed, domain, timeline, position) just before. A mix costs about 1 µs and
seeding torch's CPU generator 1.4 µs; ``torch.manual_seed`` takes 300 µs, as it visits every
back end, and is not used.
"""

import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from enum import IntEnum

import numpy as np
import torch

_MASK = (1 << 64) - 1


class Domain(IntEnum):
    """What is drawn for. Two domains never share a sequence of numbers."""

    MODEL = 1
    DATA = 2
    ORDER = 3
    FETCH = 4
    STEP = 5
    VALIDATION = 6
    LOADER = 7
    AGGREGATION = 8
    GLOBAL = 9


def _scramble(x: int) -> int:
    """Splitmix64's finaliser: every bit of the result depends on every bit of ``x``."""
    x = (x + 0x9E3779B97F4A7C15) & _MASK
    x = ((x ^ (x >> 30)) * 0xBF58476D1CE4E5B9) & _MASK
    x = ((x ^ (x >> 27)) * 0x94D049BB133111EB) & _MASK
    return x ^ (x >> 31)


def mix(*parts: int) -> int:
    """Return a 64-bit number in which each of ``parts``, and their order, counts.

    The low 32 bits are as well mixed as the others: torch's CPU generator takes only those.
    """
    mixed = 0
    for part in parts:
        mixed = _scramble(mixed ^ (part & _MASK))
    return mixed


def device_seeder(device: torch.device) -> Callable[[int], object] | None:
    """Return what seeds the generator of an accelerator, or None where the device is the CPU."""
    if device.type == "cpu":
        return None
    if device.type == "cuda":
        torch.cuda.init()  # type: ignore[no-untyped-call]
        index = torch.cuda.current_device() if device.index is None else device.index
        return torch.cuda.default_generators[index].manual_seed
    seeder: Callable[[int], object] = torch.get_device_module(device).manual_seed
    return seeder


class StepSeeder:
    """Seeds torch's default generators for one step, from (seed, timeline, position).

    Python's and numpy's global generators are not seeded here (7 µs): their state is a part of the
    training state.
    """

    def __init__(self, seed: int, device: torch.device) -> None:
        self._seed = seed
        self._timeline = -1
        self._key = 0
        self._cpu = torch.default_generator.manual_seed
        self._device = device_seeder(device)

    def __call__(self, timeline: int, position: int) -> int:
        """Seed the CPU's generator, and the accelerator's if there is one; return with what."""
        if timeline != self._timeline:
            self._key = mix(self._seed, Domain.STEP, timeline)
            self._timeline = timeline
        value = _scramble(self._key ^ position)
        self._cpu(value)
        if self._device is not None:
            self._device(value)
        return value


def seed_globals(value: int) -> None:
    """Seed the global generators of Python, numpy and torch's CPU (9 µs), without a way back.

    For a loader's worker process and for the fetch of a batch in the training thread.
    """
    random.seed(value)
    # numpy's global generator is the one that a user's augmentation draws from.
    np.random.seed(value & 0xFFFFFFFF)  # noqa: NPY002
    torch.default_generator.manual_seed(value)


class GlobalGenerators:
    """The state of every global generator (Python's, numpy's, torch's) when this was made.

    Making one takes 40 µs and putting it back as long, and some µs more for each CUDA device.
    """

    def __init__(self) -> None:
        self._python = random.getstate()
        self._numpy = np.random.get_state()  # noqa: NPY002
        self._torch = torch.default_generator.get_state()
        self._accelerators = {
            index: torch.cuda.default_generators[index].get_state()
            for index in _initialised_accelerators()
        }

    def put_back(self) -> None:
        """Make every generator what it was."""
        random.setstate(self._python)
        np.random.set_state(self._numpy)  # noqa: NPY002
        torch.default_generator.set_state(self._torch)
        for index, state in self._accelerators.items():
            torch.cuda.default_generators[index].set_state(state)

    def seed_accelerators(self, value: int) -> None:
        """Seed those of the CUDA devices that are known here."""
        for index in self._accelerators:
            torch.cuda.default_generators[index].manual_seed(value)


@contextmanager
def seeded(value: int) -> Iterator[None]:
    """Seed every global generator inside the block; after it they are as they were before.

    For what runs outside a step: making the model, reading the data, validation. About 0.1 ms.
    """
    before = GlobalGenerators()
    try:
        seed_globals(value)
        before.seed_accelerators(value)
        yield
    finally:
        before.put_back()


def _initialised_accelerators() -> list[int]:
    """CUDA devices whose generators exist: asking the others would start the driver for nothing."""
    if not torch.cuda.is_initialized():  # type: ignore[no-untyped-call]
        return []
    return list(range(torch.cuda.device_count()))
