"""Saving at a fence: the copy is of that moment, in memory that is used again; trouble is told."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest
import torch

from tests.trainer.conftest import Moons
from tolaria_bus.settings import load
from tolaria_bus.tolaria.engine.job import view
from tolaria_bus.tolaria.engine.loss_watch import LossReading, Verdict
from tolaria_bus.tolaria.recovery.buffer_pool import MOST, SPARE_BYTES, BufferPool
from tolaria_bus.tolaria.recovery.buffers import TensorBuffers
from tolaria_bus.tolaria.recovery.checkpoints import CheckpointFailed
from tolaria_bus.tolaria.recovery.run_folder import RunFolder
from tolaria_bus.tolaria.recovery.saving import Saving, WriterKind
from tolaria_bus.tolaria.recovery.sections import Section
from tolaria_bus.tolaria.recovery.state import TrainingState, state_bytes
from tolaria_bus.tolaria.start import fresh_state


class Scene:
    """A state that can make steps and be saved."""

    def __init__(self, path: Path, writer: WriterKind) -> None:
        settings, _ = load(device="cpu")
        self.job = Moons()
        self.state: TrainingState
        self.state, _ = fresh_state(view(self.job), settings, torch.device("cpu"))
        self.folder = RunFolder.open(path, keep=20)
        self.saved: list[str] = []
        self.failed: list[tuple[str, str]] = []
        self.saving = Saving(
            self.state,
            self.folder,
            job="moons",
            on_saved=self.saved.append,
            on_failed=lambda name, why: self.failed.append((name, why)),
            writer=writer,
        )

    def step(self) -> None:
        """One step, whose loss is read and sound."""
        loss = self.job.loss(self.state.model, self.state.data.next())
        loss.backward()  # type: ignore[no-untyped-call]
        self.state.optimizer.optimizer.step()
        self.state.step += 1
        self.state.note(LossReading(self.state.step, loss.item(), 0.0, Verdict.OK))

    def weight(self) -> torch.Tensor:
        return next(self.state.model.parameters()).detach()


@pytest.fixture(params=["process", "thread"])
def scene(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Scene]:
    made = Scene(tmp_path, request.param)
    with closing(made.folder):
        yield made
        made.saving.close(60)


def test_each_checkpoint_is_of_its_fence_however_many_wait(scene: Scene) -> None:
    weights = []
    for _ in range(MOST + 4):
        scene.step()
        scene.saving.later(0)
        weights.append(scene.weight().clone())
    scene.step()
    scene.saving.wait()
    store = scene.folder.checkpoints
    found = [store.load(item.name)[0]["model.0.weight"] for item in store.list()]
    assert len(found) == len(weights)
    assert all(torch.equal(a, b) for a, b in zip(found, weights, strict=True))
    assert scene.saved == [item.name for item in store.list()]
    assert not scene.failed


def test_a_state_is_written_when_the_next_loss_shows_it_to_be_good(scene: Scene) -> None:
    scene.step()
    scene.saving.later(0)
    scene.saving.wait()
    assert scene.saving.holding is True
    assert not scene.folder.checkpoints.list()
    scene.step()
    scene.saving.wait()
    assert [item.step for item in scene.folder.checkpoints.list()] == [1]


def test_a_state_that_was_cut_off_before_it_was_known_to_be_good_is_never_written(
    scene: Scene,
) -> None:
    scene.step()
    scene.saving.later(0)
    scene.state.timeline += 1  # A rollback.
    scene.step()
    scene.saving.wait()
    assert not scene.saving.holding
    assert not scene.folder.checkpoints.list()
    # What held it serves the next one.
    scene.saving.later(0)
    scene.step()
    scene.saving.wait()
    assert [item.step for item in scene.folder.checkpoints.list()] == [2]


def test_of_one_step_the_state_after_what_was_done_at_its_fence_is_kept(scene: Scene) -> None:
    scene.step()
    scene.saving.later(0)
    scene.saving.later(7)
    scene.step()
    scene.saving.wait()
    assert [item.sequence for item in scene.folder.checkpoints.list()] == [7]


def test_what_is_asked_for_is_written_at_once(scene: Scene) -> None:
    scene.step()
    scene.saving.later(0)
    name = scene.saving.now(0, pin=True)
    assert [item.name for item in scene.folder.checkpoints.list()] == [name]
    assert scene.folder.checkpoints.list()[0].pinned


def test_what_cannot_be_copied_fails_one_checkpoint_and_is_told(scene: Scene) -> None:
    scene.step()
    good = scene.saving.now(0)
    scene.step()
    scene.state.sections["odd"] = Section(1, object, lambda _state, _version: None)
    with pytest.raises(CheckpointFailed):
        scene.saving.now(0)
    ((name, why),) = scene.failed
    assert why == "the state can't be copied: section.odd can't be saved: it is a object"
    del scene.state.sections["odd"]
    later = scene.saving.now(0)
    assert [item.name for item in scene.folder.checkpoints.list()] == [good, later]
    assert name == later  # The same step; this time it went well.


def test_after_the_first_step_there_is_memory_for_all_of_the_state(
    scene: Scene,
) -> None:
    scene.saving.now(0)
    scene.step()
    for thread in threading.enumerate():
        if thread.name == "checkpoint-memory":
            thread.join()

    ready = state_bytes(scene.state) * 9 // 8
    for _ in range(3):
        # Its future is done a moment before what it was written from is given back.
        with scene.saving._pool._changed:
            assert scene.saving._pool._changed.wait_for(lambda: scene.saving._pool._free, 60)
            assert [item.capacity for item in scene.saving._pool._free] == [ready]
        scene.saving.now(0)
        scene.step()
    assert not scene.failed


def test_a_large_state_has_one_block_and_the_next_save_waits_for_it() -> None:
    pool = BufferPool(TensorBuffers)
    first = pool.take(SPARE_BYTES)
    taken = threading.Event()

    def take() -> None:
        assert pool.take(SPARE_BYTES) is first
        taken.set()

    thread = threading.Thread(target=take)
    thread.start()
    pool.prepare(SPARE_BYTES)  # Nothing to prepare: all are lent.
    assert not taken.is_set()
    pool.give_back(first)
    assert taken.wait(60)
    thread.join()


def test_small_states_may_wait_in_number() -> None:
    pool = BufferPool(TensorBuffers)
    lent = [pool.take(1000) for _ in range(MOST)]
    assert len(set(map(id, lent))) == MOST


def test_no_memory_is_a_failure_at_the_fence_alone() -> None:
    def nothing(_size: int) -> torch.Tensor:
        raise MemoryError("none left")

    pool = BufferPool(lambda: TensorBuffers(nothing))
    pool.prepare(1000)
    buffers = pool.take(1000)
    with pytest.raises(MemoryError, match="none left"):
        buffers.fill({"x": torch.ones(3)})
