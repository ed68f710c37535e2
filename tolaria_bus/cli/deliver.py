"""One command on its way: annotated, sealed, published, and its answers waited for."""

from __future__ import annotations

import secrets
import time
from typing import Any

import anyio
from redis.asyncio import Redis

from tolaria_bus.cli.circumstances import Circumstances, annotate, priority
from tolaria_bus.cli.follow import BLOCK, last_ids, reach
from tolaria_bus.cli.leaving import interrupt_at_once
from tolaria_bus.cli.locate import Place, locate, only_run
from tolaria_bus.cli.opening import Reader
from tolaria_bus.cli.options import WAIT_SECONDS, Sending
from tolaria_bus.cli.verdict import Exit
from tolaria_bus.cli.waiting import Sent, Waiting, print_sent
from tolaria_bus.cli.who import live_runs, user_name
from tolaria_bus.cli.words import ComposeError
from tolaria_bus.configured import key_ring
from tolaria_bus.leyline import AdaptationCommand
from tolaria_bus.leyline.codec import to_json
from tolaria_bus.oona.sealing import seal
from tolaria_bus.settings import Settings, load


def deliver(composed: AdaptationCommand, given: Sending) -> int:
    """Send a command and print what becomes of it.

    Returns:
        The exit code, one of :class:`Exit`.

    Raises:
        ComposeError: Options exclude each other or are out of range.
        SettingError: A setting is wrong.
        NotLocated: There is no server, or not one run.
        BadUrl: The server's URL is none.
        ServerUnreachable: It doesn't answer; nothing was sent.
    """
    if given.fleet and given.run is not None:
        raise ComposeError("--fleet is every run; leave out --run")
    sender = f"operator/{user_name()}"
    command = annotate(
        composed,
        Circumstances(
            command_id=given.command_id or secrets.token_hex(8),
            issued_by=sender,
            issued_at_ns=time.time_ns(),
            at_step=given.at_step,
            at_epoch=given.at_epoch,
            late_ok=bool(given.late_ok),
            deadline_s=given.deadline,
            reason=given.reason,
        ),
    )
    if given.dry_run:
        print(to_json(command))
        return Exit.APPLIED
    settings, _ = load()
    place = locate(given.asked, settings)
    interrupt_at_once()
    return anyio.run(_deliver, command, given, settings, place, sender)


async def _deliver(
    command: AdaptationCommand, given: Sending, settings: Settings, place: Place, sender: str
) -> int:
    wait = WAIT_SECONDS if given.wait is None else given.wait
    ring, reader = key_ring(settings), Reader.of(settings)
    async with reach(place.url, name="tolaria-send", block=BLOCK) as client:
        targets = await _targets(client, place, fleet=bool(given.fleet))
        stream = place.streams.fleet_control if given.fleet else place.streams.control(targets[0])
        listened = [place.streams.outcomes(run) for run in targets]
        listened.append(place.streams.dead_letters_of(stream))
        # Before publishing: an answer may be there before the next line runs.
        cursors = await last_ids(client, listened) if wait else {}
        fields: Any = seal(
            command,
            stream=stream,
            source=sender,
            ring=ring,
            priority=priority(command),
            message_id=command.command_id,
        )
        entry_id: Any = await client.xadd(stream, fields)
        sent = Sent(command, stream, entry_id.decode(), frozenset(targets), cursors)
        if not wait:
            print_sent(sent, as_json=bool(given.json_output))
            return Exit.APPLIED
        return await Waiting(sent, place.streams, reader, given).wait(client, wait)


async def _targets(client: Redis, place: Place, *, fleet: bool) -> list[str]:
    if fleet:
        return await live_runs(client, place.streams)
    if place.run is not None:
        return [place.run]
    return [only_run(await live_runs(client, place.streams), place)]
