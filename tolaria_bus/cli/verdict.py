"""What an answer means for the sender of a command: is it the last one, and which exit code."""

from __future__ import annotations

from enum import IntEnum

from google.protobuf.message import Message

from tolaria_bus.leyline import CommandOutcome, CommandStatus, DeadLetter


class Exit(IntEnum):
    """Exit codes of ``send``."""

    APPLIED = 0
    NOT_SENT = 2
    REFUSED = 3
    NO_ANSWER = 4


_GOOD = frozenset({CommandStatus.COMMAND_STATUS_APPLIED, CommandStatus.COMMAND_STATUS_DEFERRED})


def answers(message: Message | None, *, command_id: str, stream: str, entry_id: str) -> bool:
    """Tell whether ``message`` is about the command that is entry ``entry_id`` of ``stream``."""
    if isinstance(message, CommandOutcome):
        return message.command_id == command_id
    if isinstance(message, DeadLetter):
        return message.stream == stream and message.entry_id == entry_id
    return False


def exit_code(message: Message) -> Exit:
    """The exit code that an answer stands for; a duplicate has that of the first outcome."""
    if not isinstance(message, CommandOutcome):
        return Exit.REFUSED
    status = message.status
    if status == CommandStatus.COMMAND_STATUS_DUPLICATE:
        status = message.first_outcome.status
    return Exit.APPLIED if status in _GOOD else Exit.REFUSED


def is_deferred(message: Message) -> bool:
    """Tell whether another answer follows, once the command's fence has come."""
    if not isinstance(message, CommandOutcome):
        return False
    status = message.status
    if status == CommandStatus.COMMAND_STATUS_DUPLICATE:
        status = message.first_outcome.status
    return status == CommandStatus.COMMAND_STATUS_DEFERRED
