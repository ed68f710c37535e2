"""What torture does to files is what a power cut may do, and no more."""

from __future__ import annotations

import random
from pathlib import Path

from infra.torture.damage import last_append, tear
from tests.recovery.records import note
from tolaria_bus.leyline import CheckpointSaved, JournalRecord
from tolaria_bus.tolaria.recovery.journal import Journal, read_records
from tolaria_bus.tolaria.recovery.segments import segment_path


def test_a_record_that_had_an_effect_outside_is_never_torn(tmp_path: Path) -> None:
    with Journal.open(tmp_path) as journal:
        journal.append(note("first"))
        journal.append(note("second"), note("third"))
    whole = [record.sequence for record in read_records(tmp_path)]
    for seed in range(30):
        assert tear(tmp_path, random.Random(seed))
        assert [record.sequence for record in read_records(tmp_path)] == whole
        with Journal.open(tmp_path) as journal:
            assert journal.last_sequence == 3


def test_a_note_on_a_checkpoint_may_be_torn_and_nothing_before_it(tmp_path: Path) -> None:
    torn = 0
    for seed in range(30):
        folder = tmp_path / str(seed)
        with Journal.open(folder) as journal:
            journal.append(note("first"))
            journal.append(JournalRecord(checkpoint=CheckpointSaved(name="c")))
        tear(folder, random.Random(seed))
        left = len(list(read_records(folder)))
        assert left in {1, 2}
        torn += left == 1
    assert 0 < torn < 30


def test_the_last_append_is_all_of_it(tmp_path: Path) -> None:
    with Journal.open(tmp_path) as journal:
        journal.append(note("first"))
        journal.append(note("second"), note("third"))
    found = last_append(segment_path(tmp_path, 1))
    assert found is not None
    assert [record.sequence for record in found.records] == [2, 3]
    assert last_append(Path("/dev/null")) is None
