"""SIGKILL at any moment: what was acknowledged is there, and nothing half done counts."""

from __future__ import annotations

import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.recovery.states import assert_same, tensors
from tolaria_bus.tolaria.recovery.checkpoints import CheckpointStore
from tolaria_bus.tolaria.recovery.journal import Journal, read_records

APPENDING = """
import pathlib, random, sys
from tests.recovery.records import note
from tolaria_bus.tolaria.recovery.journal import Journal

chance = random.Random(int(sys.argv[2]))
with Journal.open(pathlib.Path(sys.argv[1]), segment_bytes=2_000_000) as journal:
    while True:
        size = chance.choice([10, 1000, 100_000, 400_000])
        first = journal.last_sequence + 1
        records = [note(f"{first + place}:" + "x" * size) for place in range(chance.randint(1, 4))]
        print(f"begin {first + len(records) - 1}", flush=True)
        print(f"done {journal.append(*records)[-1]}", flush=True)
"""

SAVING = """
import pathlib, sys
import torch
torch.set_num_threads(1)
from tests.recovery.states import save
from tolaria_bus.tolaria.recovery.checkpoints import CheckpointStore

store = CheckpointStore(pathlib.Path(sys.argv[1]), keep=2)
step = max((item.step for item in store.list()), default=0)
while True:
    step += 1
    print(f"begin {step}", flush=True)
    save(store, step)
    print(f"done {step}", flush=True)
"""


def kill_after(code: str, arguments: list[str], seconds: float) -> dict[str, int]:
    """Run a program, kill it so long after its first word, and tell its last number by word."""
    process = subprocess.Popen(
        [sys.executable, "-c", code, *arguments], stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    with process.stdout:
        said = [process.stdout.readline()]
        assert said[0], "the program ended by itself"
        time.sleep(seconds)  # The moment of death is the thing under test.
        process.kill()
        said += process.stdout.readlines()
    assert process.wait() == -signal.SIGKILL
    return {
        word: int(number)
        for word, _, number in (line.strip().partition(" ") for line in said if line.endswith("\n"))
    }


@pytest.mark.slow
def test_a_killed_process_loses_no_acknowledged_record(tmp_path: Path) -> None:
    chance = random.Random(20_251)
    for round_number in range(12):
        last = kill_after(APPENDING, [str(tmp_path), str(round_number)], chance.uniform(0.0, 0.15))
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
        last = kill_after(SAVING, [str(tmp_path)], chance.uniform(0.0, 0.1))
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
