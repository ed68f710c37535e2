"""The journal: what an append promises, and to whom."""

from __future__ import annotations

import multiprocessing
import os
import stat
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from tests.recovery.records import note
from tolaria_bus.leyline import JournalRecord
from tolaria_bus.tolaria.recovery.journal import (
    Journal,
    JournalCorrupt,
    JournalUnwritable,
    RunLocked,
    read_records,
)
from tolaria_bus.tolaria.recovery.segments import MAX_RECORD_BYTES


def reasons(records: object) -> list[str]:
    return [record.decision.reason for record in records]  # type: ignore[attr-defined]


def test_what_is_appended_is_there_after_opening_again(tmp_path: Path) -> None:
    clock = iter([111, 222])
    with Journal.open(tmp_path, lambda: next(clock)) as journal:
        assert journal.append(note("a"), note("b")) == (1, 2)
        assert journal.append(note("c")) == (3,)
        written = list(journal.records())
    with Journal.open(tmp_path) as journal:
        assert list(journal.records()) == written
        assert journal.last_sequence == 3
        assert journal.repaired is None
        assert journal.append(note("d")) == (4,)
    assert [record.written_at_ns for record in written] == [111, 111, 222]
    assert reasons(written) == ["a", "b", "c"]


def test_an_append_tells_each_record_its_sequence(tmp_path: Path) -> None:
    with Journal.open(tmp_path) as journal:
        first, second = note("a"), note("b")
        journal.append(first, second)
        assert (first.sequence, second.sequence) == (1, 2)
        assert journal.append() == ()


def test_an_append_is_one_durable_write(tmp_path: Path) -> None:
    """Seen from outside: the kernel gets one ``write`` on an ``O_DSYNC`` file."""
    code = (
        "import sys, pathlib\n"
        "from tests.recovery.records import note\n"
        "from tolaria_bus.tolaria.recovery.journal import Journal\n"
        "with Journal.open(pathlib.Path(sys.argv[1])) as journal:\n"
        "    journal.append(note('a'), note('b'), note('c'))\n"
    )
    trace = tmp_path / "trace"
    strace = ["strace", "-f", "-e", "trace=openat,write,pwrite64,writev", "-o", str(trace)]
    try:
        subprocess.run(["strace", "-V"], check=True, capture_output=True)
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("strace is not here")
    done = subprocess.run(
        [*strace, sys.executable, "-c", code, str(tmp_path / "run")], capture_output=True, text=True
    )
    if done.returncode and "ptrace" in done.stderr.lower():
        pytest.skip("this machine forbids tracing")
    assert done.returncode == 0, done.stderr
    lines = trace.read_text().splitlines()
    (opened,) = [line for line in lines if "journal-000001.log" in line and "O_DSYNC" in line]
    assert "O_APPEND" in opened
    fd = opened.rsplit("=", 1)[1].strip()
    begun = lines[lines.index(opened) :]
    assert len([line for line in begun if f'write({fd}, "TJR1' in line]) == 1


def test_no_other_process_gets_in_and_is_told_who_is_there(tmp_path: Path) -> None:
    with Journal.open(tmp_path):
        with pytest.raises(RunLocked) as caught:
            Journal.open(tmp_path)
        assert caught.value.pid == os.getpid()
        assert str(caught.value) == f"run folder {tmp_path} is in use by process {os.getpid()}"
    Journal.open(tmp_path).close()


def test_anybody_may_read_while_it_is_written(tmp_path: Path) -> None:
    with Journal.open(tmp_path) as journal:
        journal.append(note("a"))
        assert reasons(read_records(tmp_path)) == ["a"]
        journal.append(note("b"))
        assert reasons(read_records(tmp_path)) == ["a", "b"]


def test_reading_changes_nothing_and_leaves_out_a_torn_tail(tmp_path: Path) -> None:
    with Journal.open(tmp_path) as journal:
        journal.append(note("a"))
    path = tmp_path / "journal-000001.log"
    torn = path.read_bytes() + b"TJR1torn"
    path.write_bytes(torn)
    assert reasons(read_records(tmp_path)) == ["a"]
    assert path.read_bytes() == torn


def test_reading_a_folder_that_is_not_there_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        list(read_records(tmp_path / "none"))


def test_a_forked_child_neither_keeps_the_lock_nor_writes(tmp_path: Path) -> None:
    with Journal.open(tmp_path) as journal:
        context = multiprocessing.get_context("fork")
        go, refused = context.Event(), context.Event()

        def child() -> None:
            try:
                journal.append(note("from the child"))
            except JournalUnwritable:
                refused.set()
            go.wait(30)

        process = context.Process(target=child)
        process.start()
        assert refused.wait(30)
        with pytest.raises(RunLocked):  # The parent has it still.
            Journal.open(tmp_path)
        journal.close()
        Journal.open(tmp_path).close()  # Though the child lives on.
        go.set()
        process.join()
        assert process.exitcode == 0
    assert list(read_records(tmp_path)) == []


def test_a_closed_journal_takes_nothing(tmp_path: Path) -> None:
    journal = Journal.open(tmp_path)
    journal.close()
    journal.close()
    with pytest.raises(JournalUnwritable, match="closed"):
        journal.append(note())


def test_segments_follow_each_other(tmp_path: Path) -> None:
    with Journal.open(tmp_path, segment_bytes=1000) as journal:
        for number in range(60):
            journal.append(note(str(number)), note("-" * 40))
        assert journal.append(note("y" * 3000)) == (121,)  # Larger than a segment: one of its own.
        journal.append(note("z"))
    names = sorted(path.name for path in tmp_path.glob("journal-*"))
    assert names[0] == "journal-000001.log"
    assert len(names) > 5
    assert names[-1] == f"journal-{len(names):06d}.log"
    sizes = [(tmp_path / name).stat().st_size for name in names]
    assert sorted(sizes)[-2] <= 1000
    with Journal.open(tmp_path, segment_bytes=1000) as journal:
        assert [record.sequence for record in journal.records()] == list(range(1, 123))
        assert journal.append(note()) == (123,)


def test_an_empty_newest_segment_is_fine(tmp_path: Path) -> None:
    with Journal.open(tmp_path) as journal:
        journal.append(note("a"))
    (tmp_path / "journal-000002.log").touch()  # Died just after it was made.
    with Journal.open(tmp_path) as journal:
        assert journal.append(note("b")) == (2,)
    assert reasons(read_records(tmp_path)) == ["a", "b"]


def test_a_missing_segment_is_damage(tmp_path: Path) -> None:
    with Journal.open(tmp_path, segment_bytes=100) as journal:
        for _ in range(9):
            journal.append(note("a" * 50))
    (tmp_path / "journal-000002.log").unlink()
    with pytest.raises(JournalCorrupt, match=r"journal-000002\.log.*missing"):
        Journal.open(tmp_path)


def test_a_record_over_the_limit_is_refused_and_nothing_is_written(tmp_path: Path) -> None:
    with Journal.open(tmp_path) as journal:
        with pytest.raises(ValueError, match=r"at most 16777216"):
            journal.append(note("a"), note("x" * (MAX_RECORD_BYTES + 1)))
        assert journal.append(note("b")) == (1,)
    assert reasons(read_records(tmp_path)) == ["b"]


def test_threads_may_append_at_once(tmp_path: Path) -> None:
    with Journal.open(tmp_path) as journal:

        def work(name: int) -> None:
            for _ in range(20):
                first, second = journal.append(note(str(name)), note(str(name)))
                assert second == first + 1

        threads = [threading.Thread(target=work, args=(name,)) for name in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert [record.sequence for record in read_records(tmp_path)] == list(range(1, 161))


def test_files_are_private_to_their_owner_for_writing(tmp_path: Path) -> None:
    with Journal.open(tmp_path) as journal:
        journal.append(note())
    mode = (tmp_path / "journal-000001.log").stat().st_mode
    assert not mode & (stat.S_IWGRP | stat.S_IWOTH)


def test_records_keep_fields_of_newer_programs(tmp_path: Path) -> None:
    newer = JournalRecord.FromString(note("a").SerializeToString() + b"\xfa\x3f\x03new")
    with Journal.open(tmp_path) as journal:
        journal.append(newer)
    (record,) = read_records(tmp_path)
    assert b"\xfa\x3f\x03new" in record.SerializeToString()


def test_an_append_takes_at_most_ten_milliseconds_beside_what_the_disk_takes(
    tmp_path: Path,
) -> None:
    """Of this thread's own work: how long the disk takes is the disk's, and what else runs."""
    with Journal.open(tmp_path) as journal:
        begun = time.thread_time()
        for _ in range(50):
            journal.append(note("x" * 200), note("y" * 50))
        assert (time.thread_time() - begun) / 50 < 0.010
