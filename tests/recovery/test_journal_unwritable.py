"""A journal that can't be written: nothing half done, and usable once there is space again."""

from __future__ import annotations

import os
import resource
import subprocess
import sys
from pathlib import Path

import pytest

from tests.recovery.records import note
from tolaria_bus.tolaria.recovery.journal import Journal, JournalUnwritable, read_records

FULL = """
import pathlib, resource, sys
from tests.recovery.records import note
from tolaria_bus.tolaria.recovery.journal import Journal, JournalUnwritable

def limit(size):
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, resource.RLIM_INFINITY))

with Journal.open(pathlib.Path(sys.argv[1])) as journal:
    journal.append(note("first"))
    limit(pathlib.Path(sys.argv[1], "journal-000001.log").stat().st_size + 300)
    for _ in range(3):
        before = journal.last_sequence
        try:
            journal.append(note("small"), note("x" * 500))
        except JournalUnwritable as error:
            assert "\\n" not in str(error), error
            assert "journal-000001.log: File too large" in str(error), error
        else:
            raise AssertionError("it went in")
        assert journal.last_sequence == before
    journal.append(note("fits"))
    limit(resource.RLIM_INFINITY)
    journal.append(note("y" * 500))
    assert [r.sequence for r in journal.records()] == [1, 2, 3]
"""


def test_a_full_disk_refuses_an_append_and_leaves_no_trace(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", FULL, str(tmp_path)], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    reasons = [record.decision.reason for record in read_records(tmp_path)]
    assert reasons == ["first", "fits", "y" * 500]


def test_a_device_without_space_says_so(tmp_path: Path) -> None:
    with Journal.open(tmp_path) as journal:
        journal.append(note("a"))
        real = journal._segment.fd
        journal._segment.fd = os.open("/dev/full", os.O_WRONLY)
        try:
            with pytest.raises(JournalUnwritable, match="No space left on device"):
                journal.append(note("b"))
            # /dev/full can't be cut back either; so nobody knows what is on the disk.
            with pytest.raises(JournalUnwritable, match="could not be taken back"):
                journal.append(note("c"))
        finally:
            os.close(journal._segment.fd)
            journal._segment.fd = real
    assert len(list(read_records(tmp_path))) == 1


def test_no_room_for_a_new_segment_leaves_the_old_one_in_use(tmp_path: Path) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    with Journal.open(tmp_path, segment_bytes=400) as journal:
        journal.append(note("a" * 300))
        resource.setrlimit(resource.RLIMIT_NOFILE, (0, hard))
        try:
            with pytest.raises(JournalUnwritable, match="no new segment"):
                journal.append(note("b" * 300))
            assert journal.append(note("c")) == (2,)
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        assert journal.append(note("d" * 300)) == (3,)
    assert (tmp_path / "journal-000002.log").stat().st_size
    assert [record.sequence for record in read_records(tmp_path)] == [1, 2, 3]
