"""The one error of this room."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from tolaria_bus.kasmina.gates import GateReading

RefusalCode = Literal[
    "unknown_seed",
    "unknown_slot",
    "unknown_blueprint",
    "slot_taken",
    "illegal_transition",
    "unsupported_operation",
    "bad_parameter",
    "gate_failed",
]


class SeedRefused(ValueError):
    """An operation that can't be done; the model is as it was.

    ``code`` is one word for programs, ``reason`` one sentence for people that names the field, its
    value and what is allowed. ``reading`` is what a gate measured, where one refused.
    """

    def __init__(self, code: RefusalCode, reason: str, reading: GateReading | None = None) -> None:
        super().__init__(reason)
        self.code: RefusalCode = code
        self.reason = reason
        self.reading = reading


class UnknownBlueprint(SeedRefused):
    """No blueprint of that name is there for the slot; the reason names those that are."""

    def __init__(self, reason: str) -> None:
        super().__init__("unknown_blueprint", reason)
