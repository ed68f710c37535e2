"""Tamiyo: answers the states of runs with commands, as a service on the bus.

The policy is pure (:mod:`.heuristic`, or one of your own), what no policy may do is in
:mod:`.limits`, and :mod:`.service` reads, answers and signs.
"""

from tolaria_bus.tamiyo.advice import (
    Policy,
    emergency,
    learning_rate,
    nothing,
    pause,
    seed,
)
from tolaria_bus.tamiyo.heuristic import Heuristic
from tolaria_bus.tamiyo.history import History, Seen, loss_of
from tolaria_bus.tamiyo.limits import Limits
from tolaria_bus.tamiyo.policies import PolicyBook, PolicyRefused, make

__all__ = [
    "Heuristic",
    "History",
    "Limits",
    "Policy",
    "PolicyBook",
    "PolicyRefused",
    "Seen",
    "emergency",
    "learning_rate",
    "loss_of",
    "make",
    "nothing",
    "pause",
    "seed",
]
