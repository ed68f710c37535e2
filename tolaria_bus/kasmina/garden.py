"""The face of Kasmina: grows seeds in a model's slots and removes them again.

A seed's weights are drawn under a fork of torch's generator, seeded by an explicit number, so that
growing one changes no other draw of the run, and growing it again gives the same weights. What is
in the garden can be written down (``structure``) and made again in a fresh model (``rebuild``),
with the same parameter names and shapes in the same order; the weights come from a checkpoint.

This version executes *germinate* and *cull*. Other operations that the life cycle allows are
refused as ``unsupported_operation``.
"""

import re
from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from tolaria_bus.kasmina import blueprints
from tolaria_bus.kasmina.errors import SeedRefused
from tolaria_bus.kasmina.gates import PARAMETER_LIMIT, check_sanity
from tolaria_bus.kasmina.lifecycle import operation_name, refuse
from tolaria_bus.kasmina.records import (
    Germinated,
    GerminationPlan,
    Rebuilt,
    SeedRecord,
    SlotView,
    init_seed,
)
from tolaria_bus.kasmina.registry import Registry
from tolaria_bus.kasmina.slot import SeedSlot, SlotKind
from tolaria_bus.leyline import SeedLifecycleStage, SeedOperation, SeedState

__all__ = [
    "SUPPORTED",
    "Germinated",
    "GerminationPlan",
    "Kasmina",
    "Rebuilt",
    "SeedRefused",
    "SlotView",
]

SUPPORTED = (SeedOperation.SEED_OP_GERMINATE, SeedOperation.SEED_OP_CULL)
_SEED_ID = re.compile(r"[A-Za-z0-9._-]{1,64}")
_STRUCTURE_VERSION = 1


class Kasmina:
    """The seeds of one model.

    Args:
        model: Its ``SeedSlot`` modules are the slots; a slot's name is its qualified name.
        parameter_limit: No seed may have more parameters.
    """

    def __init__(self, model: nn.Module, *, parameter_limit: int = PARAMETER_LIMIT) -> None:
        self._model = model
        self._limit = parameter_limit
        self._slots = {
            name: module for name, module in model.named_modules() if isinstance(module, SeedSlot)
        }
        self._seeds: dict[str, SeedRecord] = {}
        self.registry = Registry()

    def slots(self) -> list[SlotView]:
        """Return every slot, in the model's order."""
        taken = {seed.slot: seed.seed_id for seed in self._seeds.values()}
        return [
            SlotView(name, slot.kind, slot.features, taken.get(name, ""))
            for name, slot in self._slots.items()
        ]

    def seed_ids(self) -> tuple[str, ...]:
        """Return the ids of the seeds that are there, oldest first."""
        return tuple(self._seeds)

    def check(self, seed_id: str, operation: SeedOperation.ValueType) -> None:
        """Raise if ``operation`` can't be done to a seed now; nothing else is judged.

        Raises:
            SeedRefused: ``unknown_seed``, ``illegal_transition`` or ``unsupported_operation``.
        """
        seed = self._seeds.get(seed_id)
        germinate = operation == SeedOperation.SEED_OP_GERMINATE
        if operation not in SeedOperation.values() or operation == SeedOperation.SEED_OP_UNKNOWN:
            names = ", ".join(operation_name(known) for known in SeedOperation.values()[1:])
            raise SeedRefused(
                "unsupported_operation",
                f"operation is {operation_name(operation)}; allowed: {names}",
            )
        if seed is None and not germinate:
            known = ", ".join(self._seeds) or "none, as no seed has been germinated"
            raise SeedRefused("unknown_seed", f"target_seed_id is {seed_id!r}; allowed: {known}")
        stage = SeedLifecycleStage.SEED_STAGE_DORMANT if seed is None else seed.stage
        why = refuse(stage, operation)
        if why is not None:
            raise SeedRefused("illegal_transition", f"seed {seed_id!r}: {why}")
        if operation not in SUPPORTED:
            names = ", ".join(operation_name(known) for known in SUPPORTED)
            raise SeedRefused(
                "unsupported_operation",
                f"{operation_name(operation)} can't be done in this version; supported is: {names}",
            )

    def plan_germinate(
        self,
        seed_id: str,
        blueprint_id: str,
        *,
        slot: str = "",
        parameters: Mapping[str, Any] | None = None,
    ) -> GerminationPlan:
        """Judge a germination; nothing changes, and no weight is drawn.

        Args:
            seed_id: How it will be addressed: 1 to 64 of ``A-Z a-z 0-9 . _ -``.
            blueprint_id: What to build.
            slot: Where; empty: the first free slot that the blueprint fits.
            parameters: The blueprint's; what is left out has its default.

        Raises:
            SeedRefused: ``illegal_transition`` (the id is in use), ``unknown_blueprint``,
                ``unknown_slot``, ``slot_taken``, ``bad_parameter`` or ``gate_failed``.
        """
        if not _SEED_ID.fullmatch(seed_id):
            raise SeedRefused(
                "bad_parameter",
                f"target_seed_id is {seed_id!r}; allowed: 1 to 64 of A-Z a-z 0-9 . _ -",
            )
        self.check(seed_id, SeedOperation.SEED_OP_GERMINATE)
        settled = blueprints.settle(blueprint_id, parameters or {})
        name = self._free_slot(slot, blueprints.find(blueprint_id).kind)
        place = self._slots[name]
        # On the meta device the size and the shapes can be judged without drawing or storing.
        with torch.device("meta"):
            draft = blueprints.build(blueprint_id, place.kind, place.features, settled)
        check_sanity(draft, place.kind, place.features, self._limit)
        return GerminationPlan(seed_id, blueprint_id, name, settled)

    def germinate(
        self, plan: GerminationPlan, *, seed: int, step: int = 0, epoch: int = 0
    ) -> Germinated:
        """Grow a planned seed; the host's output and gradients stay what they were, to the bit.

        Args:
            plan: Made since the garden last changed.
            seed: The run's; with the seed's id it gives the first weights.
            step: Optimizer steps done, for its age.
            epoch: Epochs done, for its age.

        Raises:
            SeedRefused: ``gate_failed``, or as ``plan_germinate`` where the garden has changed
                since; the model is as it was.
        """
        self.check(plan.seed_id, SeedOperation.SEED_OP_GERMINATE)
        self._free_slot(plan.slot, self._slots[plan.slot].kind)
        return self._grow(
            SeedRecord(
                seed_id=plan.seed_id,
                slot=plan.slot,
                blueprint_id=plan.blueprint_id,
                parameters=dict(plan.parameters),
                init_seed=init_seed(seed, plan.seed_id),
                stage=SeedLifecycleStage.SEED_STAGE_GERMINATED,
                born_step=step,
                born_epoch=epoch,
            )
        )

    def cull(self, seed_id: str) -> tuple[str, ...]:
        """Remove a seed; nothing of it stays in the model, and its slot is free.

        Returns:
            The names of the parameters that are gone, for the optimizer to forget.

        Raises:
            SeedRefused: ``unknown_seed`` or ``illegal_transition``.
        """
        self.check(seed_id, SeedOperation.SEED_OP_CULL)
        return self._remove(seed_id)

    def structure(self) -> dict[str, Any]:
        """Return what is in the garden as JSON values, oldest seed first."""
        return {
            "version": _STRUCTURE_VERSION,
            "seeds": [record.to_json() for record in self._seeds.values()],
        }

    def rebuild(self, structure: Mapping[str, Any]) -> Rebuilt:
        """Make the garden what ``structure`` says, in a fresh model or in one with other seeds.

        Seeds that are the same in both are left alone, with their parameters; the others are
        removed, then those missing are grown, in the structure's order.

        Raises:
            ValueError: the structure is of an unknown version.
            SeedRefused: the model hasn't the slots that it needs.
        """
        if structure.get("version") != _STRUCTURE_VERSION:
            raise ValueError(
                f"the structure of seeds has version {structure.get('version')!r}; "
                f"allowed: {_STRUCTURE_VERSION}"
            )
        records = [SeedRecord.from_json(entry) for entry in structure["seeds"]]
        wanted = {record.seed_id: record for record in records}
        for seed in wanted.values():
            self._require_slot(seed.slot)
        same = {
            seed_id
            for seed_id, seed in self._seeds.items()
            if seed_id in wanted and seed.grows_as(wanted[seed_id])
        }
        removed = {
            seed_id: self._remove(seed_id) for seed_id in list(self._seeds) if seed_id not in same
        }
        grown = [self._grow(seed) for seed_id, seed in wanted.items() if seed_id not in same]
        self._seeds = wanted
        return Rebuilt(removed, tuple(grown))

    def seed_states(self, step: int = 0, epoch: int = 0) -> list[SeedState]:
        """Return each seed as Tamiyo gets it; ``step`` and ``epoch`` are now, for the ages.

        ``layer_depth`` is the slot's place among the model's slots. Gradient norm and learning rate
        are for their owners to fill in.
        """
        depth = {name: index for index, name in enumerate(self._slots)}
        return [
            SeedState(
                seed_id=seed.seed_id,
                stage=seed.stage,
                layer_depth=depth[seed.slot],
                age_epochs=max(0, epoch - seed.born_epoch),
                age_steps=max(0, step - seed.born_step),
                slot=seed.slot,
                blueprint_id=seed.blueprint_id,
                parameter_count=sum(p.numel() for p in self._slots[seed.slot].parameters()),
            )
            for seed in self._seeds.values()
        ]

    def _free_slot(self, name: str, kind: SlotKind) -> str:
        views = {view.name: view for view in self.slots()}
        free = [view.name for view in views.values() if not view.seed_id and view.kind == kind]
        if not name:
            if free:
                return free[0]
            if any(view.kind == kind for view in views.values()):
                raise SeedRefused("slot_taken", f"every {kind} slot has a seed; cull one first")
            known = ", ".join(f"{view.name} ({view.kind})" for view in views.values()) or "none"
            raise SeedRefused("unknown_slot", f"the model has no {kind} slot; its slots: {known}")
        self._require_slot(name)
        if views[name].seed_id:
            raise SeedRefused(
                "slot_taken",
                f"slot is {name!r}, which has the seed {views[name].seed_id!r}; "
                f"free: {', '.join(free) or 'none'}",
            )
        return name

    def _require_slot(self, name: str) -> None:
        if name not in self._slots:
            known = ", ".join(f"{n} ({s.kind})" for n, s in self._slots.items())
            raise SeedRefused(
                "unknown_slot",
                f"slot is {name!r}; allowed: {known or 'none, as the model has no seed slot'}",
            )

    def _grow(self, seed: SeedRecord) -> Germinated:
        slot = self._slots[seed.slot]
        with torch.random.fork_rng(devices=[]):
            # Not torch.manual_seed: it would seed the accelerators too.
            torch.default_generator.manual_seed(seed.init_seed)
            module = blueprints.build(seed.blueprint_id, slot.kind, slot.features, seed.parameters)
        device, dtype = self._place()
        module.to(device=device, dtype=dtype).train(slot.training)
        check_sanity(module, slot.kind, slot.features, self._limit)
        slot.seed = module
        prefix = f"{seed.slot}.seed" if seed.slot else "seed"
        grown = {f"{prefix}.{name}": p for name, p in module.named_parameters()}
        self.registry.give(seed.seed_id, grown)
        self._seeds[seed.seed_id] = seed
        return Germinated(seed.seed_id, seed.slot, seed.blueprint_id, grown)

    def _remove(self, seed_id: str) -> tuple[str, ...]:
        seed = self._seeds.pop(seed_id)
        self._slots[seed.slot].seed = None
        return self.registry.release(seed_id)

    def _place(self) -> tuple[torch.device, torch.dtype]:
        """Return where the host's weights are, and their type."""
        for parameter in self._model.parameters():
            if parameter.is_floating_point():
                return parameter.device, parameter.dtype
        return torch.device("cpu"), torch.get_default_dtype()
