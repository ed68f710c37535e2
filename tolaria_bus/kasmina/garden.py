"""The garden: grows seeds in a model, leads them through their life, and removes them again.

A seed's weights are drawn under a fork of torch's generator, seeded by an explicit number, so that
growing one changes no other draw of the run, and growing it again gives the same weights. What is
in the garden can be written down (``structure``) and made again in a fresh model (``rebuild``),
with the same parameter names and shapes in the same order, the same stages, shares and countdowns;
the weights come from a checkpoint.
"""

import re
import sys
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from typing import Any

from torch import Tensor, nn

from tolaria_bus.kasmina import blueprints, operations
from tolaria_bus.kasmina.blend import ramp, task_weight
from tolaria_bus.kasmina.errors import SeedRefused
from tolaria_bus.kasmina.folding import can_fold, fold
from tolaria_bus.kasmina.gates import GateReading, Limits
from tolaria_bus.kasmina.lifecycle import TASKS, TRANSITIONS, operation_name, refuse
from tolaria_bus.kasmina.measuring import measure
from tolaria_bus.kasmina.operations import Moment
from tolaria_bus.kasmina.places import BehindModule, Places, SlotShape
from tolaria_bus.kasmina.planting import Planting, first_free, free
from tolaria_bus.kasmina.probe import Probe
from tolaria_bus.kasmina.pruning import Pruned, PruningPlan, Shapes
from tolaria_bus.kasmina.records import (
    Germinated,
    GerminationPlan,
    OperationPlan,
    Rebuilt,
    SeedRecord,
    SlotView,
    Transition,
    init_seed,
)
from tolaria_bus.kasmina.registry import HOST
from tolaria_bus.kasmina.side import Health, learn
from tolaria_bus.kasmina.telling import seed_state
from tolaria_bus.leyline import SeedLifecycleStage as Stage
from tolaria_bus.leyline import SeedOperation as Operation
from tolaria_bus.leyline import SeedState

NEVER = sys.maxsize
_SEED_ID = re.compile(r"[A-Za-z0-9._-]{1,64}")
_STRUCTURE_VERSION = 2


class Garden:
    """The seeds of one model; the ``Kasmina`` that a run has if its job brings none.

    Args:
        model: Its ``SeedSlot`` modules are slots by their qualified names, and any module whose
            class tells what comes out of it is one by its path.
        slots: Further ones: paths of modules, with a ``SlotShape`` where their class doesn't tell.
        limits: Where the gates are set.

    Attributes:
        registry: Which parameter belongs to whom.
        next_step: ``advance`` has something to do once so many steps are done.
        side: The seeds that learn on the side now.
        tasks: The seeds from BLENDING on that aren't the host's.

    Raises:
        ValueError: ``slots`` names what can't be one.
    """

    def __init__(
        self,
        model: nn.Module,
        slots: Iterable[str] | Mapping[str, SlotShape | tuple[str, int] | None] = (),
        *,
        limits: Limits | None = None,
    ) -> None:
        self.next_step = NEVER
        self.side: tuple[str, ...] = ()
        self.tasks: tuple[str, ...] = ()
        self._model = model
        self._limits = limits or Limits()
        self._places = Places(model, slots)
        self._shapes = Shapes(model)
        self._planting = Planting(model, self._places, self._limits)
        self.registry = self._planting.registry
        self._seeds: dict[str, SeedRecord] = {}
        self._health: dict[str, Health] = {}

    def slots(self) -> list[SlotView]:
        """Return every slot, the model's own in its order, then those that were named."""
        taken = {seed.slot: seed.seed_id for seed in self._seeds.values() if seed.holds_slot}
        return [
            SlotView(place.name, place.kind, place.features, taken.get(place.name, ""))
            for place in self._places.all()
        ]

    def seed_ids(self) -> tuple[str, ...]:
        """Return the ids of the seeds that aren't DORMANT, oldest first."""
        return tuple(self._seeds)

    def stage(self, seed_id: str) -> Stage.ValueType:
        """Return the stage of a seed; DORMANT if there is none of that id."""
        seed = self._seeds.get(seed_id)
        return Stage.SEED_STAGE_DORMANT if seed is None else seed.stage

    # Judging

    def check(self, seed_id: str, operation: Operation.ValueType) -> None:
        """Raise if ``operation`` is not legal for a seed now; no gate is looked at.

        Raises:
            SeedRefused: ``unknown_seed``, ``illegal_transition`` or ``unsupported_operation``.
        """
        if operation not in Operation.values() or operation == Operation.SEED_OP_UNKNOWN:
            names = ", ".join(operation_name(known) for known in Operation.values()[1:])
            raise SeedRefused(
                "unsupported_operation",
                f"operation is {operation_name(operation)}; allowed: {names}",
            )
        if seed_id not in self._seeds and operation != Operation.SEED_OP_GERMINATE:
            known = ", ".join(self._seeds) or "none, as no seed has been germinated"
            raise SeedRefused("unknown_seed", f"target_seed_id is {seed_id!r}; allowed: {known}")
        why = refuse(self.stage(seed_id), operation)
        if why is not None:
            raise SeedRefused("illegal_transition", f"seed {seed_id!r}: {why}")

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
            slot: Where: a slot's name or a module's path; empty: the first free slot that fits.
            parameters: The blueprint's; what is left out has its default.

        Raises:
            SeedRefused: ``illegal_transition`` (the id is in use), ``unknown_blueprint``,
                ``unknown_slot``, ``slot_taken``, ``bad_parameter`` or ``gate_failed``.
        """
        if not _SEED_ID.fullmatch(seed_id) or seed_id == HOST:
            raise SeedRefused(
                "bad_parameter",
                f"target_seed_id is {seed_id!r}; allowed: 1 to 64 of A-Z a-z 0-9 . _ -, not {HOST}",
            )
        self.check(seed_id, Operation.SEED_OP_GERMINATE)
        settled = blueprints.settle(blueprint_id, parameters or {})
        tenants = self._tenants()
        if slot:
            place = free(self._places, tenants, slot)
        else:
            place = first_free(self._places, tenants, blueprints.find(blueprint_id).kinds)
        self._planting.draft(blueprint_id, place, settled)
        return GerminationPlan(seed_id, blueprint_id, place.name, settled)

    def plan(
        self, seed_id: str, operation: Operation.ValueType, values: Mapping[str, Any] | None = None
    ) -> OperationPlan:
        """Judge any other operation, but for its gate, which is measured when it is done.

        Raises:
            SeedRefused: as ``check``, or ``bad_parameter``.
        """
        self.check(seed_id, operation)
        return OperationPlan(seed_id, operation, operations.settle(operation, values or {}))

    # Doing

    def germinate(
        self, plan: GerminationPlan, *, seed: int, step: int = 0, epoch: int = 0
    ) -> Germinated:
        """Grow a planned seed; the host's output and gradients stay what they were, to the bit.

        Args:
            plan: As judged.
            seed: The run's; the seed's first weights are drawn from it and the seed's id.
            step: Steps done.
            epoch: Epochs done.

        Returns:
            The new parameters, for the optimizer to take on.

        Raises:
            SeedRefused: the plan is no longer legal, or gate G0 refuses.
        """
        plan = self.plan_germinate(
            plan.seed_id, plan.blueprint_id, slot=plan.slot, parameters=plan.parameters
        )
        record = SeedRecord(
            seed_id=plan.seed_id,
            slot=plan.slot,
            blueprint_id=plan.blueprint_id,
            parameters=dict(plan.parameters),
            init_seed=init_seed(seed, plan.seed_id),
            stage=Stage.SEED_STAGE_GERMINATED,
            born_step=step,
            born_epoch=epoch,
            since=step,
        )
        grown = self._planting.grow(record)
        self._settle(record)
        return grown

    def operate(self, plan: OperationPlan, moment: Moment) -> Transition:
        """Do what ``plan`` judged: measure the gate on the way, then pass into the next stage.

        Raises:
            SeedRefused: no longer legal, or ``gate_failed`` with its reading; nothing has changed.
        """
        self.check(plan.seed_id, plan.operation)
        record = self._seeds[plan.seed_id]
        after = TRANSITIONS[record.stage][plan.operation]
        place, health = self._places.at(record.slot), self._health.get(plan.seed_id)
        reading = measure(plan.operation, record, place, health, moment, self._limits)
        if reading is not None:
            reading.require()
        changed = replace(record, stage=after, since=moment.step)
        match plan.operation:
            case Operation.SEED_OP_START_TRAINING:
                self._health[plan.seed_id] = Health(device=self._planting.device)
            case Operation.SEED_OP_START_GRAFTING:
                steps = int(plan.values["blend_steps"])
                changed = replace(
                    changed, blend_steps=steps, alpha=ramp(1, steps), loss_before=moment.loss
                )
            case Operation.SEED_OP_FINE_TUNE:
                changed = replace(record, fine_tuning=True)
            case Operation.SEED_OP_FOSSILIZE:
                changed = self._fossilize(changed, may_fold=bool(plan.values["fold"]))
            case Operation.SEED_OP_CULL:
                embargo = int(plan.values["embargo_steps"])
                changed = replace(changed, alpha=0.0, embargo_steps=embargo)
        removed = () if changed.grows else self._planting.uproot(record)
        if after == Stage.SEED_STAGE_DORMANT:
            reading = self._planting.left(record).require()
        self._settle(changed)
        return Transition(plan.seed_id, record.stage, after, reading, removed, changed.folded)

    def advance(self, step: int) -> tuple[Transition, ...]:
        """Do what time brings, once ``step`` steps are done and before the next one is made.

        Shares of seeds that are BLENDING become those of the next step; CULLED seeds are EMBARGOED,
        and DORMANT once their embargo is over and gate G5 finds nothing left of them. Idempotent.

        Returns:
            The changes of stage, in order.
        """
        passed: list[Transition] = []
        for record in list(self._seeds.values()):
            if record.stage == Stage.SEED_STAGE_BLENDING:
                alpha = ramp(step + 1 - record.since, record.blend_steps)
                self._settle(replace(record, alpha=alpha))
            if record.stage == Stage.SEED_STAGE_CULLED:
                record = self._pass(record, Stage.SEED_STAGE_EMBARGOED, None, passed)
            ended = step + 1 >= record.since + record.embargo_steps
            if record.stage == Stage.SEED_STAGE_EMBARGOED and ended:
                record = self._pass(
                    record, Stage.SEED_STAGE_RESETTING, self._planting.left(record), passed
                )
            if record.stage == Stage.SEED_STAGE_RESETTING:
                reading = self._planting.left(record)
                if reading.passed:
                    self._pass(record, Stage.SEED_STAGE_DORMANT, reading, passed)
        self._look_ahead()
        return tuple(passed)

    def learn(self, seed_id: str, loss: Callable[[], Tensor]) -> None:
        """Give a TRAINING seed the gradient of a pass on the side; nothing of the host changes.

        Args:
            seed_id: One of ``side``.
            loss: Runs the host on the step's batch and returns the job's loss. The caller forks
                and seeds the random generators.
        """
        place = self._places.at(self._seeds[seed_id].slot)
        learn(self._model, place, loss, self._health[seed_id])

    def attribute_batch(self, batch: Any) -> Tensor | Mapping[str, Tensor] | None:
        """Return whose a batch's samples are; here None, as only the probe can tell.

        For a subclass that knows: see :class:`~tolaria_bus.kasmina.protocol.Kasmina`.
        """
        del batch
        return None

    def probe(self) -> Probe:
        """Return the probe of the seeds in ``tasks``, for one forward pass."""
        grafts = {
            seed_id: self._places.at(self._seeds[seed_id].slot).graft for seed_id in self.tasks
        }
        return Probe({seed_id: graft for seed_id, graft in grafts.items() if graft is not None})

    def terminate(self) -> tuple[Transition, ...]:
        """The run is over: FOSSILIZED seeds, a part of the host for good, are TERMINATED."""
        passed: list[Transition] = []
        for record in list(self._seeds.values()):
            if record.stage == Stage.SEED_STAGE_FOSSILIZED:
                self._pass(record, Stage.SEED_STAGE_TERMINATED, None, passed)
        return tuple(passed)

    # Pruning

    def plan_prune(
        self, target: str, fraction: float, values: Mapping[str, Any] | None = None
    ) -> PruningPlan:
        """Judge the removal of a layer's least important output channels or heads; nothing changes.

        Args:
            target: Path of a ``Conv2d`` or ``Linear``, of an ``nn.MultiheadAttention``, or of a
                module with a ``head_layout``.
            fraction: Of its channels or heads.
            values: ``impact``: by what share the held-out loss may be higher afterwards.

        Raises:
            SeedRefused: ``bad_parameter``.
        """
        seeds = {
            place.path: seed.seed_id
            for seed in self._seeds.values()
            if seed.grows and isinstance(place := self._places.at(seed.slot), BehindModule)
        }
        return self._shapes.plan(target, fraction, values or {}, seeds)

    def prune(self, plan: PruningPlan, moment: Moment) -> Pruned:
        """Measure gate G4, then remove the channels and all that they go into.

        Raises:
            SeedRefused: ``gate_failed``; nothing has changed.
        """
        done = self._shapes.prune(plan, moment)
        self._places.look_again()
        return done

    # Telling

    def task_weights(self) -> dict[str, float]:
        """Return the weight of each seed's task in the gradient, for the step to come."""
        return {
            seed.seed_id: task_weight(seed.stage, seed.alpha, fine_tuning=seed.fine_tuning)
            for seed in self._seeds.values()
        }

    def seed_states(self, step: int = 0, epoch: int = 0) -> list[SeedState]:
        """Return each seed as Leyline tells it, oldest first. Waits for the device."""
        order = {place.name: depth for depth, place in enumerate(self._places.all())}
        return [
            seed_state(
                self._written(record),
                step,
                epoch,
                depth=order[record.slot],
                parameter_count=sum(
                    parameter.numel() for parameter in self._planting.parameters(record).values()
                ),
            )
            for record in self._seeds.values()
        ]

    # Writing down

    def structure(self) -> dict[str, Any]:
        """Return what is in the garden as JSON values, oldest seed first. Waits for the device."""
        return {
            "version": _STRUCTURE_VERSION,
            "seeds": [self._written(record).to_json() for record in self._seeds.values()],
            "shapes": self._shapes.written(),
        }

    def rebuild(self, structure: Mapping[str, Any]) -> Rebuilt:
        """Make the garden what ``structure`` says, in a fresh model or in one with other seeds.

        Seeds that are the same in both keep their parameters; the others are removed, then those
        missing are grown, in the structure's order. Every seed gets the stage, share and countdown
        of the structure.

        Raises:
            ValueError: the structure is of an unknown version.
            SeedRefused: the model hasn't the slots that it needs.
        """
        version = structure.get("version")
        if version not in {1, _STRUCTURE_VERSION}:
            raise ValueError(
                f"the structure of seeds has version {version!r}; "
                f"allowed: at most {_STRUCTURE_VERSION}"
            )
        records = [SeedRecord.from_json(entry) for entry in structure["seeds"]]
        reshaped = self._shapes.rebuild(structure.get("shapes", {}))
        self._places.look_again()
        wanted = {record.seed_id: record for record in records}
        for seed in wanted.values():
            self._places.at(seed.slot)
        same = {
            seed_id
            for seed_id, seed in self._seeds.items()
            if seed_id in wanted
            and seed.grows_as(wanted[seed_id])
            # In a slot of another width it is another module.
            and seed.slot not in reshaped
        }
        removed = {
            seed_id: self._planting.uproot(seed)
            for seed_id, seed in self._seeds.items()
            if seed_id not in same and seed.grows
        }
        self._seeds, self._health = {}, {}
        grown = []
        for record in records:
            if record.grows and record.seed_id not in same:
                grown.append(self._planting.grow(record))
            if record.health:
                self._health[record.seed_id] = Health(record.health, self._planting.device)
            self._settle(record)
        self._look_ahead()
        return Rebuilt(removed, tuple(grown))

    # Inside

    def _tenants(self) -> dict[str, str]:
        """Who holds which place; two names may mean one module, its prefix doesn't."""
        return {
            self._places.at(seed.slot).prefix: seed.seed_id
            for seed in self._seeds.values()
            if seed.holds_slot
        }

    def _fossilize(self, record: SeedRecord, *, may_fold: bool) -> SeedRecord:
        place = self._places.at(record.slot)
        fossil = replace(record, stage=Stage.SEED_STAGE_FOSSILIZED)
        if may_fold and place.seed is not None and can_fold(place.host, place.seed):
            assert place.host is not None
            fold(place.host, place.seed)
            return replace(fossil, folded=True)
        return fossil

    def _pass(
        self,
        record: SeedRecord,
        after: Stage.ValueType,
        reading: GateReading | None,
        passed: list[Transition],
    ) -> SeedRecord:
        passed.append(Transition(record.seed_id, record.stage, after, reading))
        changed = replace(record, stage=after)
        self._settle(changed)
        return changed

    def _settle(self, record: SeedRecord) -> None:
        """Write a record down, and let it be so in the model."""
        if record.stage == Stage.SEED_STAGE_DORMANT:
            self._seeds.pop(record.seed_id, None)
        else:
            self._seeds[record.seed_id] = record
            self._planting.connect(record)
        if not record.grows:
            self._health.pop(record.seed_id, None)
        self._look_ahead()

    def _look_ahead(self) -> None:
        """Note who learns on the side, and when ``advance`` is next needed."""
        seeds = self._seeds.values()
        self.side = tuple(s.seed_id for s in seeds if s.stage == Stage.SEED_STAGE_TRAINING)
        self.tasks = tuple(s.seed_id for s in seeds if s.stage in TASKS)
        self.next_step = min((_due(seed) for seed in seeds), default=NEVER)

    def _written(self, record: SeedRecord) -> SeedRecord:
        health = self._health.get(record.seed_id)
        return record if health is None else replace(record, health=tuple(health.numbers()))


def _due(seed: SeedRecord) -> int:
    """Once how many steps are done ``Garden.advance`` has something to do for a seed."""
    if seed.stage == Stage.SEED_STAGE_BLENDING:
        return NEVER if seed.alpha == 1.0 else 0
    if seed.stage == Stage.SEED_STAGE_EMBARGOED:
        return seed.since + seed.embargo_steps - 1
    awaits = {Stage.SEED_STAGE_CULLED, Stage.SEED_STAGE_RESETTING}
    return 0 if seed.stage in awaits else NEVER
