"""Policies of other people."""

from __future__ import annotations

import threading

from tolaria_bus.leyline import AdaptationCommand, SystemStatePacket
from tolaria_bus.tamiyo import History, Policy, learning_rate

HELD = threading.Event()


def halving(factor: float = 0.5) -> Policy:
    def decide(packet: SystemStatePacket, history: History) -> AdaptationCommand:
        return learning_rate(factor, f"{len(history.past)} epochs are past")

    return decide


def broken() -> Policy:
    def decide(packet: SystemStatePacket, history: History) -> AdaptationCommand:
        raise RuntimeError("out of ideas")

    return decide


def lying() -> Policy:
    def decide(packet: SystemStatePacket, history: History) -> AdaptationCommand:
        return "LEARNING_RATE"  # type: ignore[return-value]

    return decide


def hanging() -> Policy:
    def decide(packet: SystemStatePacket, history: History) -> AdaptationCommand | None:
        HELD.wait(30)
        return None

    return decide
