"""On a full disk new commands are refused; what was begun before can still be finished."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.recovery.records import note
from tests.recovery.small_disk import run_on_small_disk
from tolaria_bus.tolaria.recovery.journal import Journal, read_records
from tolaria_bus.tolaria.recovery.open_segment import RESERVE_BYTES

FULL = """
import pathlib, sys
from tests.recovery.records import attempt, deferred, intent, note, result, started
from tests.recovery.small_disk import fill
from tolaria_bus.tolaria.recovery.journal import Journal, JournalUnwritable, read_records

folder = pathlib.Path(sys.argv[1])

def refused(*records):
    before = journal.last_sequence
    try:
        journal.append(*records)
    except JournalUnwritable as error:
        assert "No space left on device" in str(error), error
        assert "\\n" not in str(error)
    else:
        raise AssertionError("it went in")
    assert journal.last_sequence == before

run = folder / "run"
with Journal.open(run, segment_bytes=3_000_000) as journal:
    journal.append(intent("a"), attempt("a"))
    fill(folder)
    large = note("x" * 40_000)
    for size in (40_000, 400, 1):  # Until what is held beyond the reserve is used up.
        try:
            while True:
                journal.append(deferred("y" * size))
        except JournalUnwritable:
            pass
    refused(intent("b"), attempt("b"))
    refused(deferred("c"))
    journal.append(result("a"))
    for _ in range(20):
        journal.append(large)
    refused(intent("b"), attempt("b"))
    count = journal.last_sequence

with Journal.open(run, segment_bytes=3_000_000) as journal:  # Starting again is possible.
    assert journal.repaired is None
    journal.append(started())
    refused(intent("b"))
    (folder / "ballast").unlink()
    journal.append(intent("b"))
    fill(folder)
    try:
        while True:
            journal.append(large)
    except JournalUnwritable as error:
        assert "No space" in str(error), error
    (folder / "ballast").unlink()
    journal.append(large)
    assert [r.sequence for r in read_records(run)] == list(range(1, journal.last_sequence + 1))
    assert journal.last_sequence > count + 3
"""


def test_what_was_begun_can_be_finished_on_a_full_disk(tmp_path: Path) -> None:
    run_on_small_disk(FULL, tmp_path / "disk", size="8m")


def test_what_is_held_is_not_seen_in_the_file_and_freed_with_it(tmp_path: Path) -> None:
    with Journal.open(tmp_path, segment_bytes=400) as journal:
        journal.append(note("a" * 300))
        path = tmp_path / "journal-000001.log"
        held = path.stat().st_blocks * 512
        if held < RESERVE_BYTES:
            pytest.skip("this file system holds no space for a file")
        assert path.stat().st_size < 400
        journal.append(note("b" * 300))
        assert path.stat().st_blocks * 512 < RESERVE_BYTES
        second = tmp_path / "journal-000002.log"
        assert second.stat().st_blocks * 512 >= RESERVE_BYTES
    assert len(list(read_records(tmp_path))) == 2
