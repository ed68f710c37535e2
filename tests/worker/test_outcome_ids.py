"""An answer is known again by its message id, whoever gives it and when."""

from __future__ import annotations

from tolaria_bus.leyline import AdaptationCommand, CommandOutcome, CommandStatus
from tolaria_bus.tolaria.control.mailbox import Delivery
from tolaria_bus.worker.bridge import outcome_message_id


def outcome(status: str, *, timeline: int = 1, entry_id: str = "1-1") -> CommandOutcome:
    number = CommandStatus.Value(f"COMMAND_STATUS_{status}")
    return CommandOutcome(command_id="a", status=number, timeline=timeline, entry_id=entry_id)


def delivery(entry_id: str) -> Delivery:
    return Delivery(AdaptationCommand(), b"", stream="s", entry_id=entry_id, group="g")


def test_the_answer_of_the_journal_and_that_to_the_entry_are_one() -> None:
    journaled = outcome_message_id(outcome("APPLIED"), None)
    assert journaled == outcome_message_id(outcome("APPLIED", timeline=2), delivery("1-1"))


def test_answers_to_two_entries_are_two() -> None:
    first, second = (outcome_message_id(outcome("DUPLICATE"), delivery(i)) for i in ("1-1", "2-1"))
    assert first != second


def test_each_status_is_an_answer_and_each_time_it_is_undone() -> None:
    answers = [
        outcome("DEFERRED"),
        outcome("APPLIED"),
        outcome("ROLLED_BACK", timeline=2),
        outcome("ROLLED_BACK", timeline=3),
    ]
    assert len({outcome_message_id(answer, None) for answer in answers}) == 4
