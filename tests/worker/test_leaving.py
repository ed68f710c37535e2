"""A stop has one deadline, however many steps it takes."""

from __future__ import annotations

from datetime import timedelta

import anyio
import pytest

from tolaria_bus.worker.leaving import Deadline


@pytest.mark.parametrize(("seconds", "most"), [(20.0, 19.0), (1.0, 0.8), (2.0, 1.6)])
async def test_a_drain_gets_all_but_a_little(seconds: float, most: float):
    left = Deadline(seconds).left().total_seconds()
    assert most / 2 < left <= most + 1e-6


async def test_it_begins_once():
    deadline = Deadline(1000.0)
    end = deadline.begin()
    await anyio.sleep(0.001)
    assert deadline.begin() == end
    assert deadline.left() < timedelta(seconds=999)


async def test_a_drain_that_begins_after_it_gets_nothing():
    deadline = Deadline(0.001)
    await deadline.passed()
    assert deadline.left() == timedelta()
