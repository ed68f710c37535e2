"""A process beside the trainer writes checkpoints; whatever becomes of it, they get written."""

from __future__ import annotations

import os
import resource
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
import torch

from tests.recovery.states import assert_same
from tests.recovery.states import tensors as some_tensors
from tolaria_bus.tolaria.recovery.buffers import TensorBuffers
from tolaria_bus.tolaria.recovery.checkpoints import (
    CheckpointFailed,
    CheckpointStore,
    checkpoint_name,
)
from tolaria_bus.tolaria.recovery.disk_helper import DiskHelper, Here
from tolaria_bus.tolaria.recovery.shared_memory import SharedMemory
from tolaria_bus.tolaria.recovery.tensor_file import check_tensors, write_tensors

Event = tuple[str, dict[str, str]]


class Shared:
    """A state in memory that a helper can read, and the helper."""

    def __init__(self) -> None:
        self.events: list[Event] = []
        self.memory = SharedMemory()
        self.buffers = TensorBuffers(self.memory.allocate)
        self.buffers.fill({**some_tensors(3.0), "large": torch.arange(700_000)})
        self.helper = DiskHelper(
            self.memory.find,
            lambda name, details: self.events.append((name, details)),
            helped_from=0,
        )

    def store(self, folder: Path) -> CheckpointStore:
        store = CheckpointStore(folder)
        store.disk = self.helper
        return store

    def pid(self) -> int:
        assert self.helper.pid is not None
        return self.helper.pid


@pytest.fixture
def shared() -> Iterator[Shared]:
    made = Shared()
    yield made
    made.helper.close()


def test_it_writes_the_bytes_that_the_trainer_would(tmp_path: Path, shared: Shared) -> None:
    here, there = tmp_path / "here", tmp_path / "there"
    expected = write_tensors(here, shared.buffers.tensors, Here())
    assert write_tensors(there, shared.buffers.tensors, shared.helper) == expected
    assert psutil.pid_exists(shared.pid())
    assert here.read_bytes() == there.read_bytes()
    check_tensors(there, expected, shared.helper)
    assert not shared.events


def test_it_is_given_way_by_nobody_who_trains(tmp_path: Path, shared: Shared) -> None:
    write_tensors(tmp_path / "x", shared.buffers.tensors, shared.helper)
    assert psutil.Process(shared.pid()).nice() > psutil.Process().nice()


def test_tensors_elsewhere_are_written_here(tmp_path: Path, shared: Shared) -> None:
    tensors = {**shared.buffers.tensors, "own": torch.ones(3)}
    expected = write_tensors(tmp_path / "x", tensors, shared.helper)
    assert shared.helper.pid is None
    check_tensors(tmp_path / "x", expected)


def test_a_killed_helper_is_told_of_and_another_one_takes_its_place(
    tmp_path: Path, shared: Shared
) -> None:
    store = shared.store(tmp_path)
    for step in range(1, 4):
        name = store.save(checkpoint_name(step, 1, step), shared.buffers.tensors, {})
        assert_same(store.load(name)[0], shared.buffers.tensors)
        if step == 1:
            first = shared.pid()
            os.kill(first, signal.SIGKILL)
        elif step == 2:
            assert shared.helper.pid is None
    assert shared.pid() != first
    ((name, details),) = shared.events
    assert name == "checkpoint_helper_lost"
    assert "the trainer writes" in details["detail"]


def test_a_helper_that_hangs_is_given_up(tmp_path: Path) -> None:
    shared = Shared()
    try:
        store = shared.store(tmp_path)
        store.save(checkpoint_name(1, 1, 1), shared.buffers.tensors, {})
        # Only now: it may have taken its time to start.
        assert shared.helper._link is not None
        shared.helper._link.settimeout(0.5)
        stopped = psutil.Process(shared.pid())
        stopped.suspend()
        name = store.save(checkpoint_name(2, 1, 2), shared.buffers.tensors, {})
        assert_same(store.load(name)[0], shared.buffers.tensors)
        assert [name for name, _ in shared.events] == ["checkpoint_helper_lost"]
        assert not stopped.is_running()
    finally:
        shared.helper.close()


def test_one_that_cannot_be_started_is_no_reason_to_save_nothing(
    tmp_path: Path, shared: Shared, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "executable", str(tmp_path / "no python"))
    store = shared.store(tmp_path)
    name = store.save(checkpoint_name(1, 1, 1), shared.buffers.tensors, {})
    assert_same(store.load(name)[0], shared.buffers.tensors)
    assert "No such file" in shared.events[0][1]["detail"]


def test_a_full_disk_is_the_checkpoints_failure_and_not_the_helpers(
    tmp_path: Path, shared: Shared
) -> None:
    store = shared.store(tmp_path)
    old = store.save(checkpoint_name(1, 1, 1), shared.buffers.tensors, {})
    helper = shared.pid()
    resource.prlimit(helper, resource.RLIMIT_FSIZE, (1_000_000, resource.RLIM_INFINITY))
    with pytest.raises(CheckpointFailed, match="File too large"):
        store.save(checkpoint_name(2, 1, 2), shared.buffers.tensors, {})
    assert [path.name for path in tmp_path.iterdir()] == [old]
    store.load(old)
    unlimited = (resource.RLIM_INFINITY, resource.RLIM_INFINITY)
    resource.prlimit(helper, resource.RLIMIT_FSIZE, unlimited)
    assert store.save(checkpoint_name(2, 1, 2), shared.buffers.tensors, {})
    assert shared.pid() == helper
    assert not shared.events


def test_a_file_that_shrank_meanwhile_is_torn(tmp_path: Path, shared: Shared) -> None:
    written = write_tensors(tmp_path / "x", shared.buffers.tensors, shared.helper)
    with (tmp_path / "x").open("r+b") as file:
        file.truncate(1000)
        with pytest.raises(EOFError):
            shared.helper.sum(file.fileno(), [written.bytes])


def test_it_needs_no_torch() -> None:
    module = "tolaria_bus.tolaria.recovery.disk_process"
    code = f"import sys, {module}; assert not {{'torch', 'numpy'}} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)


ORPHAN = """
import sys, time
from tests.recovery.test_disk_helper import Shared
from tolaria_bus.tolaria.recovery.tensor_file import write_tensors
from pathlib import Path

shared = Shared()
write_tensors(Path(sys.argv[1]), shared.buffers.tensors, shared.helper)
print(shared.pid(), flush=True)
time.sleep(600)
"""


def test_it_ends_with_a_trainer_that_is_killed(tmp_path: Path) -> None:
    with subprocess.Popen(
        [sys.executable, "-c", ORPHAN, str(tmp_path / "x")], stdout=subprocess.PIPE, text=True
    ) as trainer:
        assert trainer.stdout is not None
        helper = psutil.Process(int(trainer.stdout.readline()))
        trainer.kill()
    psutil.wait_procs([helper], timeout=60)
    assert not helper.is_running()
