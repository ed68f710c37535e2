"""The writer: behind the training, in order, and every error reaches its future."""

from __future__ import annotations

import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.recovery.states import assert_same, tensors
from tolaria_bus.tolaria.recovery.checkpoints import (
    CheckpointFailed,
    CheckpointStore,
    CheckpointWriter,
    checkpoint_name,
)


class Gate:
    """A store behind a gate, so that a test decides when a save goes on."""

    def __init__(self, store: CheckpointStore) -> None:
        self.store = store
        self.open = threading.Event()
        self.threads: set[str] = set()

    def save(
        self,
        name: str,
        tensors: Mapping[str, Tensor],
        meta: Mapping[str, Any],
        *,
        pin: bool = False,
    ) -> str:
        self.threads.add(threading.current_thread().name)
        assert self.open.wait(30)
        return self.store.save(name, tensors, meta, pin=pin)


def test_a_future_has_the_name_once_the_checkpoint_is_there(tmp_path: Path) -> None:
    store = CheckpointStore(tmp_path)
    writer = CheckpointWriter(store)
    name = checkpoint_name(3, 1, 2)
    assert writer.submit(name, tensors(3), {"a": 1}, pin=True).result(30) == name
    found, meta = store.load(name)
    assert_same(found, tensors(3))
    assert meta == {"a": 1}
    assert store.list()[0].pinned
    assert writer.close(30)


def test_saving_is_another_threads_work_and_in_order(tmp_path: Path) -> None:
    gate = Gate(CheckpointStore(tmp_path, keep=9))
    writer = CheckpointWriter(gate)
    order: list[str] = []
    names = [checkpoint_name(step, 1, step) for step in range(4)]
    for name in names:
        writer.submit(name, tensors(), {}).add_done_callback(
            lambda done: order.append(done.result())
        )
    assert writer.pending == 4
    assert not writer.drain(0)
    assert not writer.close(0.01)
    gate.open.set()
    assert writer.drain(30)
    assert order == names
    assert writer.pending == 0
    assert gate.threads == {"checkpoint-writer"}
    assert writer.close()


def test_an_error_reaches_its_future_and_the_writer_goes_on(tmp_path: Path) -> None:
    writer = CheckpointWriter(CheckpointStore(tmp_path))
    bad = writer.submit(checkpoint_name(1, 1, 1), {"x": torch.eye(2).to_sparse()}, {})
    worse = writer.submit("no name", {}, {})
    good = writer.submit(checkpoint_name(2, 1, 2), tensors(), {})
    with pytest.raises(CheckpointFailed, match="sparse"):
        bad.result(30)
    with pytest.raises(ValueError, match="isn't a checkpoint's name"):
        worse.result(30)
    assert good.result(30)
    assert writer.close(30)


def test_a_cancelled_future_is_not_saved(tmp_path: Path) -> None:
    gate = Gate(CheckpointStore(tmp_path))
    writer = CheckpointWriter(gate)
    writer.submit(checkpoint_name(1, 1, 1), tensors(), {})
    second = writer.submit(checkpoint_name(2, 1, 2), tensors(), {})
    assert second.cancel()
    gate.open.set()
    assert writer.close(30)
    assert [item.step for item in gate.store.list()] == [1]


def test_a_closed_writer_takes_nothing_and_leaves_no_thread(tmp_path: Path) -> None:
    before = threading.active_count()
    writer = CheckpointWriter(CheckpointStore(tmp_path))
    assert writer.close(30)
    assert writer.close(30)
    with pytest.raises(RuntimeError, match="closed"):
        writer.submit(checkpoint_name(1, 1, 1), {}, {})
    assert threading.active_count() == before
