"""What the garden tells of slots and seeds, and what it writes down of a seed."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from hashlib import blake2b
from typing import Any

from torch import nn

from tolaria_bus.kasmina.slot import SlotKind
from tolaria_bus.leyline import SeedLifecycleStage


@dataclass(frozen=True)
class SlotView:
    """A slot as it is now; ``seed_id`` is empty where nothing grows in it."""

    name: str
    kind: SlotKind
    features: int
    seed_id: str


@dataclass(frozen=True)
class GerminationPlan:
    """A germination that has been judged; ``parameters`` are the blueprint's, all filled in."""

    seed_id: str
    blueprint_id: str
    slot: str
    parameters: Mapping[str, float | int]


@dataclass(frozen=True)
class Germinated:
    """What grew: the new parameters by their qualified names in the model, in the model's order.

    Whoever keeps this keeps the parameters in memory, past a cull too.
    """

    seed_id: str
    slot: str
    blueprint_id: str
    parameters: Mapping[str, nn.Parameter] = field(repr=False)

    @property
    def names(self) -> tuple[str, ...]:
        """The qualified names of the new parameters."""
        return tuple(self.parameters)

    @property
    def parameter_count(self) -> int:
        """How many numbers the new parameters hold."""
        return sum(parameter.numel() for parameter in self.parameters.values())


@dataclass(frozen=True)
class Rebuilt:
    """What a rebuild changed: parameters that are gone, by seed, and seeds that grew."""

    removed: Mapping[str, tuple[str, ...]]
    germinated: tuple[Germinated, ...]


@dataclass(frozen=True)
class SeedRecord:
    """All of a seed but its weights: enough to grow the same module in the same place again."""

    seed_id: str
    slot: str
    blueprint_id: str
    parameters: Mapping[str, float | int]
    init_seed: int
    stage: SeedLifecycleStage.ValueType
    born_step: int
    born_epoch: int

    def to_json(self) -> dict[str, Any]:
        """Return the record as JSON values; the stage by its name."""
        return {**asdict(self), "stage": SeedLifecycleStage.Name(self.stage)}

    @classmethod
    def from_json(cls, entry: Mapping[str, Any]) -> "SeedRecord":
        """Return what ``to_json`` wrote.

        Raises:
            ValueError: the stage has no such name.
        """
        return cls(**{**entry, "stage": SeedLifecycleStage.Value(entry["stage"])})

    def grows_as(self, other: "SeedRecord") -> bool:
        """Whether both stand for the same module in the same place."""
        mine = (self.slot, self.blueprint_id, self.parameters, self.init_seed)
        return mine == (other.slot, other.blueprint_id, other.parameters, other.init_seed)


def init_seed(seed: int, seed_id: str) -> int:
    """Return what a seed's first weights are drawn from: two seeds of a run don't start alike."""
    digest = blake2b(f"{seed}/{seed_id}".encode(), digest_size=8).digest()
    # 63 bits: as JSON it stays a number that every reader takes.
    return int.from_bytes(digest, "little") >> 1
