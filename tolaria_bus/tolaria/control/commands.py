"""One command: judge it, then do it.

:func:`prepare` looks at a command and at the run and either refuses, naming the field, its value
and what is allowed, or returns the effect as a function of no arguments. Nothing has changed
until that function is called, and a command that was refused has changed nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Final

from google.protobuf.json_format import MessageToDict

from tolaria_bus.leyline import AdaptationCommand, CommandType
from tolaria_bus.leyline.codec import short_name
from tolaria_bus.tolaria.control.breaker_commands import judge_breaker
from tolaria_bus.tolaria.control.emergency_commands import judge_emergency
from tolaria_bus.tolaria.control.mode import held, mode_name
from tolaria_bus.tolaria.control.observing import window_refused
from tolaria_bus.tolaria.control.optimizer_commands import judge_optimizer, rate_effect
from tolaria_bus.tolaria.control.profile_commands import judge_profile
from tolaria_bus.tolaria.control.seed_commands import judge_pruning, judge_seed
from tolaria_bus.tolaria.control.steerable import (
    CommandRefused,
    Details,
    Effect,
    Steerable,
    finite_number,
)
from tolaria_bus.tolaria.recovery.checkpoints import CheckpointFailed

__all__ = ["CommandRefused", "Details", "Effect", "Steerable", "prepare"]

CHECKPOINT_FAILED: Final = "checkpoint_failed"
"""Code of the outcome where a checkpoint could not be written."""


def prepare(command: AdaptationCommand, run: Steerable) -> Effect:
    """Judge a command against the run as it is now.

    Returns:
        Its effect; calling it applies the command and returns details for the outcome.

    Raises:
        CommandRefused: It is not legal now.
    """
    if why := window_refused(command):
        raise CommandRefused("bad_annotation", why)
    judge = _JUDGES.get(command.command_type)
    if judge is None:
        known = ", ".join(short_name(CommandType, number) for number in sorted(_JUDGES))
        name = short_name(CommandType, command.command_type)
        raise CommandRefused("unsupported", f"command_type {name}: this worker knows {known}")
    expected, required = _PAYLOADS.get(command.command_type, ("", False))
    given = command.WhichOneof("payload") or ""
    if given != expected and (given or required):
        raise CommandRefused(
            "bad_payload", f"payload is {given or 'missing'}, must be {expected or 'left out'}"
        )
    return judge(command, run)


def _reason(command: AdaptationCommand) -> str:
    return command.annotations.get("reason", "")


def _pause(command: AdaptationCommand, run: Steerable) -> Effect:
    def effect() -> Details:
        mode = run.state.mode
        already = mode.paused
        mode.paused, mode.reason, mode.by = True, _reason(command), command.issued_by
        return {"mode": mode_name(mode), "already": already}

    return effect


def _resume(command: AdaptationCommand, run: Steerable) -> Effect:
    def effect() -> Details:
        mode = run.state.mode
        was_held = held(mode)
        mode.paused = False
        run.emergencies.resume()
        mode.reason, mode.by = _reason(command), command.issued_by
        return {"mode": mode_name(mode), "already": not was_held}

    return effect


def _stop(command: AdaptationCommand, run: Steerable) -> Effect:
    def effect() -> Details:
        run.stop("command")
        return {}

    del command
    return effect


def _continue(command: AdaptationCommand, run: Steerable) -> Effect:
    del command, run
    return dict


def _checkpoint(command: AdaptationCommand, run: Steerable) -> Effect:
    wanted = command.checkpoint

    def effect() -> Details:
        try:
            return {"checkpoint": run.save_checkpoint(label=wanted.label, pin=wanted.pin)}
        except CheckpointFailed as error:
            raise CommandRefused(CHECKPOINT_FAILED, str(error)) from error

    return effect


def _learning_rate(command: AdaptationCommand, run: Steerable) -> Effect:
    wanted = command.learning_rate
    if wanted.HasField("learning_rate") == wanted.HasField("factor"):
        raise CommandRefused(
            "bad_payload", "learning_rate: exactly one of learning_rate and factor must be given"
        )
    return rate_effect(
        run,
        rate=wanted.learning_rate if wanted.HasField("learning_rate") else None,
        factor=wanted.factor if wanted.HasField("factor") else None,
        warmup_steps=wanted.warmup_steps,
        group=wanted.group or None,
    )


def _rollback(command: AdaptationCommand, run: Steerable) -> Effect:
    payload: Mapping[str, Any] = MessageToDict(command.rollback_payload)
    known = {"target_step", "target_epoch", "data", "lr_factor"}
    if unknown := sorted(payload.keys() - known):
        raise CommandRefused(
            "bad_payload", f"rollback_payload has {unknown}, known: {sorted(known)}"
        )
    data = payload.get("data", "skip")
    if data not in {"skip", "replay"}:
        raise CommandRefused("bad_payload", f"data = {data!r}: must be skip or replay")
    factor = finite_number("lr_factor", payload.get("lr_factor", 1.0))
    if not 0.0 < factor <= 1.0:
        raise CommandRefused("out_of_range", f"lr_factor = {factor}: must be in (0, 1]")
    step = _whole("target_step", payload.get("target_step"))
    epoch = _whole("target_epoch", payload.get("target_epoch"))
    if step is not None and epoch is not None:
        raise CommandRefused("bad_payload", "target_step and target_epoch exclude each other")
    target = run.rollback_target(step, epoch)
    return lambda: run.roll_back(
        target,
        replay_data=data == "replay",
        lr_factor=factor,
        cause="command",
        command_id=command.command_id,
    )


def _mode(command: AdaptationCommand, run: Steerable) -> Effect:
    def effect() -> Details:
        mode = run.state.mode
        run.emergencies.release()
        mode.conservative = command.mode.conservative
        mode.reason, mode.by = _reason(command), command.issued_by
        return {"mode": mode_name(mode)}

    return effect


def _whole(field: str, value: object) -> int | None:
    if value is None:
        return None
    number = finite_number(field, value)
    if number < 0 or number != int(number):
        raise CommandRefused("out_of_range", f"{field} = {value!r}: must be a whole number from 0")
    return int(number)


_JUDGES: dict[int, Callable[[AdaptationCommand, Steerable], Effect]] = {
    CommandType.COMMAND_SEED: judge_seed,
    CommandType.COMMAND_STRUCTURAL_PRUNING: judge_pruning,
    CommandType.COMMAND_ROLLBACK: _rollback,
    CommandType.COMMAND_OPTIMIZER: judge_optimizer,
    CommandType.COMMAND_PAUSE: _pause,
    CommandType.COMMAND_EMERGENCY: judge_emergency,
    CommandType.COMMAND_RESUME: _resume,
    CommandType.COMMAND_CHECKPOINT: _checkpoint,
    CommandType.COMMAND_STOP: _stop,
    CommandType.COMMAND_LEARNING_RATE: _learning_rate,
    CommandType.COMMAND_CONTINUE: _continue,
    CommandType.COMMAND_MODE: _mode,
    CommandType.COMMAND_CIRCUIT_BREAKER: judge_breaker,
    CommandType.COMMAND_PROFILE: judge_profile,
}

# Name of the payload, and whether the command means nothing without it.
_PAYLOADS: dict[int, tuple[str, bool]] = {
    CommandType.COMMAND_SEED: ("seed_operation", True),
    CommandType.COMMAND_STRUCTURAL_PRUNING: ("structural_pruning", True),
    CommandType.COMMAND_OPTIMIZER: ("optimizer_adjustment", True),
    CommandType.COMMAND_LEARNING_RATE: ("learning_rate", True),
    CommandType.COMMAND_EMERGENCY: ("emergency", True),
    CommandType.COMMAND_MODE: ("mode", True),
    CommandType.COMMAND_CIRCUIT_BREAKER: ("circuit_breaker", True),
    CommandType.COMMAND_PROFILE: ("profile", True),
    CommandType.COMMAND_CHECKPOINT: ("checkpoint", False),
    CommandType.COMMAND_ROLLBACK: ("rollback_payload", False),
}
