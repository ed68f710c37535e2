"""The newest answer of a run, told once more when a process begins to work on it.

A RESULT is journaled before its outcome is handed out. A process that dies in between has told
nobody. The entry that brought the command is delivered again, and is answered then; a command that
was put off has no entry any more, nor has one that was cancelled. All answers are given on one
thread, one after the other: so only the newest can be untold. If it was told all the same, its
message id is known, and the server takes it as a repetition. A process that stopped in good order
has told everything.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

from tolaria_bus.leyline import AdaptationCommand, CommandOutcome, JournalRecord
from tolaria_bus.tolaria.control.execution import journaled
from tolaria_bus.tolaria.control.mailbox import Delivery, Outbound
from tolaria_bus.tolaria.control.outcomes import FATAL, Outcomes
from tolaria_bus.tolaria.recovery.run_folder import RunFolder


def tell_newest_answer(folder: RunFolder, outcomes: Outcomes, outbound: Outbound) -> None:
    """Hand out the outcome of the journal's newest RESULT or DEFERRED record again.

    Args:
        folder: Of the run.
        outcomes: Builds them.
        outbound: Gets it.
    """
    newest = folder.newest_answer
    if newest is None:
        return
    if newest.HasField("deferred"):
        outbound.outcome(_deferred(newest, outcomes), None)
        return
    outcome, delivery = newest.result.outcome, None
    if outcome.code == FATAL and folder.ledger.was_deferred(outcome.command_id):
        # With it goes the dead letter, which has to hold the command.
        delivery = _given_up(outcome.command_id, folder.journal.records())
    outbound.outcome(outcome, delivery)


def _deferred(record: JournalRecord, outcomes: Outcomes) -> CommandOutcome:
    command = AdaptationCommand.FromString(record.deferred.command)
    outcome = outcomes.deferred(command)
    outcome.timeline, outcome.step, outcome.epoch = record.timeline, record.step, record.epoch
    origin = record.deferred.origin
    outcome.stream, outcome.entry_id = origin.stream, origin.entry_id
    return outcome


def _given_up(command_id: str, records: Iterable[JournalRecord]) -> Delivery | None:
    for record in records:
        if record.HasField("intent") and record.intent.command_id == command_id:
            return replace(journaled(record.intent), entry_gone=True)
    return None
