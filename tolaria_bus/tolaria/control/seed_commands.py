"""Seed commands: judged against the garden, then done to the model, optimizer and rates."""

from __future__ import annotations

from tolaria_bus.kasmina.garden import SeedRefused
from tolaria_bus.leyline import AdaptationCommand, SeedOperation
from tolaria_bus.leyline.codec import hyperparameters
from tolaria_bus.tolaria.control.steerable import CommandRefused, Details, Effect, Steerable


def judge_seed(command: AdaptationCommand, run: Steerable) -> Effect:
    """Judge a seed operation; its effect changes the model and everything that follows it.

    Raises:
        CommandRefused: It is not legal now.
    """
    wanted = command.seed_operation
    parameters = hyperparameters(wanted.parameters, wanted.values)
    state = run.state
    structural = wanted.operation == SeedOperation.SEED_OP_GERMINATE
    if structural and state.mode.conservative:
        raise CommandRefused(
            "conservative",
            "seed operation GERMINATE: refused in conservative mode (send mode normal)",
        )
    try:
        if wanted.operation == SeedOperation.SEED_OP_GERMINATE:
            seed_id = command.target_seed_id or command.command_id
            plan = state.kasmina.plan_germinate(
                seed_id, wanted.blueprint_id, slot=wanted.slot, parameters=parameters
            )
        elif wanted.operation == SeedOperation.SEED_OP_CULL:
            seed_id = command.target_seed_id
            state.kasmina.check(seed_id, wanted.operation)
            plan = None
        else:
            state.kasmina.check(command.target_seed_id, wanted.operation)
            raise CommandRefused("unsupported_operation", "seed operation: not available")
    except SeedRefused as error:
        raise CommandRefused(error.code, str(error)) from error

    def germinate() -> Details:
        assert plan is not None
        grown = state.kasmina.germinate(plan, seed=state.seed, step=state.step, epoch=state.epoch)
        state.optimizer.add_parameters(f"seed:{seed_id}", grown.parameters)
        state.learning_rate.adopt(f"seed:{seed_id}", state.step)
        return {
            "seed_id": seed_id,
            "slot": grown.slot,
            "blueprint": grown.blueprint_id,
            "parameters": sum(parameter.numel() for parameter in grown.parameters.values()),
        }

    def cull() -> Details:
        state.optimizer.remove_group(f"seed:{seed_id}")
        state.learning_rate.release(f"seed:{seed_id}")
        removed = state.kasmina.cull(seed_id)
        return {"seed_id": seed_id, "parameters_removed": len(removed)}

    return germinate if structural else cull
