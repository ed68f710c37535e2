"""Kasmina: seeds, their life cycle, and which parameter belongs to whom.

Knows no bus and no trainer: a model with slots goes in, new or gone parameters come out.
"""

from tolaria_bus.kasmina.errors import SeedRefused, UnknownBlueprint
from tolaria_bus.kasmina.garden import Germinated, GerminationPlan, Kasmina, Rebuilt, SlotView
from tolaria_bus.kasmina.registry import HOST, Registry
from tolaria_bus.kasmina.slot import SeedSlot

__all__ = [
    "HOST",
    "Germinated",
    "GerminationPlan",
    "Kasmina",
    "Rebuilt",
    "Registry",
    "SeedRefused",
    "SeedSlot",
    "SlotView",
    "UnknownBlueprint",
]
