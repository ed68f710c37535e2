"""What the garden tells of slots and seeds, and what it writes down of a seed."""

import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from hashlib import blake2b
from typing import Any

from torch import nn

from tolaria_bus.kasmina.errors import SeedRefused
from tolaria_bus.kasmina.gates import GateReading
from tolaria_bus.kasmina.registry import HOST
from tolaria_bus.kasmina.slot import SlotKind
from tolaria_bus.leyline import SeedLifecycleStage, SeedOperation

Stage = SeedLifecycleStage
_SEED_ID = re.compile(r"[A-Za-z0-9._-]{1,64}")


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
    reading: GateReading | None = None

    @property
    def names(self) -> tuple[str, ...]:
        """The qualified names of the new parameters."""
        return tuple(self.parameters)

    @property
    def parameter_count(self) -> int:
        """How many numbers the new parameters hold."""
        return sum(parameter.numel() for parameter in self.parameters.values())


@dataclass(frozen=True)
class OperationPlan:
    """An operation on a seed that has been judged; ``values`` are its parameters, filled in."""

    seed_id: str
    operation: SeedOperation.ValueType
    values: Mapping[str, float | int]


@dataclass(frozen=True)
class Transition:
    """A seed went from one stage to another.

    Attributes:
        seed_id: Which.
        before: Its stage until now.
        after: Its stage from now on.
        reading: What the gate on the way measured; None where there is none.
        removed: Names of the parameters that are gone from the model.
        folded: They live on in the weights of the host's layer.
    """

    seed_id: str
    before: Stage.ValueType
    after: Stage.ValueType
    reading: GateReading | None = None
    removed: tuple[str, ...] = ()
    folded: bool = False


@dataclass(frozen=True)
class Rebuilt:
    """What a rebuild changed: parameters that are gone, by seed, and seeds that grew."""

    removed: Mapping[str, tuple[str, ...]]
    germinated: tuple[Germinated, ...]


@dataclass(frozen=True)
class SeedRecord:
    """All of a seed but its weights: enough to grow the same module in the same place again.

    Attributes:
        seed_id: Its name.
        slot: Where it stands, or stood.
        blueprint_id: What it is.
        parameters: The blueprint's.
        init_seed: What its first weights were drawn from.
        stage: Where it is in its life.
        born_step: Steps done when it germinated.
        born_epoch: Epochs done then.
        since: Steps done when it came into its stage.
        alpha: Its share of the slot's output in the step last made, or about to be.
        blend_steps: Over how many steps it is blended in.
        embargo_steps: After how many steps its slot is free again.
        loss_before: Running mean of the training loss when blending began.
        fine_tuning: It learns with the host's weight.
        folded: It has become a part of a layer's weights; its module is gone.
        health: Of its learning on the side: steps, steps not finite, gradient norm, loss.
    """

    seed_id: str
    slot: str
    blueprint_id: str
    parameters: Mapping[str, float | int]
    init_seed: int
    stage: Stage.ValueType
    born_step: int
    born_epoch: int
    since: int = 0
    alpha: float = 0.0
    blend_steps: int = 0
    embargo_steps: int = 0
    loss_before: float = 0.0
    fine_tuning: bool = False
    folded: bool = False
    health: tuple[float, ...] = ()

    @property
    def grows(self) -> bool:
        """Whether the model has a module of it."""
        return not self.folded and self.stage not in _GONE

    @property
    def holds_slot(self) -> bool:
        """Whether no other seed can grow in its slot."""
        return not self.folded

    def to_json(self) -> dict[str, Any]:
        """Return the record as JSON values; the stage by its name."""
        return {
            **asdict(self),
            "stage": Stage.Name(self.stage),
            "health": list(self.health),
        }

    @classmethod
    def from_json(cls, entry: Mapping[str, Any]) -> "SeedRecord":
        """Return what ``to_json`` wrote, here or in an earlier version.

        Raises:
            ValueError: the stage has no such name.
        """
        stage, health = Stage.Value(entry["stage"]), tuple(entry.get("health", ()))
        return cls(**{**entry, "stage": stage, "health": health})

    def grows_as(self, other: "SeedRecord") -> bool:
        """Whether both stand for the same module in the same place."""
        mine = (self.slot, self.blueprint_id, self.parameters, self.init_seed, self.grows)
        return mine == (
            other.slot,
            other.blueprint_id,
            other.parameters,
            other.init_seed,
            other.grows,
        )


_GONE = frozenset(
    {
        Stage.SEED_STAGE_DORMANT,
        Stage.SEED_STAGE_CULLED,
        Stage.SEED_STAGE_EMBARGOED,
        Stage.SEED_STAGE_RESETTING,
    }
)


def check_id(seed_id: str) -> None:
    """Raise if a seed can't be called so.

    Raises:
        SeedRefused: ``bad_parameter``.
    """
    if not _SEED_ID.fullmatch(seed_id) or seed_id == HOST:
        raise SeedRefused(
            "bad_parameter",
            f"target_seed_id is {seed_id!r}; allowed: 1 to 64 of A-Z a-z 0-9 . _ -, not {HOST}",
        )


def init_seed(seed: int, seed_id: str) -> int:
    """Return what a seed's first weights are drawn from: two seeds of a run don't start alike."""
    digest = blake2b(f"{seed}/{seed_id}".encode(), digest_size=8).digest()
    # 63 bits: as JSON it stays a number that every reader takes.
    return int.from_bytes(digest, "little") >> 1
