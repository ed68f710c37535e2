"""Asking a run where its time goes: by what it has told already, or by a trace of its next steps.

What comes of a trace is a message like any other, so that it comes from another machine too.
"""

from __future__ import annotations

import os
import platform
import secrets
import shutil
import sys
import time
from dataclasses import dataclass
from enum import IntEnum
from pathlib import Path
from typing import Any, Final

import anyio
from google.protobuf.message import Message
from redis.asyncio import Redis

from tolaria_bus.cli import compose_command as compose
from tolaria_bus.cli.circumstances import Circumstances, annotate
from tolaria_bus.cli.describe import describe
from tolaria_bus.cli.follow import BLOCK, Follower, last_ids, reach
from tolaria_bus.cli.leaving import interrupt_at_once
from tolaria_bus.cli.locate import Asked, NotLocated, Place, locate, only_run
from tolaria_bus.cli.opening import Reader
from tolaria_bus.cli.profile_lines import (
    METRIC,
    phases_json,
    phases_table,
    report_json,
    report_table,
)
from tolaria_bus.cli.style import clean, paint, wants_colour
from tolaria_bus.cli.verdict import answers, exit_code
from tolaria_bus.cli.who import known_runs, live_runs, user_name
from tolaria_bus.configured import key_ring
from tolaria_bus.leyline import AdaptationCommand, DeadLetter, ProfileReport, TelemetryPacket
from tolaria_bus.oona.sealing import seal
from tolaria_bus.settings import Settings, load

_PAGE: Final = 500
_FAR_ENOUGH: Final = 20_000
"""Entries of telemetry that are looked through for it."""


class Exit(IntEnum):
    """Exit codes of ``profile``; 2 is any command's for what wasn't asked."""

    SHOWN = 0
    NO_TRACE = 1
    REFUSED = 3
    NOTHING_CAME = 4


@dataclass(frozen=True, slots=True)
class Wish:
    """What somebody wants to know.

    Attributes:
        where: Server and run.
        steps: To be recorded; 0: none, only what is told all the time.
        trace: Where to copy the trace.
        as_json: One JSON object instead of tables.
        seconds: How long to wait for it.
    """

    where: Asked
    steps: int
    trace: Path | None
    as_json: bool
    seconds: float


def show(wish: Wish) -> int:
    """Print where the time goes.

    Returns:
        The exit code, one of :class:`Exit`.

    Raises:
        NotLocated: There is no server, or not one run.
        ServerUnreachable: It doesn't answer.
        SettingError: A setting is wrong, or ``trace`` can't be written.
    """
    settings, _ = load()
    if wish.trace is not None:
        from tolaria_bus.cli.training import check_writable

        check_writable(wish.trace, "--trace")
    place = locate(wish.where, settings)
    interrupt_at_once()
    return anyio.run(_show, wish, place, settings)


async def _show(wish: Wish, place: Place, settings: Settings) -> int:
    reader = Reader.of(settings)
    async with reach(place.url, name="tolaria-profile", block=BLOCK) as client:
        find = live_runs if wish.steps else known_runs
        run = place.run or only_run(await find(client, place.streams), place)
        if not wish.steps:
            return await _show_phases(wish, client, place, run, reader)
        return await _Recording(wish, client, place, run, reader, settings).show()


# What is told all the time


async def _show_phases(wish: Wish, client: Redis, place: Place, run: str, reader: Reader) -> int:
    packet = await _newest_phases(client, place.streams.telemetry(run), reader)
    if packet is None:
        raise NotLocated(f"run {run}: nothing is known of its phases yet; it tells every 5 seconds")
    if wish.as_json:
        print(phases_json(packet))
    else:
        for line in phases_table(packet, colour=wants_colour(sys.stdout)):
            print(line)
    return Exit.SHOWN


async def _newest_phases(client: Redis, stream: str, reader: Reader) -> TelemetryPacket | None:
    last = "+"
    for _ in range(_FAR_ENOUGH // _PAGE):
        entries: Any = await client.xrevrange(stream, max=last, count=_PAGE)
        for entry_id, fields in entries:
            shown = reader.read(stream, entry_id.decode(), fields)
            message = shown.message
            if (
                isinstance(message, TelemetryPacket)
                and shown.verified is not False
                and any(point.name == METRIC for point in message.metrics)
            ):
                return message
        if len(entries) < _PAGE:
            return None
        last = f"({entries[-1][0].decode()}"
    return None


# A trace


class _Recording:
    """One command, its outcome, and what comes of it."""

    def __init__(
        self,
        wish: Wish,
        client: Redis,
        place: Place,
        run: str,
        reader: Reader,
        settings: Settings,
    ) -> None:
        self._wish = wish
        self._client = client
        self._streams = place.streams
        self._run = run
        self._reader = reader
        self._ring = key_ring(settings)
        self._sender = f"operator/{user_name()}"
        self._begun = False

    async def show(self) -> int:
        """Ask, wait, print."""
        control = self._streams.control(self._run)
        listened = (
            self._streams.outcomes(self._run),
            self._streams.dead(self._run),
            self._streams.telemetry(self._run),
        )
        follower = Follower(await last_ids(self._client, listened))
        asked = annotate(
            compose.profile(self._wish.steps),
            Circumstances(
                command_id=secrets.token_hex(8),
                issued_by=self._sender,
                issued_at_ns=time.time_ns(),
                deadline_s=self._wish.seconds,
            ),
        )
        fields: Any = seal(
            asked,
            stream=control,
            source=self._sender,
            ring=self._ring,
            message_id=asked.command_id,
        )
        entry_id: Any = await self._client.xadd(control, fields)
        with anyio.move_on_after(self._wish.seconds):
            while True:
                for entry in await follower.read(self._client, BLOCK):
                    shown = self._reader.read(entry.stream, entry.entry_id, entry.fields)
                    if shown.message is None or shown.verified is False:
                        continue
                    code = self._take(shown.message, asked, entry_id.decode())
                    if code is not None:
                        return code
        began = "it was recording" if self._begun else "it has not answered"
        _complain(
            f"run {self._run}: nothing came within {self._wish.seconds:g} s, {began}"
            + (" (a held run makes no steps)" if self._begun else "")
        )
        return Exit.NOTHING_CAME

    def _take(self, message: Message, asked: AdaptationCommand, entry_id: str) -> int | None:
        """The exit code if this is the last that is to come."""
        command_id, control = asked.command_id, self._streams.control(self._run)
        if answers(message, command_id=command_id, stream=control, entry_id=entry_id):
            if self._begun:
                return None  # A rollback has undone the command, and not the recording.
            if isinstance(message, DeadLetter) or exit_code(message):
                print(paint(describe(message), colour=wants_colour(sys.stderr)), file=sys.stderr)
                return Exit.REFUSED
            self._begun = True
        elif isinstance(message, TelemetryPacket):
            if message.profile.command_id == command_id:
                return self._print(message.profile)
            for event in message.events:
                if event.event_id == "profile_lost" and (
                    event.attributes["command_id"] == command_id
                ):
                    _complain(f"run {self._run}: {event.description}")
                    return Exit.NOTHING_CAME
        return None

    def _print(self, report: ProfileReport) -> int:
        if self._wish.as_json:
            print(report_json(self._run, report))
        else:
            for line in report_table(report, colour=wants_colour(sys.stdout)):
                print(line)
        sys.stdout.flush()
        if self._wish.trace is None:
            return Exit.SHOWN
        missing = _fetch(report, self._wish.trace)
        if missing:
            _complain(missing)
            return Exit.NO_TRACE
        return Exit.SHOWN


def _fetch(report: ProfileReport, path: Path) -> str:
    """Copy a trace; why it can't be, or nothing."""
    if not report.trace:
        return f"there is no trace: {report.trace_failed}"
    source = Path(report.trace)
    there = source.is_file() and source.stat().st_size == report.trace_bytes
    if not there:
        here = "" if report.host != platform.node() else " (and can't be read from here)"
        return f"the trace is on {report.host}, at {report.trace}{here}"
    scratch = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        shutil.copyfile(source, scratch)
        scratch.replace(path)
    except OSError as error:
        scratch.unlink(missing_ok=True)
        return f"the trace could not be copied: {error}"
    return ""


def _complain(text: str) -> None:
    print(f"tolaria-bus: {clean(text)}", file=sys.stderr)
