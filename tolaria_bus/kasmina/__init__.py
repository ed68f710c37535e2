"""Kasmina: seeds, their life cycle, and which parameter belongs to whom.

Knows no bus and no trainer: a model with slots goes in, new or gone parameters come out.
"""

from tolaria_bus.kasmina.blueprints import Blueprint
from tolaria_bus.kasmina.errors import SeedRefused, UnknownBlueprint
from tolaria_bus.kasmina.garden import Garden
from tolaria_bus.kasmina.gates import GateReading, Limits
from tolaria_bus.kasmina.heads import HeadLayout
from tolaria_bus.kasmina.operations import Moment
from tolaria_bus.kasmina.parameters import Parameter
from tolaria_bus.kasmina.places import SlotShape
from tolaria_bus.kasmina.probe import Probe
from tolaria_bus.kasmina.protocol import Kasmina
from tolaria_bus.kasmina.pruning import Pruned, PruningPlan
from tolaria_bus.kasmina.records import (
    Germinated,
    GerminationPlan,
    OperationPlan,
    Rebuilt,
    SlotView,
    Transition,
)
from tolaria_bus.kasmina.registry import HOST, Registry
from tolaria_bus.kasmina.slot import SeedSlot

__all__ = [
    "HOST",
    "Blueprint",
    "Garden",
    "GateReading",
    "Germinated",
    "GerminationPlan",
    "HeadLayout",
    "Kasmina",
    "Limits",
    "Moment",
    "OperationPlan",
    "Parameter",
    "Probe",
    "Pruned",
    "PruningPlan",
    "Rebuilt",
    "Registry",
    "SeedRefused",
    "SeedSlot",
    "SlotShape",
    "SlotView",
    "Transition",
    "UnknownBlueprint",
]
