"""An emergency that a command or another's signal brings: judged, told, obeyed.

Each of the four levels does what is said in ``docs/emergency.md``. A level below the one that the
run is at already changes nothing, and is told all the same.
"""

from __future__ import annotations

from typing import Final

from tolaria_bus.leyline import AdaptationCommand, CommandType, EmergencyLevel
from tolaria_bus.leyline.codec import short_name
from tolaria_bus.safety.emergency import HALT, level_name
from tolaria_bus.safety.emergency_signal import SIGNAL_PREFIX, scope_refused
from tolaria_bus.tolaria.control.mode import mode_name
from tolaria_bus.tolaria.control.steerable import CommandRefused, Details, Effect, Steerable
from tolaria_bus.tolaria.recovery.ledger import order

CANCELLED: Final = "cancelled"
SUPERSEDED: Final = "superseded"
_LATER: Final = ("at_step", "at_epoch")


def judge_emergency(command: AdaptationCommand, run: Steerable) -> Effect:
    """Judge an EMERGENCY.

    Raises:
        CommandRefused: ``bad_payload``: no level, or no such scope.
    """
    wanted = command.emergency
    level = wanted.level
    if level not in EmergencyLevel.values() or not level:
        raise CommandRefused("bad_payload", "level: must be notice, elevated, conservative or halt")
    scope = wanted.scope or "self"
    if why := scope_refused(scope, wanted.runs):
        raise CommandRefused("bad_payload", why)
    reason = command.annotations.get("reason") or (
        f"asked for by {command.issued_by or 'an operator'}"
    )
    signalled = command.command_id.startswith(SIGNAL_PREFIX)
    at_once = not any(name in command.annotations for name in _LATER)

    def effect() -> Details:
        # Out first: a reader of the emergency stream must not wait for the disk.
        run.announce(level, reason, scope, wanted.runs, command_id=command.command_id)
        took_ms = run.emergencies.obey(
            level,
            cause="signal" if signalled else "command",
            reason=reason,
            by=command.issued_by,
            issued_ns=command.issued_at.ToNanoseconds() if at_once else 0,
        )
        mode = run.state.mode
        details: Details = {"level": short_name(EmergencyLevel, level)}
        if level == HALT:
            details |= run.make_halt_durable()
        if took_ms is not None:
            details["seen_ms"] = round(took_ms, 3)
        return {**details, "at": level_name(mode.emergency.level), "mode": mode_name(mode)}

    return effect


def is_halt(command: AdaptationCommand) -> bool:
    """Is this a HALT for at once?"""
    return (
        command.command_type == CommandType.COMMAND_EMERGENCY
        and command.emergency.level == HALT
        and not any(name in command.annotations for name in _LATER)
    )


def refuse_superseded(
    command: AdaptationCommand,
    entry_id: str,
    *,
    resumed_at: str,
    halted_at: str,
    halted_itself_at: str,
    now: str,
    halted: bool,
) -> None:
    """Refuse an emergency that a later RESUME cancels, and a RESUME that a later HALT makes void.

    What is later is said by the entries' ids, which the server gives: streams are read side by
    side, and the one that was sent first may come second. A HALT of the run's own has no entry; its
    time by the server's clock stands for it. Should that clock have been set back since, an id
    says nothing any more, and a RESUME counts: nobody must be kept from freeing a run.

    Args:
        command: A new one.
        entry_id: Of its entry; empty if it has none, and then nothing is known.
        resumed_at: The highest id of a RESUME that was applied, or empty.
        halted_at: Likewise of a HALT.
        halted_itself_at: The id that an entry would have had when the run last halted itself.
        now: The id that one would have now; empty where there is no server.
        halted: The run is halted.

    Raises:
        CommandRefused: ``cancelled`` or ``superseded``.
    """
    if not entry_id or any(name in command.annotations for name in _LATER):
        return
    kind = command.command_type
    if kind == CommandType.COMMAND_EMERGENCY and order(entry_id) < order(resumed_at):
        raise CommandRefused(
            CANCELLED, f"entry {entry_id} is earlier than the RESUME of entry {resumed_at}"
        )
    if kind != CommandType.COMMAND_RESUME or not halted:
        return
    if order(entry_id) < order(halted_at):
        raise CommandRefused(
            SUPERSEDED,
            f"entry {entry_id} is earlier than the HALT of entry {halted_at}, which holds the run: "
            "send RESUME again",
        )
    if order(entry_id) < order(halted_itself_at) <= order(now):
        raise CommandRefused(
            SUPERSEDED,
            f"entry {entry_id} was sent before the run halted itself, at {halted_itself_at} by the "
            "server's clock: see why, then send RESUME again",
        )
