"""Torn tails are cut, damage is refused: never a record lost that had been acknowledged."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.recovery.records import note
from tolaria_bus.leyline import JournalRecord
from tolaria_bus.tolaria.recovery.journal import Journal, JournalCorrupt, read_records
from tolaria_bus.tolaria.recovery.segments import frame

SEGMENT = "journal-000001.log"


@pytest.fixture
def three_appends(tmp_path: Path) -> tuple[Path, list[int]]:
    """A journal of three appends (1, 2 and 3 records) and where each one ends."""
    ends = []
    with Journal.open(tmp_path / "run") as journal:
        for records in (1, 2, 3):
            journal.append(*(note("r" * 30) for _ in range(records)))
            ends.append((tmp_path / "run" / SEGMENT).stat().st_size)
    return tmp_path / "run" / SEGMENT, ends


def test_a_tail_torn_at_any_byte_is_cut(three_appends: tuple[Path, list[int]]) -> None:
    path, (_, second, third) = three_appends
    whole = path.read_bytes()
    for size in range(second + 1, third):
        path.write_bytes(whole[:size])
        with Journal.open(path.parent) as journal:
            kept = len(list(journal.records()))
            assert 3 <= kept < 6
            repaired = journal.repaired
            assert journal.append(note("after")) == (kept + 1,)
        torn = size - [second, *record_ends(whole, second)][kept - 3]
        if not torn:
            assert repaired is None
            continue
        assert repaired is not None
        assert (repaired.segment, repaired.offset, repaired.cut_bytes) == (
            SEGMENT,
            size - torn,
            torn,
        )
        assert repaired.kept_as is not None
        assert (path.parent / repaired.kept_as).read_bytes() == whole[size - torn : size]
        with Journal.open(path.parent) as journal:
            assert journal.repaired is None
            assert journal.last_sequence == kept + 1


def record_ends(whole: bytes, begin: int) -> list[int]:
    """Where the frames end that begin at ``begin``."""
    ends, at = [], begin
    while at < len(whole):
        at += 12 + (int.from_bytes(whole[at + 8 : at + 12], "little") & 0x7FFFFFFF)
        ends.append(at)
    return ends


def test_any_flipped_byte_before_the_last_append_is_damage(
    three_appends: tuple[Path, list[int]],
) -> None:
    path, (_, second, _) = three_appends
    whole = path.read_bytes()
    for place in range(second):
        damaged = bytearray(whole)
        damaged[place] ^= 0x41
        path.write_bytes(damaged)
        with pytest.raises(JournalCorrupt) as caught:
            Journal.open(path.parent)
        assert caught.value.segment == SEGMENT
        assert caught.value.offset <= place
        assert f"{SEGMENT} at byte {caught.value.offset}" in str(caught.value)
        with pytest.raises(JournalCorrupt):
            list(read_records(path.parent))
        assert path.read_bytes() == damaged  # Refused, not repaired.


def test_any_flipped_byte_in_the_last_append_costs_that_append_only(
    three_appends: tuple[Path, list[int]],
) -> None:
    path, (_, second, third) = three_appends
    whole = path.read_bytes()
    for place in range(second, third):
        damaged = bytearray(whole)
        damaged[place] ^= 0x41
        path.write_bytes(damaged)
        with Journal.open(path.parent) as journal:
            assert 3 <= journal.last_sequence < 6


def test_an_append_whose_first_block_never_reached_the_disk_is_torn(
    three_appends: tuple[Path, list[int]],
) -> None:
    """After a power cut later blocks may be there without earlier ones."""
    path, (_, second, third) = three_appends
    whole = path.read_bytes()
    first_of_last = record_ends(whole, second)[0]
    path.write_bytes(whole[:second] + bytes(first_of_last - second) + whole[first_of_last:third])
    with Journal.open(path.parent) as journal:
        assert journal.last_sequence == 3
        assert journal.repaired is not None
        assert journal.repaired.cut_bytes == third - second


def test_a_torn_tail_in_an_older_segment_is_damage(tmp_path: Path) -> None:
    with Journal.open(tmp_path, segment_bytes=200) as journal:
        for _ in range(6):
            journal.append(note("r" * 60))
    path = tmp_path / SEGMENT
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(JournalCorrupt, match=SEGMENT):
        Journal.open(tmp_path)


def test_a_missing_record_is_damage(tmp_path: Path) -> None:
    def framed(sequence: int) -> bytes:
        record = JournalRecord(sequence=sequence)
        return frame(record.SerializeToString(), begins_append=True)

    (tmp_path / SEGMENT).write_bytes(framed(1) + framed(3))
    with pytest.raises(JournalCorrupt, match="record 3 where 2 belongs"):
        Journal.open(tmp_path)


def test_a_newer_format_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / SEGMENT).write_bytes(b"TJR2" + bytes(100))
    with pytest.raises(JournalCorrupt, match="newer version"):
        Journal.open(tmp_path)


def test_bytes_that_are_no_record_are_damage(tmp_path: Path) -> None:
    (tmp_path / SEGMENT).write_bytes(frame(b"\xff\xff\xff", begins_append=True))
    with pytest.raises(JournalCorrupt, match="not a journal record"):
        Journal.open(tmp_path)


def test_a_refused_journal_gives_its_lock_back(three_appends: tuple[Path, list[int]]) -> None:
    path, _ = three_appends
    whole = path.read_bytes()
    path.write_bytes(b"X" + whole[1:])
    with pytest.raises(JournalCorrupt):
        Journal.open(path.parent)
    path.write_bytes(whole)
    Journal.open(path.parent).close()


def test_files_that_shrink_under_an_open_journal_are_noticed(tmp_path: Path) -> None:
    with Journal.open(tmp_path) as journal:
        journal.append(note("a"))
        journal.append(note("b"))
        path = tmp_path / SEGMENT
        path.write_bytes(frame(next(journal.records()).SerializeToString(), begins_append=True))
        with pytest.raises(JournalCorrupt, match="must be 2"):
            list(journal.records())
