"""A published command: where it is, and waiting for what becomes of it."""

from __future__ import annotations

import sys
from dataclasses import dataclass

import anyio
import orjson
from redis.asyncio import Redis
from redis.exceptions import RedisError

from tolaria_bus.cli.describe import command_name, describe
from tolaria_bus.cli.follow import BLOCK, Follower, reason_of
from tolaria_bus.cli.opening import Reader
from tolaria_bus.cli.options import Sending
from tolaria_bus.cli.render import Shown, run_shown
from tolaria_bus.cli.style import Part, paint, wants_colour
from tolaria_bus.cli.verdict import Exit, answers, exit_code, is_deferred
from tolaria_bus.leyline import AdaptationCommand, DeadLetter
from tolaria_bus.leyline.codec import to_json
from tolaria_bus.oona.streams import Streams, run_of

_RETRY_SECONDS = 0.5


@dataclass(frozen=True, slots=True)
class Sent:
    """A published command.

    Attributes:
        stream: The control stream it is in.
        entry_id: Its entry there.
        waiting_for: Runs that have to answer.
        cursors: Streams in which answers come, each with its last entry before the command.
    """

    command: AdaptationCommand
    stream: str
    entry_id: str
    waiting_for: frozenset[str]
    cursors: dict[str, str]


def print_sent(sent: Sent, *, as_json: bool) -> None:
    """Say where it is, for who doesn't wait."""
    if as_json:
        known = {"stream": sent.stream, "id": sent.entry_id, "commandId": sent.command.command_id}
        print(orjson.dumps(known).decode())
        return
    name = command_name(sent.command.command_type)
    parts: list[Part] = [
        ("SENT", "note"),
        (name, "name"),
        (f"entry {sent.entry_id} of {sent.stream}", "plain"),
        (f"id {sent.command.command_id}", "dim"),
    ]
    print(paint(parts, colour=wants_colour(sys.stdout)))


class Waiting:
    """Reads the streams in which answers come until everybody has answered."""

    def __init__(self, sent: Sent, streams: Streams, reader: Reader, given: Sending) -> None:
        self._sent = sent
        self._streams = streams
        self._reader = reader
        self._given = given
        self._follower = Follower(sent.cursors)
        self._missing = set(sent.waiting_for)
        self._code = Exit.APPLIED

    async def wait(self, client: Redis, seconds: float) -> int:
        """Print answers as they come; return the exit code once all are there or time is up."""
        if not self._missing:
            self._complain("no run is live on this server; those that start again will read it")
            return Exit.NO_ANSWER
        lost = ""
        with anyio.move_on_after(seconds):
            while self._missing:
                try:
                    entries = await self._follower.read(client, BLOCK)
                except (RedisError, OSError) as error:
                    # It was published; its answer may still be there when the server is back.
                    lost = reason_of(error)
                    await anyio.sleep(_RETRY_SECONDS)
                    continue
                lost = ""
                for entry in entries:
                    self._take(self._reader.read(entry.stream, entry.entry_id, entry.fields))
        if not self._missing:
            return self._code
        who = ", ".join(sorted(self._missing))
        why = f" (server: {lost})" if lost else await self._absence(client)
        name = command_name(self._sent.command.command_type)
        self._complain(
            f"no answer from {who} within {seconds:g} s{why};"
            f" {name} stays in {self._sent.stream}, entry {self._sent.entry_id}"
        )
        return max(self._code, Exit.NO_ANSWER)

    def _take(self, shown: Shown) -> None:
        sent = self._sent
        message = shown.message
        if message is None or not answers(
            message,
            command_id=sent.command.command_id,
            stream=sent.stream,
            entry_id=sent.entry_id,
        ):
            return
        if shown.verified is False:
            self._complain(f"an answer is not believed: {shown.doubt}")
            return
        self._print(shown)
        if is_deferred(message) and self._given.until_applied:
            return
        self._code = max(self._code, exit_code(message))
        run = run_of(shown.stream)
        if run is None or isinstance(message, DeadLetter):
            # One letter for an entry, however many runs gave it up.
            self._missing.clear()
        else:
            self._missing.discard(run)

    def _print(self, shown: Shown) -> None:
        assert shown.message is not None
        if self._given.json_output:
            print(to_json(shown.message), flush=True)
            return
        parts = describe(shown.message)
        if len(self._sent.waiting_for) > 1:
            parts.insert(0, (f"{run_shown(shown)}:", "name"))
        if isinstance(shown.message, DeadLetter):
            parts.insert(0, ("DEAD LETTER", "bad"))
        print(paint(parts, colour=wants_colour(sys.stdout)), flush=True)

    async def _absence(self, client: Redis) -> str:
        """Why a run may be silent: is anybody working on it?"""
        run = run_of(self._sent.stream)
        if run is None:
            return ""
        try:
            held = await client.exists(self._streams.lease(run))
        except (RedisError, OSError):
            return ""
        return "" if held else " (no worker holds this run now)"

    def _complain(self, text: str) -> None:
        print(
            paint([("tolaria-bus:", "plain"), (text, "warn")], colour=wants_colour(sys.stderr)),
            file=sys.stderr,
        )
