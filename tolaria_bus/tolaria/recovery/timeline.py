"""Which records and states of a run count: those on its live path.

A rollback is a record, :class:`TimelineCut`: what the run did between the restored state and the
cut is dead, though it stays in the journal. What is left, in order, is what a run from the start
would have to do to get where this one is.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable, Iterator, Sequence

from tolaria_bus.leyline import JournalRecord

EFFECTS = frozenset({"intent", "decision", "cut"})
"""Kinds of journal records that change a run; the others are notes."""


class LivePath:
    """The live records of a journal, kept current record by record.

    Args:
        records: Taken note of at once, oldest first.
    """

    def __init__(self, records: Iterable[JournalRecord] = ()) -> None:
        self._records: list[JournalRecord] = []
        self._sequences: list[int] = []
        for record in records:
            self.note(record)

    def note(self, record: JournalRecord) -> None:
        """Take note of the journal's next record. One that is a cut drops what it undoes."""
        if record.HasField("cut"):
            keep = bisect_right(self._sequences, record.cut.target_sequence)
            del self._records[keep:], self._sequences[keep:]
        self._records.append(record)
        self._sequences.append(record.sequence)

    def is_live(self, sequence: int, step: int | None = None) -> bool:
        """Does the record ``sequence`` lie on the live path? Or the state that contains it?

        Args:
            sequence: Of a record, or of the last record that a state contains; 0 (a state before
                the first record) is live always.
            step: For a state, the optimizer steps it has done. Many states may contain the same
                last record; a cut to one of them kills those at later steps.
        """
        if sequence:
            place = bisect_right(self._sequences, sequence)
            if place == 0 or self._sequences[place - 1] != sequence:
                return False
        if step is None:
            return True
        return not any(
            record.sequence > sequence and record.cut.target_step < step
            for record in reversed(self._records)
            if record.HasField("cut")
        )

    def arrival(self, step: int) -> int:
        """What a run contains that arrives at a fence: the last record that changed it before.

        Args:
            step: Optimizer steps done at the fence; what was recorded there comes after arrival.

        Returns:
            The record's sequence, 0 if nothing changed the run before.
        """
        for record in reversed(self._records):
            if record.step < step and record.WhichOneof("record") in EFFECTS:
                return record.sequence
        return 0

    def cuts(self) -> list[JournalRecord]:
        """The rollbacks that lie on the live path, oldest first."""
        return [record for record in self._records if record.HasField("cut")]

    def __iter__(self) -> Iterator[JournalRecord]:
        """Live records, oldest first."""
        return iter(self._records)

    def __len__(self) -> int:
        """How many records are live."""
        return len(self._records)


def live(records: Iterable[JournalRecord]) -> list[JournalRecord]:
    """The records on the live path, oldest first: without those that a later cut undid."""
    return list(LivePath(records))


def position_at(cuts: Sequence[JournalRecord], step: int, sequence: int | None = None) -> int:
    """How many batches a run had drawn at a step of its live path.

    Args:
        cuts: The rollbacks on that path, oldest first.
        step: Optimizer steps done.
        sequence: The last record that the state contains; left out, it is the state in which the
            run arrived there: a rollback to this very step comes after.
    """
    for record in reversed(cuts):
        before = record.step < step if sequence is None else record.sequence <= sequence
        if before:
            return record.cut.data_position + step - record.cut.target_step
    return step
