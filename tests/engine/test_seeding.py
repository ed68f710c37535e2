import random
from itertools import pairwise

import numpy as np
import torch

from tolaria_bus.tolaria.engine.seeding import StepSeeder, mix, seeded


def drawn() -> tuple[float, float, float]:
    return random.random(), float(np.random.rand()), float(torch.rand(()))  # noqa: NPY002


def test_mix_depends_on_every_part_and_on_their_order():
    assert len({mix(1, 2), mix(2, 1), mix(1, 3), mix(1), mix(1, 2, 0)}) == 5
    assert mix(1, 2) == mix(1, 2)
    assert 0 <= mix(-1, 2**70) < 2**64


def test_neighbouring_positions_differ_in_the_half_of_the_bits_that_the_cpu_generator_takes():
    low = [mix(0, 1, position) & 0xFFFFFFFF for position in range(2000)]
    assert len(set(low)) == 2000
    flips = [(a ^ b).bit_count() for a, b in pairwise(low)]
    assert 15 < sum(flips) / len(flips) < 17


def test_a_step_draws_the_same_again_and_other_steps_and_timelines_draw_otherwise():
    seeder = StepSeeder(7, torch.device("cpu"))
    draws: dict[tuple[int, int], list[float]] = {}
    for timeline, position in [(0, 0), (0, 1), (1, 0), (0, 0), (1, 0)]:
        seeder(timeline, position)
        draws.setdefault((timeline, position), []).append(float(torch.rand(())))
    assert draws[0, 0][0] == draws[0, 0][1]
    assert draws[1, 0][0] == draws[1, 0][1]
    assert len({values[0] for values in draws.values()}) == 3


def test_a_seeded_block_leaves_every_global_generator_as_it_was():
    torch.default_generator.manual_seed(3)
    random.seed(3)
    np.random.seed(3)  # noqa: NPY002
    expected = drawn()
    torch.default_generator.manual_seed(3)
    random.seed(3)
    np.random.seed(3)  # noqa: NPY002
    with seeded(5):
        first = drawn()
    assert drawn() == expected
    with seeded(5):
        assert drawn() == first
