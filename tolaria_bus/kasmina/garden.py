"""The garden: grows seeds in a model, leads them through their life, and removes them again.

A seed's weights are drawn under a fork of torch's generator, seeded by an explicit number, so that
growing one changes no other draw of the run, and growing it again gives the same weights.

This is the face. The seeds' records are in :mod:`.seeds`, what of them is in the model is with
:mod:`.planting`, their way from stage to stage in :mod:`.transitions`.
"""

from collections.abc import Callable, Iterable, Mapping
from typing import Any

from torch import Tensor, nn

from tolaria_bus.kasmina import blueprints, operations, transitions
from tolaria_bus.kasmina.blend import task_weight
from tolaria_bus.kasmina.frozen import FrozenParameters
from tolaria_bus.kasmina.gates import Limits
from tolaria_bus.kasmina.lifecycle import TASKS
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
    check_id,
    init_seed,
)
from tolaria_bus.kasmina.seeds import Seeds
from tolaria_bus.kasmina.side import learn
from tolaria_bus.kasmina.structure import rebuild, write
from tolaria_bus.kasmina.telling import seed_state
from tolaria_bus.leyline import SeedLifecycleStage as Stage
from tolaria_bus.leyline import SeedOperation as Operation
from tolaria_bus.leyline import SeedState


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
        self.next_step = transitions.NEVER
        self.side: tuple[str, ...] = ()
        self.tasks: tuple[str, ...] = ()
        self._model = model
        self._limits = limits or Limits()
        self._places = Places(model, slots)
        self._shapes = Shapes(model)
        self._planting = Planting(model, self._places, self._limits)
        self.registry = self._planting.registry
        self._seeds = Seeds(self._planting)
        self._frozen = FrozenParameters(model)

    def slots(self) -> list[SlotView]:
        """Return every slot, the model's own in its order, then those that were named."""
        taken = {seed.slot: seed.seed_id for seed in self._seeds if seed.holds_slot}
        return [
            SlotView(place.name, place.kind, place.features, taken.get(place.name, ""))
            for place in self._places.all()
        ]

    def seed_ids(self) -> tuple[str, ...]:
        """Return the ids of the seeds that aren't DORMANT, oldest first."""
        return self._seeds.ids()

    def stage(self, seed_id: str) -> Stage.ValueType:
        """Return the stage of a seed; DORMANT if there is none of that id."""
        return self._seeds.stage(seed_id)

    # Judging

    def check(self, seed_id: str, operation: Operation.ValueType) -> None:
        """Raise if ``operation`` is not legal for a seed now; no gate is looked at.

        Raises:
            SeedRefused: ``unknown_seed``, ``illegal_transition`` or ``unsupported_operation``.
        """
        transitions.check(self._seeds, seed_id, operation)

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
        check_id(seed_id)
        self.check(seed_id, Operation.SEED_OP_GERMINATE)
        settled = blueprints.settle(blueprint_id, parameters or {})
        tenants = self._seeds.tenants()
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
        self._seeds.settle(record)
        self._look_ahead()
        return grown

    def operate(self, plan: OperationPlan, moment: Moment) -> Transition:
        """Do what ``plan`` judged: measure the gate on the way, then pass into the next stage.

        Raises:
            SeedRefused: no longer legal, or ``gate_failed`` with its reading; nothing has changed.
        """
        self.check(plan.seed_id, plan.operation)
        done = transitions.operate(self._seeds, self._planting, plan, moment, self._limits)
        self._look_ahead()
        return done

    def advance(self, step: int) -> tuple[Transition, ...]:
        """Do what time brings, once ``step`` steps are done and before the next one is made.

        Shares of seeds that are BLENDING become those of the next step; CULLED seeds are EMBARGOED,
        and DORMANT once their embargo is over and gate G5 finds nothing left of them. Idempotent.

        Returns:
            The changes of stage, in order.
        """
        passed = transitions.advance(self._seeds, self._planting, step)
        self._look_ahead()
        return passed

    def learn(
        self, seed_id: str, loss: Callable[[], Tensor], *, scale: Tensor | None = None
    ) -> None:
        """Give a TRAINING seed the gradient of a pass on the side; nothing of the host changes.

        Args:
            seed_id: One of ``side``.
            loss: Runs the host on the step's batch and returns the job's loss. The caller forks
                and seeds the random generators.
            scale: Of the host's fp16 gradients; a scalar on the device.
        """
        place = self._places.at(self._seeds[seed_id].slot)
        health = self._seeds.health[seed_id]
        learn(self._model, place, loss, health, self._frozen, scale)

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
        passed = transitions.terminate(self._seeds)
        self._look_ahead()
        return passed

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
            for seed in self._seeds
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
            for seed in self._seeds
        }

    def seed_states(self, step: int = 0, epoch: int = 0) -> list[SeedState]:
        """Return each seed as Leyline tells it, oldest first. Waits for the device."""
        order = {place.name: depth for depth, place in enumerate(self._places.all())}
        return [
            seed_state(
                record,
                step,
                epoch,
                depth=order[record.slot],
                parameter_count=sum(
                    parameter.numel() for parameter in self._planting.parameters(record).values()
                ),
            )
            for record in self._seeds.written()
        ]

    # Writing down

    def structure(self) -> dict[str, Any]:
        """Return what is in the garden as JSON values, oldest seed first. Waits for the device."""
        return write(self._seeds, self._shapes)

    def rebuild(self, structure: Mapping[str, Any]) -> Rebuilt:
        """Make the garden what ``structure`` says, in a fresh model or in one with other seeds.

        Seeds that are the same in both keep their parameters; the others are removed, then those
        missing are grown, in the structure's order. Every seed gets the stage, share and countdown
        of the structure.

        Raises:
            ValueError: the structure is of an unknown version.
            SeedRefused: the model hasn't the slots that it needs.
        """
        rebuilt = rebuild(structure, self._seeds, self._planting, self._shapes)
        self._look_ahead()
        return rebuilt

    def _look_ahead(self) -> None:
        """Note who learns on the side, who is a task, and when ``advance`` is next needed."""
        self.side = self._seeds.ids({Stage.SEED_STAGE_TRAINING})
        self.tasks = self._seeds.ids(TASKS)
        self.next_step = transitions.due(self._seeds)
