"""An emergency that a command or another's signal brings: judged, told, obeyed.

Each of the four levels does what is said in ``docs/emergency.md``. A level below the one that the
run is at already changes nothing, and is told all the same.
"""

from __future__ import annotations

from typing import Final

from tolaria_bus.leyline import AdaptationCommand, CommandType, EmergencyLevel, RunMode
from tolaria_bus.leyline.codec import short_name
from tolaria_bus.safety.emergency import HALT, level_name
from tolaria_bus.safety.emergency_signal import SIGNAL_PREFIX, scope_refused
from tolaria_bus.tolaria.control.mode import mode_name
from tolaria_bus.tolaria.control.steerable import CommandRefused, Details, Effect, Steerable
from tolaria_bus.tolaria.recovery.ledger import HALTED_AT, CommandLedger, order

CANCELLED: Final = "cancelled"
SUPERSEDED: Final = "superseded"
AHEAD_MS: Final = 5000
"""No entry is taken whose id is further ahead of the server's clock."""
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
        issued_ns = command.issued_at.ToNanoseconds() if at_once else 0
        took_ms = run.emergencies.obey(
            level,
            cause="signal" if signalled else "command",
            reason=reason,
            by=command.issued_by,
            issued_ns=issued_ns,
        )
        mode = run.state.mode
        details: Details = {"level": short_name(EmergencyLevel, level)}
        if level == HALT:
            details |= run.make_halt_durable()
            if signalled and (at := run.emergencies.given_at(issued_ns)):
                details[HALTED_AT] = at
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
    ledger: CommandLedger,
    mode: RunMode,
    *,
    now_ms: int | None,
) -> None:
    """Refuse an emergency that a later RESUME cancels, and a RESUME of before what holds the run.

    What is later is said by the entries' ids, which the server gives: streams are read side by
    side, and the one that was sent first may come second, as PAUSE and HALT overtake. A HALT of the
    run's own has no entry; its time by the server's clock stands for it.

    Args:
        command: A new one.
        entry_id: Of its entry; empty if it has none, and then nothing is known.
        ledger: Has the ids of what was applied.
        mode: Of the run.
        now_ms: The server's clock; ``None`` where there is none.

    Raises:
        CommandRefused: ``cancelled`` or ``superseded``.
    """
    if not entry_id or any(name in command.annotations for name in _LATER):
        return

    def sent_before(other: str) -> bool:
        if order(entry_id) >= order(other):
            return False
        # Else the clock was set back since, and ids say nothing any more. Nobody must be kept from
        # stopping a run by that, or from freeing it.
        return now_ms is None or order(other)[0] <= now_ms + AHEAD_MS

    kind = command.command_type
    if kind == CommandType.COMMAND_EMERGENCY and sent_before(ledger.resumed_at):
        raise CommandRefused(
            CANCELLED, f"entry {entry_id} is earlier than the RESUME of entry {ledger.resumed_at}"
        )
    if kind != CommandType.COMMAND_RESUME:
        return
    holds = ""
    if mode.halted and sent_before(ledger.halted_at):
        holds = f"earlier than the HALT of entry {ledger.halted_at}, which holds the run"
    elif mode.halted and sent_before(ledger.halted_itself_at):
        holds = (
            f"of before the run halted itself, at {ledger.halted_itself_at} by the server's clock"
        )
    elif mode.paused and sent_before(ledger.paused_at):
        holds = f"earlier than the PAUSE of entry {ledger.paused_at}, which holds the run"
    if holds:
        raise CommandRefused(SUPERSEDED, f"entry {entry_id} is {holds}: send RESUME again")
