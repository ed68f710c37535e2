"""SIGKILL at any moment: what was acknowledged is there, and nothing half done counts."""

from __future__ import annotations

import os
import random
import signal
import time
from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path

import pytest
import torch

from tests.forks import PROCESSES
from tests.recovery.records import note
from tests.recovery.states import assert_same, save, tensors
from tolaria_bus.tolaria.recovery.checkpoints import CheckpointStore
from tolaria_bus.tolaria.recovery.journal import Journal, read_records


def append(folder: Path, seed: int, said: int) -> None:
    """Append records for ever; say which is begun and which is done."""
    chance = random.Random(seed)
    with Journal.open(folder, segment_bytes=2_000_000) as journal:
        while True:
            size = chance.choice([10, 1000, 100_000, 400_000])
            first = journal.last_sequence + 1
            records = [
                note(f"{first + place}:" + "x" * size) for place in range(chance.randint(1, 4))
            ]
            os.write(said, b"begin %d\n" % (first + len(records) - 1))
            os.write(said, b"done %d\n" % journal.append(*records)[-1])


def checkpoint(folder: Path, _seed: int, said: int) -> None:
    """Save checkpoints for ever; say which is begun and which is done."""
    torch.set_num_threads(1)
    store = CheckpointStore(folder, keep=2)
    step = max((item.step for item in store.list()), default=0)
    while True:
        step += 1
        os.write(said, b"begin %d\n" % step)
        save(store, step)
        os.write(said, b"done %d\n" % step)


def told(
    work: Callable[[Path, int, int], None], folder: Path, seed: int, words: Connection
) -> None:
    work(folder, seed, words.fileno())


def kill_after(
    work: Callable[[Path, int, int], None], folder: Path, seed: int, seconds: float
) -> dict[str, int]:
    """Run a process, kill it so long after its first word, and tell its last number by word."""
    ours, theirs = PROCESSES.Pipe(duplex=False)
    process = PROCESSES.Process(target=told, args=(work, folder, seed, theirs))
    process.start()
    theirs.close()
    with os.fdopen(os.dup(ours.fileno()), encoding="ascii") as words, ours:
        said = [words.readline()]
        assert said[0], "the process ended by itself"
        time.sleep(seconds)  # The moment of death is the thing under test.
        process.kill()
        said += words.readlines()
    process.join()
    assert process.exitcode == -signal.SIGKILL
    return {
        word: int(number)
        for word, _, number in (line.strip().partition(" ") for line in said if line.endswith("\n"))
    }


@pytest.mark.slow
def test_a_killed_process_loses_no_acknowledged_record(tmp_path: Path) -> None:
    chance = random.Random(20_251)
    for round_number in range(12):
        last = kill_after(append, tmp_path, round_number, chance.uniform(0.0, 0.15))
        seen = [record.sequence for record in read_records(tmp_path)]
        with Journal.open(tmp_path) as journal:
            records = list(journal.records())
        assert [record.sequence for record in records] == seen == list(range(1, len(records) + 1))
        assert last.get("done", 0) <= len(records) <= last["begin"]
        for record in records:
            assert record.decision.reason.startswith(f"{record.sequence}:x")


@pytest.mark.slow
def test_a_killed_process_leaves_no_half_checkpoint_under_a_checkpoints_name(
    tmp_path: Path,
) -> None:
    chance = random.Random(20_252)
    events: list[object] = []
    for _ in range(8):
        last = kill_after(checkpoint, tmp_path, 0, chance.uniform(0.0, 0.1))
        store = CheckpointStore(tmp_path, on_event=lambda *event: events.append(event))
        names = [item.name for item in store.list()]
        for name in names:
            found, meta = store.load(name)
            assert_same(found, tensors(meta["step"]))
        if "done" in last:
            newest = store.newest()
            assert newest is not None
            assert last["done"] <= newest.meta["step"] <= last["begin"]
        whole = [path for path in tmp_path.iterdir() if path.suffix not in {".tmp", ".old"}]
        assert sorted(path.name for path in whole) == sorted(names)
        assert events == []
