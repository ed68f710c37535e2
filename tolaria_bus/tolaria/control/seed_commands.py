"""Seed commands and pruning: judged against Kasmina, then done to the model and its optimizer."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

from tolaria_bus.kasmina import SeedRefused
from tolaria_bus.kasmina.lifecycle import operation_name
from tolaria_bus.leyline import AdaptationCommand, SeedOperation
from tolaria_bus.leyline.codec import hyperparameters
from tolaria_bus.tolaria.control.steerable import CommandRefused, Effect, Steerable

T = TypeVar("T")

# What adds to the model or changes it for good; taking away is never optional.
_OPTIONAL = frozenset(
    {
        SeedOperation.SEED_OP_GERMINATE,
        SeedOperation.SEED_OP_START_TRAINING,
        SeedOperation.SEED_OP_START_GRAFTING,
        SeedOperation.SEED_OP_FINE_TUNE,
        SeedOperation.SEED_OP_FOSSILIZE,
    }
)


def judge_seed(command: AdaptationCommand, run: Steerable) -> Effect:
    """Judge a seed operation; its gate is measured when it is done, and may refuse it then.

    Raises:
        CommandRefused: It is not legal now.
    """
    wanted = command.seed_operation
    operation = wanted.operation
    values = hyperparameters(wanted.parameters, wanted.values)
    if operation in _OPTIONAL and run.state.mode.conservative:
        raise CommandRefused(
            "conservative",
            f"seed operation {operation_name(operation)}: refused in conservative mode "
            "(send mode normal)",
        )
    kasmina = run.state.kasmina

    def judge() -> Effect:
        if operation == SeedOperation.SEED_OP_GERMINATE:
            seed_id = command.target_seed_id or command.command_id
            germination = kasmina.plan_germinate(
                seed_id, wanted.blueprint_id, slot=wanted.slot, parameters=values
            )
            return lambda: run.seeds.germinate(germination)
        plan = kasmina.plan(command.target_seed_id, operation, values)
        return lambda: run.seeds.operate(plan)

    effect = _refusing(judge)
    return lambda: _refusing(effect)


def judge_pruning(command: AdaptationCommand, run: Steerable) -> Effect:
    """Judge the removal of a layer's channels; its gate is measured when it is done.

    Raises:
        CommandRefused: It is not legal now.
    """
    wanted = command.structural_pruning
    if run.state.mode.conservative:
        raise CommandRefused(
            "conservative", "pruning: refused in conservative mode (send mode normal)"
        )
    values = hyperparameters({}, wanted.values)
    plan = _refusing(lambda: run.state.kasmina.plan_prune(wanted.target, wanted.fraction, values))
    return lambda: _refusing(lambda: run.seeds.prune(plan))


def _refusing(call: Callable[[], T]) -> T:
    try:
        return call()
    except SeedRefused as error:
        raise CommandRefused(error.code, error.reason) from error
