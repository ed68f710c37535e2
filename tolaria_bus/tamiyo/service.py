"""One Tamiyo: finds the runs of a server, answers each, and can be killed at any time.

It keeps nothing: a run's past is in its state stream, how often it intervened is in the packet
itself, which policies are in force is in the stream of updates. Several share the work, as
consumers of one group.
"""

from __future__ import annotations

import os
import platform
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import timedelta
from fnmatch import fnmatchcase
from typing import Any, Final

import anyio
import structlog
from prometheus_client.registry import CollectorRegistry
from redis.asyncio import Redis
from redis.exceptions import RedisError

from tolaria_bus.leyline import (
    AdaptationCommand,
    CommandType,
    TelemetryEvent,
    TelemetryLevel,
    TelemetryPacket,
)
from tolaria_bus.leyline import MessagePriority as Priority
from tolaria_bus.leyline.annotations import REASON, TAMIYO
from tolaria_bus.leyline.codec import short_name
from tolaria_bus.oona.alone import OpenPublisher, open_publisher
from tolaria_bus.oona.attempts import Attempts
from tolaria_bus.oona.connection import ServerClock, check, connect
from tolaria_bus.oona.directory import runs as known_runs
from tolaria_bus.oona.sealing import new_message_id
from tolaria_bus.oona.streams import Streams
from tolaria_bus.oona.trust import KeyRing
from tolaria_bus.tamiyo.answering import Answerer
from tolaria_bus.tamiyo.limits import Limits
from tolaria_bus.tamiyo.metrics import TamiyoMetrics
from tolaria_bus.tamiyo.policies import Named, PolicyBook
from tolaria_bus.tamiyo.updates import BLOCK, PolicyUpdates
from tolaria_bus.tamiyo.watching import RunWatch

MAX_AGE: Final = timedelta(seconds=60)
_LOOK: Final = 1.0
"""Seconds between two looks for runs."""
_LEFT_ALONE: Final = 60.0
"""Seconds after which a run that nobody works on isn't watched any more."""
_CLOCK: Final = 60.0
"""Seconds between two looks at the server's clock."""
_DRAIN: Final = timedelta(seconds=2)
_LOUD: Final = frozenset({"policy_failed", "policy_refused", "policy_unread", "bad_signatures"})
"""What somebody has to know."""


def default_name() -> str:
    """Of this instance among those that share the work: machine and process."""
    return f"{platform.node()}-{os.getpid()}"


@dataclass(frozen=True, slots=True)
class Service:
    """What a Tamiyo is to do.

    Attributes:
        url: The server.
        policy: Of runs for which nothing else was said.
        limits: What no policy may do.
        ring: Verifies packets and signs answers.
        streams: Names of the streams.
        runs: Which runs: a glob of their ids.
        name: Of this instance.
        max_age: Of a packet that is answered.
        registry: Where metrics are wanted.
    """

    url: str
    policy: Named
    limits: Limits = field(default_factory=Limits)
    ring: KeyRing = field(default_factory=KeyRing)
    streams: Streams = field(default_factory=Streams)
    runs: str = "*"
    name: str = field(default_factory=default_name)
    max_age: timedelta = MAX_AGE
    registry: CollectorRegistry = field(default_factory=CollectorRegistry)


async def serve(service: Service, stopped: anyio.Event) -> None:
    """Answer until it is told to stop.

    Raises:
        BadUrl: The URL can't name a server.
        ServerUnreachable: It doesn't answer at the start; later that is waited out.
    """
    await check(service.url)
    log = structlog.get_logger().bind(tamiyo=service.name)
    source = f"{TAMIYO}/{service.name}"
    async with (
        connect(service.url, name="tamiyo") as client,
        connect(service.url, name="tamiyo-policies", block=BLOCK) as blocking,
    ):
        clock = ServerClock()
        await clock.sync(client)
        async with open_publisher(
            service.url,
            source=source,
            ring=service.ring,
            streams=service.streams,
            drain=_DRAIN,
            on_event=lambda name, detail: log.warning(name, **detail),
        ) as publisher:
            tamiyo = _Tamiyo(service, client, clock, publisher, source, log)
            updates = PolicyUpdates(
                blocking, service.streams, service.ring, tamiyo.policies, tamiyo.tell
            )
            # Before the first answer: what was said before we were there holds.
            await updates.catch_up()
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(updates.run)
                tasks.start_soon(tamiyo.keep_clock)
                tasks.start_soon(tamiyo.look_for_runs)
                log.info("answering", runs=service.runs, policy=service.policy.label)
                await stopped.wait()
                tasks.cancel_scope.cancel()


class _Tamiyo:
    def __init__(
        self,
        service: Service,
        client: Redis,
        clock: ServerClock,
        publisher: OpenPublisher,
        source: str,
        log: Any,
    ) -> None:
        self.policies = PolicyBook(service.policy)
        self._service = service
        self._client = client
        self._clock = clock
        self._publisher = publisher
        self._source = source
        self._log = log
        self._metrics = TamiyoMetrics(service.registry)
        self._answerer = Answerer(source, service.limits, self.tell)
        self._watched: dict[str, anyio.CancelScope] = {}
        self._alive: dict[str, float] = {}

    async def look_for_runs(self) -> None:
        """Watch each run that somebody works on, until nobody has for a while."""
        attempts = Attempts("runs", self.tell)
        async with anyio.create_task_group() as tasks:
            while True:
                wait = _LOOK
                try:
                    live = await self._live()
                    attempts.answered({})
                except (RedisError, OSError) as error:
                    wait = max(wait, attempts.failed(error))
                else:
                    now = time.monotonic()
                    self._alive.update(dict.fromkeys(live, now))
                    for run in live:
                        if run not in self._watched:
                            self._watched[run] = anyio.CancelScope()
                            tasks.start_soon(self._watch, run, self._watched[run])
                    for run, scope in list(self._watched.items()):
                        if now - self._alive[run] > _LEFT_ALONE:
                            scope.cancel()
                    self._metrics.watched(len(self._watched))
                await anyio.sleep(wait)

    async def keep_clock(self) -> None:
        """Know the server's time."""
        while True:
            await anyio.sleep(_CLOCK)
            try:
                await self._clock.sync(self._client)
            except (RedisError, OSError) as error:
                # The last answer still serves; the reader tells of the outage.
                self._log.debug("no time from the server", reason=str(error))

    def tell(self, name: str, detail: Mapping[str, str]) -> None:
        """Log an event; one that somebody has to know goes to the emergency stream."""
        loud = name in _LOUD
        (self._log.warning if loud else self._log.info)(name, **detail)
        if not loud:
            return
        level = TelemetryLevel.TELEMETRY_LEVEL_WARNING
        text = ", ".join(f"{key} {value}" for key, value in detail.items())
        packet = TelemetryPacket(
            packet_id=new_message_id(),
            source_subsystem=TAMIYO,
            level=level,
            priority=Priority.MESSAGE_PRIORITY_HIGH,
            training_run_id=detail.get("run", ""),
            events=[
                TelemetryEvent(event_id=name, description=text, level=level, attributes=detail)
            ],
        )
        packet.timestamp.GetCurrentTime()
        self._publisher.put(
            packet,
            stream=self._service.streams.emergency,
            priority=Priority.MESSAGE_PRIORITY_HIGH,
        )

    def send(self, run: str, command: AdaptationCommand, seconds: float) -> None:
        """Send an answer: once, whoever of us sends it."""
        self._publisher.put(
            command,
            stream=self._service.streams.control(run),
            message_id=command.command_id,
            durable=True,
        )
        self._metrics.answered(command, seconds)
        self._log.info(
            "answered",
            run=run,
            command=short_name(CommandType, command.command_type),
            reason=command.annotations[REASON],
            ms=round(seconds * 1e3, 2),
        )

    async def _live(self) -> list[str]:
        service = self._service
        names = [
            run
            for run in await known_runs(self._client, service.streams)
            if fnmatchcase(run, service.runs)
        ]
        # The lease is asked, not the last beat: that is by another machine's clock.
        pipe = self._client.pipeline(transaction=False)
        for run in names:
            pipe.exists(service.streams.lease(run))
        held = await pipe.execute() if names else []
        return [run for run, count in zip(names, held, strict=True) if count]

    async def _watch(self, run: str, scope: anyio.CancelScope) -> None:
        service = self._service
        watch = RunWatch(
            run,
            self._client,
            self._clock,
            streams=service.streams,
            ring=service.ring,
            policies=self.policies,
            answerer=self._answerer,
            send=self.send,
            max_age=service.max_age,
            on_event=self.tell,
        )
        self._log.info("watching", run=run)
        try:
            with scope:
                await watch.run(service.url, service.name)
        finally:
            del self._watched[run]
