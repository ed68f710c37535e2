"""Scripts: the same seed makes the same orders; every kind of command is among a few of them."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest

from infra.torture.orders import FIRST, SPACING, WINDOWS, Script, Way, write
from tolaria_bus.leyline import AdaptationCommand, CommandType


def commands(script: Script) -> list[AdaptationCommand]:
    return [
        order.message
        for window in script.windows
        for order in window.orders
        if isinstance(order.message, AdaptationCommand)
    ]


@pytest.mark.parametrize("job", ["digits", "bytes_lm"])
def test_a_script_is_a_function_of_its_seed(job: str) -> None:
    assert write("7", job, signed=True) == write("7", job, signed=True)
    assert write("7", job, signed=True) != write("8", job, signed=True)


def test_every_command_that_a_worker_knows_is_sent() -> None:
    sent: Counter[Any] = Counter()
    for seed in range(30):
        sent.update(item.command_type for item in commands(write(str(seed), "digits", signed=True)))
    without = {CommandType.COMMAND_UNKNOWN, CommandType.COMMAND_RESUME}  # That is the operator's.
    not_yet = {CommandType.COMMAND_PROFILE, CommandType.COMMAND_CIRCUIT_BREAKER}
    assert set(CommandType.values()) - without - not_yet == set(sent)


def test_no_two_commands_of_a_window_wait_for_the_same_step() -> None:
    for seed in range(30):
        script = write(str(seed), "bytes_lm", signed=False)
        for number, window in enumerate(script.windows):
            first: dict[str, str] = {}
            for order in window.orders:
                message = order.message
                if isinstance(message, AdaptationCommand) and order.kind != "refused":
                    step = message.annotations.get("at_step")
                    if step is not None:
                        assert first.setdefault(step, message.command_id) == message.command_id
                        place = int(step) - FIRST
                        assert number * SPACING <= place <= (number + 1) * SPACING
        assert len(script.windows) == WINDOWS


def test_nothing_is_written_by_hand_where_messages_are_signed() -> None:
    for seed in range(30):
        script = write(str(seed), "digits", signed=True)
        assert all(o.way is not Way.HAND for window in script.windows for o in window.orders)
