"""Commands for rates and the optimizer: its hyperparameters, or another class in its place."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from tolaria_bus.leyline import AdaptationCommand
from tolaria_bus.leyline.codec import hyperparameters
from tolaria_bus.tolaria.control.steerable import (
    CommandRefused,
    Details,
    Effect,
    Steerable,
    finite_number,
)
from tolaria_bus.tolaria.engine.learning_rate import LearningRateRefused
from tolaria_bus.tolaria.engine.optimizer import OptimizerRefused, RebuildFailed


def rate_effect(
    run: Steerable,
    *,
    rate: float | None,
    factor: float | None,
    warmup_steps: int,
    group: str | None,
) -> Effect:
    """Judge a change of base rates.

    Raises:
        CommandRefused: ``out_of_range``.
    """
    controller = run.state.learning_rate
    try:
        change = controller.plan(rate=rate, factor=factor, warmup_steps=warmup_steps, group=group)
    except LearningRateRefused as error:
        raise CommandRefused("out_of_range", str(error)) from error

    def effect() -> Details:
        before = dict(controller.rates())
        controller.commit(change, run.state.step)
        return {"before": before, "after": dict(controller.rates())}

    return effect


def judge_optimizer(command: AdaptationCommand, run: Steerable) -> Effect:
    """Judge a change of hyperparameters, or of the class where ``optimizer_id`` names another.

    ``lr`` goes to the learning-rate controller.

    Raises:
        CommandRefused: It is not legal now.
    """
    wanted = command.optimizer_adjustment
    values = hyperparameters(wanted.hyperparameters, wanted.values)
    manager = run.state.optimizer
    other = bool(wanted.optimizer_id) and wanted.optimizer_id.lower() != manager.name.lower()
    if not values and not other:
        raise CommandRefused("bad_payload", "hyperparameters: none given")
    if other and wanted.group:
        raise CommandRefused(
            "bad_payload",
            f"group = {wanted.group!r} with optimizer_id = {wanted.optimizer_id!r}: another class "
            "is every group's; set what is one group's afterwards",
        )
    rate = values.pop("lr", None)
    change_rate: Effect = dict
    if rate is not None:
        rate = finite_number("lr", rate)
        change_rate = rate_effect(run, rate=rate, factor=None, warmup_steps=0, group=wanted.group)
    try:
        if other:
            change = _another_class(wanted.optimizer_id, values, run)
        else:
            manager.check_hyperparameters(values, wanted.group)
            change = _same_class(values, wanted.group, run)
    except OptimizerRefused as error:
        raise CommandRefused("out_of_range", str(error)) from error

    def effect() -> Details:
        # The class first: it may fail, and then nothing has changed.
        details = change()
        return {**change_rate(), **details}

    return effect


def _same_class(values: Mapping[str, Any], group: str, run: Steerable) -> Effect:
    def effect() -> Details:
        if values:
            run.state.optimizer.set_hyperparameters(values, group)
        about = {"group": group} if group else {}
        return {"hyperparameters": dict(values), **about}

    return effect


def _another_class(name: str, values: Mapping[str, Any], run: Steerable) -> Effect:
    manager = run.state.optimizer
    if run.state.mode.conservative:
        manager.skip()
        raise CommandRefused(
            "conservative",
            f"optimizer_id {name!r}: another class is refused in conservative mode "
            "(send mode normal)",
        )
    plan = manager.plan_rebuild(name, values)

    def effect() -> Details:
        before = manager.name
        try:
            carried = manager.rebuild(plan)
        except RebuildFailed as error:
            raise CommandRefused("rebuild_failed", str(error)) from error
        return {
            "optimizer": manager.name,
            "optimizer_before": before,
            "hyperparameters": dict(values),
            "state_carried": list(carried.kept),
            "state_begun_anew": list(carried.left),
        }

    return effect
