"""The ledger: what became of a command, and so what its next entry is."""

from __future__ import annotations

import pytest

from tests.recovery.records import (
    APPLIED,
    EXPIRED,
    REJECTED,
    attempt,
    cut,
    deferred,
    intent,
    note,
    numbered,
    origin,
    result,
    started,
)
from tolaria_bus.leyline import CommandStatus, CommandType, JournalRecord
from tolaria_bus.tolaria.recovery.ledger import CommandLedger, Identity


def ledger(*records: JournalRecord) -> CommandLedger:
    return CommandLedger(numbered(*records))


def identity(
    known: CommandLedger, entry: str = "1-1", digest: bytes = b"d", *, resent: bool = False
) -> Identity:
    return known.identify("x", digest, origin(entry), resent=resent)


FINISHED = (intent("x"), attempt("x"), result("x"))


def test_a_command_never_seen_is_new() -> None:
    known = ledger(intent("y"), result("y"))
    assert identity(known) is Identity.NEW
    assert known.finished("x") is None
    assert known.attempts("x") == 0
    assert known.waiting("x") is None


def test_the_same_entry_again_is_a_redelivery() -> None:
    known = ledger(*FINISHED)
    assert identity(known) is Identity.REDELIVERY
    finished = known.finished("x", origin("1-1"))
    assert finished is not None
    assert finished.outcome.status == APPLIED


def test_another_entry_with_the_same_command_is_a_duplicate() -> None:
    known = ledger(*FINISHED)
    assert identity(known, "2-1") is Identity.SAME
    assert known.identify("x", b"d", origin("1-1", "oona:control")) is Identity.SAME
    assert known.finished("x", origin("2-1")) is None


@pytest.mark.parametrize(
    "records", [FINISHED, (intent("x"),), (deferred("x"),), (result("x", REJECTED),)]
)
def test_another_payload_under_the_same_id_is_a_conflict(records: tuple[JournalRecord]) -> None:
    known = ledger(*records)
    assert identity(known, "2-1", b"other") is Identity.CONFLICT
    assert identity(known, "1-1", b"other") is Identity.CONFLICT


def test_an_intent_without_a_result_is_unfinished() -> None:
    known = ledger(intent("y"), intent("x", "1-2"), attempt("x"), attempt("x", 2))
    assert identity(known, "1-2") is Identity.UNFINISHED
    assert identity(known, "2-1") is Identity.UNFINISHED
    assert [item.command_id for item in known.unfinished()] == ["y", "x"]
    assert known.attempts("x") == 2
    known.note(JournalRecord(sequence=5, result=result("x", entry="1-2").result))
    assert [item.command_id for item in known.unfinished()] == ["y"]
    assert known.attempts("x") == 0


def test_a_rejected_command_needs_no_intent() -> None:
    known = ledger(result("x", REJECTED))
    assert identity(known) is Identity.REDELIVERY
    assert identity(known, "2-1") is Identity.SAME


def test_a_deferred_command_waits_until_its_fence() -> None:
    known = ledger(deferred("x", 20), deferred("y", 10, "1-2"))
    assert [item.command_id for item in known.deferred()] == ["x", "y"]
    assert identity(known) is Identity.REDELIVERY
    assert identity(known, "2-1") is Identity.WAITING
    known.note(JournalRecord(sequence=3, intent=intent("x").intent))
    assert [item.command_id for item in known.deferred()] == ["y"]
    assert identity(known) is Identity.UNFINISHED
    known.note(JournalRecord(sequence=4, result=result("x").result))
    assert identity(known) is Identity.REDELIVERY
    assert identity(known, "2-1") is Identity.SAME


def test_a_result_cancels_a_deferred_command() -> None:
    known = ledger(deferred("x"), result("x", REJECTED, code="cancelled"))
    assert known.deferred() == []
    assert known.waiting("x") is None
    assert identity(known) is Identity.REDELIVERY


@pytest.mark.parametrize("status", [REJECTED, EXPIRED])
def test_a_refused_command_may_be_sent_again_by_a_replay(status: CommandStatus.ValueType) -> None:
    known = ledger(result("x", status))
    assert identity(known, "2-1", b"new deadline", resent=True) is Identity.NEW
    assert identity(known, "2-1", b"new deadline") is Identity.CONFLICT
    assert identity(known, "2-1") is Identity.SAME
    known.note(JournalRecord(sequence=2, intent=intent("x", "2-1", b"new deadline").intent))
    assert identity(known, "2-1", b"new deadline", resent=True) is Identity.UNFINISHED
    known.note(
        JournalRecord(sequence=3, result=result("x", APPLIED, "2-1", b"new deadline").result)
    )
    # Each entry is answered with its own outcome; the newest one counts.
    assert identity(known, "2-1", b"new deadline", resent=True) is Identity.REDELIVERY
    assert identity(known, "1-1", b"d") is Identity.REDELIVERY
    first, newest = known.finished("x", origin("1-1")), known.finished("x")
    assert first is not None
    assert first.outcome.status == status
    assert newest is not None
    assert newest.outcome.status == APPLIED
    assert identity(known, "3-1", b"new deadline", resent=True) is Identity.SAME


def test_an_applied_command_can_never_be_sent_again() -> None:
    known = ledger(*FINISHED)
    assert identity(known, "2-1", resent=True) is Identity.SAME
    assert identity(known, "2-1", b"other", resent=True) is Identity.CONFLICT


@pytest.mark.parametrize(
    "answer",
    [
        result("x", CommandStatus.COMMAND_STATUS_DUPLICATE, "2-1"),
        result("x", CommandStatus.COMMAND_STATUS_ROLLED_BACK),
        result("x", REJECTED, "2-1", b"other", "id_conflict"),
        result("x", REJECTED, "2-1", b"other"),
    ],
)
def test_later_answers_do_not_replace_the_first_outcome(answer: JournalRecord) -> None:
    known = ledger(*FINISHED, answer)
    finished = known.finished("x")
    assert finished is not None
    assert finished.outcome.status == APPLIED
    assert identity(known) is Identity.REDELIVERY
    assert identity(known, "3-1") is Identity.SAME


def test_a_conflict_does_not_take_the_id_of_a_refused_command() -> None:
    known = ledger(result("x", REJECTED), result("x", REJECTED, "2-1", b"other", "id_conflict"))
    assert identity(known, "3-1") is Identity.SAME
    assert identity(known, "3-1", b"other") is Identity.CONFLICT


def test_a_rollback_names_the_applied_commands_that_it_undoes_once() -> None:
    known = ledger(
        *(intent("a"), result("a")),
        *(intent("b"), result("b")),
        *(intent("no"), result("no", REJECTED)),
        *(intent("back"), attempt("back")),
    )
    first = cut(2, from_timeline=1, command_id="back")
    assert known.rolled_back(first.cut) == ["b"]  # Asked before it is journaled.
    first.sequence = 9
    known.note(first)
    assert known.rolled_back(first.cut) == ["b"]
    known.note(JournalRecord(sequence=10, result=result("back").result))
    second = cut(0, from_timeline=2)
    second.sequence = 11
    known.note(second)
    assert known.rolled_back(second.cut) == ["a", "back"]
    assert known.rolled_back(first.cut) == ["b"]
    assert known.identify("b", b"d", origin("1-1")) is Identity.REDELIVERY  # Its id stays used.


def test_a_command_whose_intent_is_in_the_restored_state_is_not_undone() -> None:
    """A CHECKPOINT command's own checkpoint contains its INTENT, and its RESULT comes after."""
    known = ledger(intent("save"), note(), result("save"), cut(1))
    assert known.rolled_back(cut(1).cut) == []


def test_rollbacks_leave_deferred_commands_waiting() -> None:
    known = ledger(note(), deferred("x"), cut(1))
    assert [item.command_id for item in known.deferred()] == ["x"]


def test_it_counts_starts_and_knows_the_newest_timeline_and_environment() -> None:
    assert (CommandLedger().last_timeline, CommandLedger().starts) == (0, 0)
    known = ledger(started(threads="1"), cut(0, from_timeline=4), started(threads="2"))
    assert known.last_timeline == 5
    assert known.starts == 2
    assert known.environment == {"threads": "2"}


def test_it_tells_a_stop_from_other_commands() -> None:
    known = CommandLedger()
    assert known.is_stop(intent("x", kind=CommandType.COMMAND_STOP))
    assert not known.is_stop(intent("x"))
    assert not known.is_stop(note())


def test_record_by_record_is_the_same_as_all_at_once() -> None:
    records = numbered(deferred("x"), *FINISHED, result("y", REJECTED, "2-2"), cut(1), intent("y"))
    kept = CommandLedger()
    for record in records:
        kept.note(record)
    whole = CommandLedger(records)
    assert kept._entries == whole._entries
    assert kept._undone == whole._undone
