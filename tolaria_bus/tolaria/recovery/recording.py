"""What a journal says a run did: enough to do it again, without its checkpoints or a bus.

Only the *live path* counts: what a rollback undid had no effect that lasts. A rollback is then no
more than its :class:`TimelineCut` at the step that it went back to, which the repeated run has
reached by itself: another time line, another place in the data, other rates. So a recording is a
short journal of its own, and repeating it is recovering from that, without a checkpoint.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from tolaria_bus.leyline import (
    AdaptationCommand,
    CommandIntent,
    CommandStatus,
    CommandType,
    JournalRecord,
)
from tolaria_bus.tolaria.recovery.journal import read_records
from tolaria_bus.tolaria.recovery.journal_view import NothingRecorded
from tolaria_bus.tolaria.recovery.ledger import CommandLedger
from tolaria_bus.tolaria.recovery.timeline import EFFECTS, LivePath

END_COMMAND: Final = "replay:end"
"""Id of the STOP that ends a repeated run."""

_APPLIED: Final = CommandStatus.COMMAND_STATUS_APPLIED
_NOT_REPEATED: Final = frozenset(
    {
        CommandType.COMMAND_STOP,
        CommandType.COMMAND_CHECKPOINT,
        CommandType.COMMAND_CANCEL,
        # One that was applied is its cut; its own record isn't on the live path.
        CommandType.COMMAND_ROLLBACK,
    }
)
"""Commands that change no weight, or not by their own record."""


@dataclass(frozen=True, slots=True)
class Recording:
    """A run as its journal has it.

    Attributes:
        folder: The run's folder.
        run: Its id.
        starts: A record for each process that worked on it, oldest first.
        live: Records on the live path that change a run, oldest first.
        ledger: What became of its commands.
        timeline: The live one's number.
        end_step: The last step on it that the journal knows to be reached.
        weights_sha256: Of the model there; empty if the run hasn't stopped there in good order.
    """

    folder: Path
    run: str
    starts: tuple[JournalRecord, ...]
    live: tuple[JournalRecord, ...]
    ledger: CommandLedger
    timeline: int
    end_step: int
    weights_sha256: str

    @classmethod
    def read(cls, folder: Path) -> Recording:
        """Read a run's folder, of a run in progress too; nothing is written or locked.

        Raises:
            NothingRecorded: There is no journal in it.
            JournalCorrupt: It is damaged before its tail.
            OSError: It can't be read.
        """
        if not folder.is_dir():
            raise NothingRecorded(f"{folder}: there is no such folder")
        records = list(read_records(folder))
        starts = tuple(record for record in records if record.HasField("started"))
        if not starts:
            raise NothingRecorded(f"{folder}: no journal of a run in it")
        live = tuple(item for item in LivePath(records) if item.WhichOneof("record") in EFFECTS)
        cuts = [place for place, record in enumerate(records) if record.HasField("cut")]
        since = records[cuts[-1] if cuts else 0 :]
        # Where an earlier process got beyond its last record that changes anything, the next one
        # didn't start from there.
        newest = [record for record in since if record.sequence >= starts[-1].sequence]
        last_effect = live[-1].sequence if live else 0
        end = max(record.step for record in (*newest, *live[-1:]))
        return cls(
            folder=folder,
            run=starts[-1].started.run_id,
            starts=starts,
            live=live,
            ledger=CommandLedger(records),
            timeline=records[-1].timeline,
            end_step=end,
            weights_sha256=_weights(since, end, last_effect),
        )

    @property
    def job(self) -> str:
        """The job's name."""
        return self.starts[0].started.job

    @property
    def job_options(self) -> Mapping[str, str]:
        """The job's own options."""
        return dict(self.starts[-1].started.job_options)

    @property
    def settings(self) -> dict[str, str]:
        """Settings that decide on weights, as text, of the newest start."""
        started = self.starts[-1].started
        return dict(started.settings) or {"seed": str(started.seed)}

    @property
    def environment(self) -> dict[str, str]:
        """What bitwise equality depends on beside the state, of the newest start."""
        return dict(self.starts[-1].started.environment)

    @property
    def first_weights_sha256(self) -> str:
        """Of the model before the first step; empty if that isn't recorded."""
        return self.starts[0].started.weights_sha256

    @property
    def rollbacks(self) -> int:
        """How many of them lead to the live path."""
        return sum(record.HasField("cut") for record in self.live)

    @property
    def commands(self) -> int:
        """How many were applied on the live path."""
        found = (record.intent for record in self.live if record.HasField("intent"))
        return sum(self._status(intent) == _APPLIED for intent in found)

    def journal(self) -> Iterator[JournalRecord]:
        """The records of a journal from which recovery does the same again, and then stops.

        In order, to be appended to an empty one.
        """
        yield _copied(self.starts[-1], step=0)
        sequence = 1
        for record in self.live:
            repeated = _copied(record, step=record.step)
            if record.HasField("intent"):
                if not self._repeats(record.intent):
                    continue
                result = self._result(record)
                if result is not None:
                    yield repeated
                    yield result
                    sequence += 2
                    continue
            elif record.HasField("cut"):
                # Nothing of this journal is undone by it.
                repeated.cut.target_sequence = sequence
            yield repeated
            sequence += 1
        yield self._end()

    def _repeats(self, intent: CommandIntent) -> bool:
        return AdaptationCommand.FromString(intent.command).command_type not in _NOT_REPEATED

    def _status(self, intent: CommandIntent) -> int | None:
        found = self.ledger.finished(intent.command_id, intent.origin, intent.digest)
        return None if found is None else found.outcome.status

    def _result(self, record: JournalRecord) -> JournalRecord | None:
        intent = record.intent
        found = self.ledger.finished(intent.command_id, intent.origin, intent.digest)
        if found is None:
            return None
        return JournalRecord(
            timeline=record.timeline, step=record.step, epoch=record.epoch, result=found
        )

    def _end(self) -> JournalRecord:
        stop = AdaptationCommand(
            version=1, command_id=END_COMMAND, command_type=CommandType.COMMAND_STOP
        )
        intent = CommandIntent(command_id=END_COMMAND, command=stop.SerializeToString())
        return JournalRecord(timeline=self.timeline, step=self.end_step, intent=intent)


def _weights(since: Iterable[JournalRecord], end: int, last_effect: int) -> str:
    found = [
        record.stopped.weights_sha256
        for record in since
        if record.HasField("stopped") and record.step == end and record.sequence > last_effect
    ]
    return found[-1] if found else ""


def _copied(record: JournalRecord, *, step: int) -> JournalRecord:
    copy = JournalRecord()
    copy.CopyFrom(record)
    copy.step = step
    return copy
