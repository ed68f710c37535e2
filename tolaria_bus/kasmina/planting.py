"""Putting seeds into their places in a model, and taking them out without a trace."""

from collections.abc import Mapping

import torch
from torch import nn

from tolaria_bus.kasmina import blueprints, gates
from tolaria_bus.kasmina.errors import SeedRefused
from tolaria_bus.kasmina.gates import GateReading, Limits
from tolaria_bus.kasmina.places import Place, Places
from tolaria_bus.kasmina.records import Germinated, SeedRecord
from tolaria_bus.kasmina.registry import Registry
from tolaria_bus.kasmina.slot import Graft, Mode, SlotKind
from tolaria_bus.leyline import SeedLifecycleStage as Stage

FOSSIL = frozenset({Stage.SEED_STAGE_FOSSILIZED, Stage.SEED_STAGE_TERMINATED})

# How a seed's output gets into the host's; in the other stages it doesn't.
_MODES: Mapping[Stage.ValueType, Mode] = {
    Stage.SEED_STAGE_BLENDING: Mode.BLEND,
    Stage.SEED_STAGE_SHADOWING: Mode.WHOLE,
    Stage.SEED_STAGE_PROBATIONARY: Mode.WHOLE,
    Stage.SEED_STAGE_FOSSILIZED: Mode.WHOLE,
    Stage.SEED_STAGE_TERMINATED: Mode.WHOLE,
}


class Planting:
    """What of the garden is in the model.

    Args:
        model: The host.
        places: Of the host.
        limits: Of gate G0.

    Attributes:
        model: The host.
        registry: Which parameter belongs to whom.
        places: Of the host.
    """

    def __init__(self, model: nn.Module, places: Places, limits: Limits) -> None:
        self.model = model
        self.registry = Registry()
        self.places = places
        self._limits = limits

    def draft(self, blueprint_id: str, place: Place, parameters: Mapping[str, float]) -> None:
        """Judge size and shapes of a seed without drawing or storing a weight.

        Raises:
            SeedRefused: ``unknown_blueprint``, ``bad_parameter`` or ``gate_failed``.
        """
        with torch.device("meta"):
            draft = blueprints.build(blueprint_id, place.kind, place.features, parameters)
        gates.sanity(draft, place.kind, place.features, self._limits).require()

    def grow(self, record: SeedRecord) -> Germinated:
        """Put a seed with new weights into its place; it has no part in the host's output yet.

        Raises:
            SeedRefused: ``gate_failed``.
        """
        place = self.places.at(record.slot)
        with torch.random.fork_rng(devices=[]):
            # Not torch.manual_seed: it would seed the accelerators too.
            torch.default_generator.manual_seed(record.init_seed)
            module = blueprints.build(
                record.blueprint_id, place.kind, place.features, record.parameters
            )
        device, dtype = self._device_and_dtype()
        module.to(device=device, dtype=dtype).train(place.training)
        reading = gates.sanity(module, place.kind, place.features, self._limits).require()
        place.plant(module)
        return Germinated(
            record.seed_id, place.name, record.blueprint_id, self.parameters(record), reading
        )

    def uproot(self, record: SeedRecord) -> tuple[str, ...]:
        """Take a seed's module, graft and ownership away; return its parameters' names."""
        names = tuple(self.parameters(record))
        self.places.at(record.slot).plant(None)
        self.registry.release(record.seed_id)
        return names

    def connect(self, record: SeedRecord) -> None:
        """Let a seed have the part in the host's output, and own the parameters, of its stage."""
        place = self.places.at(record.slot)
        if not record.grows or place.seed is None:
            return
        mode = _MODES.get(record.stage)
        if mode is None:
            place.graft = None
        else:
            graft = place.graft or Graft(place.seed, mode)
            graft.mode = mode
            graft.set_alpha(record.alpha)
            place.graft = graft
        if record.stage in FOSSIL:
            self.registry.release(record.seed_id)
        else:
            self.registry.give(record.seed_id, self.parameters(record))

    def parameters(self, record: SeedRecord) -> dict[str, nn.Parameter]:
        """Return a seed's parameters by their qualified names, in the model's order."""
        place = self.places.at(record.slot)
        if not record.grows or place.seed is None:
            return {}
        return {f"{place.prefix}.{name}": p for name, p in place.seed.named_parameters()}

    def left(self, record: SeedRecord) -> GateReading:
        """Gate G5 for a seed that was taken out."""
        place = self.places.at(record.slot)
        return gates.reset(
            {
                "modules": int(place.seed is not None),
                "grafts": int(place.graft is not None),
                "owned": len(self.registry.of(record.seed_id)),
            }
        )

    @property
    def device(self) -> torch.device:
        """Where the host's weights are."""
        return self._device_and_dtype()[0]

    def _device_and_dtype(self) -> tuple[torch.device, torch.dtype]:
        for parameter in self.model.parameters():
            if parameter.is_floating_point():
                return parameter.device, parameter.dtype
        return torch.device("cpu"), torch.get_default_dtype()


def first_free(places: Places, tenants: Mapping[str, str], kinds: tuple[SlotKind, ...]) -> Place:
    """Return the first place of one of some kinds that nobody holds.

    Args:
        places: Of the model.
        tenants: Prefix of a place → the seed that holds it.
        kinds: That will do.

    Raises:
        SeedRefused: ``slot_taken`` or ``unknown_slot``.
    """
    fitting = [place for place in places.all() if place.kind in kinds]
    for place in fitting:
        if place.prefix not in tenants:
            return place
    wanted = " or ".join(kinds)
    if fitting:
        raise SeedRefused("slot_taken", f"every {wanted} slot has a seed; cull one first")
    known = ", ".join(f"{place.name} ({place.kind})" for place in places.all())
    raise SeedRefused(
        "unknown_slot", f"the model has no {wanted} slot; its slots: {known or 'none'}"
    )


def free(places: Places, tenants: Mapping[str, str], name: str) -> Place:
    """Return the place of a name.

    Raises:
        SeedRefused: ``unknown_slot``, or ``slot_taken`` if somebody holds it.
    """
    place = places.at(name)
    tenant = tenants.get(place.prefix)
    if tenant is not None:
        others = [
            other.name
            for other in places.all()
            if other.kind == place.kind and other.prefix not in tenants
        ]
        raise SeedRefused(
            "slot_taken",
            f"slot is {name!r}, which has the seed {tenant!r}; free: {', '.join(others) or 'none'}",
        )
    return place
