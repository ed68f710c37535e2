"""What a machine has left, and when somebody has to know."""

from __future__ import annotations

from pathlib import Path

import pytest
from redis.asyncio import Redis

from tests.weatherlight.streams import STREAMS, alerts, wait_for
from tolaria_bus.oona.alone import open_publisher
from tolaria_bus.weatherlight.gpus import Gpu, NoGpus, gpus
from tolaria_bus.weatherlight.machine import MachineWatch
from tolaria_bus.weatherlight.resources import Reading, Watermarks, disks, memory
from tolaria_bus.weatherlight.telling import Teller


def used(percent: float, what: str = "") -> Reading:
    return Reading("memory", what, round(percent * 10), 1000)


def test_it_is_told_once_at_each_level_and_again_when_it_was_better() -> None:
    marks = Watermarks(0.8)
    told = [marks.crossed(used(percent)) for percent in (79, 81, 85, 91, 89.5, 91, 99, 79.5, 81)]
    assert told == [0, 1, 0, 2, 0, 0, 0, 0, 0]
    told = [marks.crossed(used(percent)) for percent in (70, 81, 50, 95)]
    assert told == [0, 1, 0, 2]


def test_each_disk_has_levels_of_its_own() -> None:
    marks = Watermarks(0.8)
    assert [marks.crossed(used(85, what)) for what in ("a", "b", "a")] == [1, 1, 0]


def test_the_memory_and_the_disks_of_this_machine_are_read(tmp_path: Path) -> None:
    assert 0 < memory().share <= 1
    (disk,) = disks([tmp_path, tmp_path, tmp_path / "not there"])
    assert 0 < disk.used <= disk.total


def test_a_container_with_less_memory_than_its_machine_is_what_counts(tmp_path: Path) -> None:
    (tmp_path / "memory.max").write_text("1000\n")
    (tmp_path / "memory.current").write_text("970\n")
    (tmp_path / "memory.stat").write_text("anon 900\ninactive_file 10\nother 3\n")
    assert memory(tmp_path) == Reading("memory", "", 960, 1000)
    (tmp_path / "memory.max").write_text("max\n")
    assert memory(tmp_path).total > 1000


@pytest.mark.skipif(Path("/dev/nvidiactl").exists(), reason="this machine has GPUs")
def test_without_a_gpu_it_is_said_why_there_is_none_to_watch() -> None:
    with pytest.raises(NoGpus, match=r"nvidia-ml-py|driver"), gpus():
        pass


async def test_a_gpu_that_is_full_or_hot_is_told_once_until_it_was_better(
    redis: Redis, redis_url: str
) -> None:
    def gpu(celsius: float) -> Gpu:
        memory = Reading("gpu_memory", "gpu0", 96, 100)
        return Gpu("gpu0", memory, celsius, slow_down_celsius=87, utilization=1.0)

    async with open_publisher(redis_url, source="weatherlight/test") as publisher:
        watch = MachineWatch([], Teller(publisher, STREAMS), memory_limit=0.9, disk_limit=0.9)
        for celsius in (60, 83, 84, 80, 83):
            watch.gpus = [gpu(celsius)]
            watch.readings = [watch.gpus[0].memory]
            watch.judge()
        (hot,) = await wait_for(lambda: alerts(redis, "", "gpu_hot"))
        assert "83 °C" in hot.description
        (full,) = await alerts(redis, "", "gpu_memory_low")
        assert "96% used" in full.description
        watch.gpus = [gpu(70)]
        watch.judge()
        watch.gpus = [gpu(90)]
        watch.judge()
    assert len(await alerts(redis, "", "gpu_hot")) == 2
