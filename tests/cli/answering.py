"""A tiny worker: takes commands from a real stream and answers them on another."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from datetime import timedelta
from typing import Any

import anyio
from google.protobuf.message import Message
from redis.asyncio import Redis

from tolaria_bus.cli.follow import Follower
from tolaria_bus.leyline import AdaptationCommand, CommandOutcome, CommandStatus, DeadLetter
from tolaria_bus.oona.connection import connect
from tolaria_bus.oona.opening import Opened, Opener, Refused
from tolaria_bus.oona.sealing import seal
from tolaria_bus.oona.streams import Streams
from tolaria_bus.oona.trust import KeyRing

STREAMS = Streams()
BLOCK = timedelta(seconds=10)
Answers = Callable[[AdaptationCommand], Sequence[Message]]


def outcome(command: AdaptationCommand, status: str = "APPLIED", **fields: Any) -> CommandOutcome:
    """An answer to ``command``."""
    return CommandOutcome(
        command_id=command.command_id,
        command_type=command.command_type,
        status=CommandStatus.Value(f"COMMAND_STATUS_{status}"),
        step=7,
        timeline=1,
        **fields,
    )


class Worker:
    """What it took, and how it answers.

    Attributes:
        taken: Commands opened, oldest first.
        took: Set once there is one.
    """

    def __init__(self, client: Redis, run: str, answers: Answers, ring: KeyRing) -> None:
        self.taken: list[Opened] = []
        self.took = anyio.Event()
        self._client = client
        self._run = run
        self._answers = answers
        self._ring = ring
        self._opener = Opener(ring, None)

    async def put(self, stream: str, message: Message, ring: KeyRing | None = None) -> str:
        """Add one sealed entry; its id."""
        fields: Any = seal(
            message, stream=stream, source=f"run/{self._run}", ring=ring or self._ring
        )
        entry_id: Any = await self._client.xadd(stream, fields)
        return str(entry_id.decode())

    async def work(self) -> None:
        """Answer for ever."""
        control = STREAMS.control(self._run)
        follower = Follower({control: "0", STREAMS.fleet_control: "0"})
        while True:
            for entry in await follower.read(self._client, BLOCK):
                try:
                    opened = self._opener.open(entry.stream, entry.entry_id, entry.fields)
                except Refused as refused:
                    letter = DeadLetter(
                        reason=refused.reason,
                        detail=refused.detail,
                        stream=entry.stream,
                        entry_id=entry.entry_id,
                    )
                    await self.put(STREAMS.dead_letters_of(entry.stream), letter)
                    continue
                self.taken.append(opened)
                self.took.set()
                assert isinstance(opened.message, AdaptationCommand)
                for answer in self._answers(opened.message):
                    await self.put(STREAMS.outcomes(self._run), answer)


@asynccontextmanager
async def worker(
    url: str,
    run: str = "first",
    answers: Answers = lambda command: [outcome(command)],
    ring: KeyRing | None = None,
) -> AsyncIterator[Worker]:
    """A worker of ``run`` that is known to the server and holds its lease, until the end."""
    async with connect(url, name="tests-worker", block=BLOCK) as client:
        await client.hset(STREAMS.runs, run, "{}")
        await client.hset(STREAMS.lease(run), "holder", "tests")
        started = Worker(client, run, answers, ring or KeyRing())
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(started.work)
            try:
                yield started
            finally:
                tasks.cancel_scope.cancel()
        await client.delete(STREAMS.lease(run))
