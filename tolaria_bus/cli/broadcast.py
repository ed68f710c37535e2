"""An emergency for many runs at once: a signal on the emergency stream, and each one's answer."""

from __future__ import annotations

import secrets
import time
from fnmatch import fnmatchcase
from typing import Any, Final

import anyio
from redis.asyncio import Redis

from tolaria_bus.cli.follow import BLOCK, last_ids, reach
from tolaria_bus.cli.leaving import interrupt_at_once
from tolaria_bus.cli.locate import Place, locate
from tolaria_bus.cli.opening import Reader
from tolaria_bus.cli.options import WAIT_SECONDS, Sending
from tolaria_bus.cli.verdict import Exit
from tolaria_bus.cli.waiting import Sent, Waiting, print_sent
from tolaria_bus.cli.who import known_runs, live_runs, user_name
from tolaria_bus.cli.words import ComposeError
from tolaria_bus.configured import key_ring
from tolaria_bus.leyline import AdaptationCommand, CommandType, EmergencySignal, MessagePriority
from tolaria_bus.leyline.codec import to_json
from tolaria_bus.oona.sealing import seal
from tolaria_bus.safety.emergency_signal import as_command, checksum
from tolaria_bus.settings import Settings, load

_SHOWN: Final = 8
_BROAD: Final = {"": "all", "run": "all"}


def is_broadcast(command: AdaptationCommand) -> bool:
    """Is this an emergency for others than one run?"""
    return command.command_type == CommandType.COMMAND_EMERGENCY and command.emergency.scope in (
        "pattern",
        "all",
    )


def broadcast(composed: AdaptationCommand, given: Sending) -> int:
    """Broadcast an emergency and print what each run that is live and concerned makes of it.

    Args:
        composed: An EMERGENCY of scope ``pattern`` or ``all``.
        given: ``--run`` and ``--run-dir`` only say which server.

    Returns:
        The exit code, one of :class:`Exit`.

    Raises:
        ComposeError: No reason is given, an option makes no sense here, or no run is concerned.
        SettingError, NotLocated, BadUrl, ServerUnreachable: As for any command.
    """
    scope = composed.emergency.scope
    if not given.reason:
        raise ComposeError(
            f"emergency --scope {scope}: give --reason; it is shown to everybody who is stopped"
        )
    senseless = {
        "--fleet": given.fleet,
        "--at-step": given.at_step,
        "--at-epoch": given.at_epoch,
        "--late-ok": given.late_ok,
        "--deadline": given.deadline,
    }
    if found := [name for name, value in senseless.items() if value is not None]:
        raise ComposeError(f"emergency --scope {scope} is for at once: leave out {found[0]}")
    sender = f"operator/{user_name()}"
    signal = signal_of(composed, given, sender)
    if given.dry_run:
        print(to_json(signal))
        return Exit.APPLIED
    settings, _ = load()
    place = locate(given.asked, settings)
    interrupt_at_once()
    return anyio.run(_broadcast, signal, given, settings, place, sender)


def signal_of(composed: AdaptationCommand, given: Sending, sender: str) -> EmergencySignal:
    """An EMERGENCY as the signal of an operator; of scope ``run`` it is for whoever gets it."""
    wanted = composed.emergency
    signal = EmergencySignal(
        version=1,
        level=wanted.level,
        reason=given.reason or "",
        origin=sender,
        monotonic_time_ms=int(time.monotonic() * 1e3),
    )
    signal.triggered_at.FromNanoseconds(time.time_ns())
    signal.attributes.update(
        scope=_BROAD.get(wanted.scope, wanted.scope),
        signal_id=given.command_id or secrets.token_hex(8),
    )
    if wanted.runs:
        signal.attributes["runs"] = wanted.runs
    signal.payload_checksum = checksum(signal)
    return signal


async def _broadcast(
    signal: EmergencySignal, given: Sending, settings: Settings, place: Place, sender: str
) -> int:
    wait = WAIT_SECONDS if given.wait is None else given.wait
    stream, signal_id = place.streams.emergency, signal.attributes["signal_id"]
    async with reach(place.url, name="tolaria-send", block=BLOCK) as client:
        live = await _concerned(client, place, signal)
        listened = [place.streams.outcomes(run) for run in live]
        listened.append(place.streams.dead_letters_of(stream))
        cursors = await last_ids(client, listened) if wait else {}
        fields: Any = seal(
            signal,
            stream=stream,
            source=sender,
            ring=key_ring(settings),
            priority=MessagePriority.MESSAGE_PRIORITY_CRITICAL,
            message_id=signal_id,
        )
        entry_id: Any = await client.xadd(stream, fields)
        obeyed = as_command(signal, signal_id)
        sent = Sent(obeyed, stream, entry_id.decode(), frozenset(live), cursors)
        if not wait:
            print_sent(sent, as_json=bool(given.json_output))
            return Exit.APPLIED
        reader = Reader.of(settings)
        return await Waiting(sent, place.streams, reader, given).wait(client, wait)


async def _concerned(client: Redis, place: Place, signal: EmergencySignal) -> list[str]:
    """Live runs that have to obey.

    Raises:
        ComposeError: The server has never had a run that has to: the glob is mistyped.
    """
    known, live = await known_runs(client, place.streams), await live_runs(client, place.streams)
    glob = signal.attributes["runs"] if signal.attributes["scope"] == "pattern" else "*"
    if not any(fnmatchcase(run, glob) for run in known):
        shown = ", ".join(known[:_SHOWN]) + (" …" if len(known) > _SHOWN else "")
        raise ComposeError(
            f"emergency: no run is called like {glob!r}; there are: {shown or 'none'}"
        )
    return [run for run in live if fnmatchcase(run, glob)]
