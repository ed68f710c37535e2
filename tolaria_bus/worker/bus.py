"""The bus side of one worker: connections, lease, publisher, three consumers, and the beat."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import AsyncExitStack
from datetime import timedelta
from types import TracebackType
from typing import Any, Self

import anyio
import structlog
from prometheus_client.registry import CollectorRegistry

from tolaria_bus.configured import copies
from tolaria_bus.oona.connection import ServerClock, connect
from tolaria_bus.oona.consumer import Consumer
from tolaria_bus.oona.dead_letters import begun_key
from tolaria_bus.oona.metrics import stalled
from tolaria_bus.oona.outbox import Outbox
from tolaria_bus.oona.publisher import Publisher
from tolaria_bus.oona.retention import Janitor, retentions
from tolaria_bus.oona.spool import Spool
from tolaria_bus.oona.streams import Streams
from tolaria_bus.oona.trust import KeyRing
from tolaria_bus.safety import Signals
from tolaria_bus.settings import Settings
from tolaria_bus.tolaria.control.mailbox import Mailbox
from tolaria_bus.tolaria.recovery.run_folder import RunFolder
from tolaria_bus.tolaria.summary import Progress
from tolaria_bus.worker.bridge import BusOutbound
from tolaria_bus.worker.clock import ClockKeeper
from tolaria_bus.worker.draining import Drain
from tolaria_bus.worker.holding import make_lease, refuse_known_run
from tolaria_bus.worker.inbound import Inbound
from tolaria_bus.worker.measuring import measure
from tolaria_bus.worker.presence import Presence
from tolaria_bus.worker.readers import GROUP, make_consumers, shared_group
from tolaria_bus.worker.telling import tell


class Bus:
    """Everything between a mailbox and the server; an async context manager.

    Args:
        url: The server.
        run: The run's id.
        folder: The run's, open: the journal gives the lease its token, the spool lies beside it.
        settings: Lengths, prefix, lease.
        ring: Signs and verifies.
        mailbox: Where commands go.
        signals: Where emergencies are left for a supervisor too.
        new: Take a run id that the server knows though the folder is empty.
        registry: Where metrics are wanted.
        job: The job's name.

    Attributes:
        outbound: The trainer's way out.
        ended: How and why training ended; told with the next beat.
    """

    def __init__(
        self,
        url: str,
        run: str,
        folder: RunFolder,
        settings: Settings,
        ring: KeyRing,
        mailbox: Mailbox,
        *,
        signals: Signals | None = None,
        new: bool = False,
        registry: CollectorRegistry | None = None,
        job: str = "",
    ) -> None:
        self.ended: dict[str, str] | None = None
        self._job = job
        self._url = url
        self._run = run
        self._folder = folder
        self._settings = settings
        self._ring = ring
        self._mailbox = mailbox
        self._signals = signals
        self._new = new
        self._registry = registry
        self._log = structlog.get_logger().bind(run=run)
        self._streams = Streams(settings.prefix)
        self._retentions = retentions(
            self._streams,
            run,
            telemetry=settings.telemetry_stream_length,
            limit=settings.stream_length_limit,
            age=timedelta(days=settings.stream_age_days),
            dead_age=timedelta(days=settings.dead_letter_age_days),
        )
        self._token = folder.ledger.starts + 1
        self._consumers: list[Consumer] = []
        self._stack = AsyncExitStack()
        self._clock = ServerClock()
        mailbox.server_ms = self._clock.past_ms

    async def __aenter__(self) -> Self:
        """Connect, take the lease, start reading and publishing.

        Raises:
            LeaseHeld: Another worker has the run.
            RunKnown: See there.
            RedisError: The server doesn't answer.
        """
        async with AsyncExitStack() as stack:
            self._tasks = anyio.create_task_group()
            self._inbound = Inbound(self._run, self._mailbox, self._tasks)
            self._client = await stack.enter_async_context(connect(self._url, name="tolaria-bus"))
            await self._clock.sync(self._client)
            self._presence = Presence(
                self._client,
                self._streams,
                self._run,
                self._clock,
                job=self._job,
                signals=self._signals,
                settings=self._settings,
            )
            self._clock_keeper = ClockKeeper(self._clock, self._client, on_event=self.tell)
            if not self._new:
                await refuse_known_run(self._client, self._streams, self._run, self._folder)
            await self._take_lease(stack)
            self._spool = Spool(self._folder.path / "spool")
            stack.callback(self._spool.close)
            self._outbox = Outbox(
                self._settings.outbox_capacity, self._spool, self._streams, self._run
            )
            self.outbound = BusOutbound(
                self._outbox,
                self._streams,
                self._run,
                self._inbound.finish_soon,
                self._ring,
                self._signals,
            )
            self._publisher = await self._make_publisher(stack)
            self._consumers = await make_consumers(
                stack,
                self._url,
                self._run,
                folder=self._folder,
                settings=self._settings,
                ring=self._ring,
                clock=self._clock,
                on_event=self.tell,
            )
            # After all connections, so that it ends before they are closed.
            await stack.enter_async_context(self._tasks)
            stack.callback(lambda: self._tasks.cancel_scope.cancel())
            self._tasks.start_soon(self._publisher.run)
            self._tasks.start_soon(self._lease.keep)
            self._tasks.start_soon(self._clock_keeper.run)
            await self._start_consumers()
            # Not sooner: who finds it there may send to it, and its groups have to be there.
            await self._presence.enter()
            self._start_janitor()
            self._measure()
            self._stack = stack.pop_all()
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Close everything; the lease has been given back by :meth:`drain`."""
        await self._stack.__aexit__(kind, error, trace)

    async def drain(self, within: timedelta) -> None:
        """Stop reading, send what was said, give the lease back; at most ``within`` in all."""
        drain = Drain(within)
        left = await drain.send(self._consumers, self._publisher)
        if left:
            self._log.warning(
                "not delivered; what is in the spool goes out at the next start",
                packets=left,
                in_spool=len(self._spool),
            )
        reason = await drain.give_back(self._lease, self._presence.leave)
        if reason:
            self._log.warning("the lease was not given back; it will lapse", reason=reason)

    def stalled(self) -> str:
        """Which read loops stand still, in one line; empty if none does. Any thread may ask."""
        return stalled(self._consumers)

    def sync(self) -> None:
        """Make the spool durable: for a process that is about to be ended."""
        self._spool.sync()

    async def beat(self, progress: Progress, standing: Mapping[str, Any]) -> None:
        """Tell everybody where the run is, if the server can be told."""
        read_age = max(consumer.read_age for consumer in self._consumers)
        await self._presence.beat(progress, standing, read_age=read_age, ended=self.ended)

    async def _take_lease(self, stack: AsyncExitStack) -> None:
        self._lease = make_lease(
            await stack.enter_async_context(connect(self._url, name="tolaria-lease")),
            self._run,
            self._token,
            folder=self._folder,
            settings=self._settings,
            on_lost=self._lease_lost,
            on_event=self.tell,
        )
        await self._lease.acquire(fresh=self._new)

    async def _make_publisher(self, stack: AsyncExitStack) -> Publisher:
        bulk = await stack.enter_async_context(connect(self._url, name="tolaria-publisher"))
        emergency = await stack.enter_async_context(connect(self._url, name="tolaria-emergency"))
        return Publisher(
            bulk,
            emergency,
            self._outbox,
            self._ring,
            token=self._token,
            lengths={stream: kept.hard for stream, kept in self._retentions.items()},
            copies=copies(self._settings),
            on_event=self.tell,
            on_fenced=lambda holder: self._lease_lost(f"{holder} has the run"),
        )

    async def _start_consumers(self) -> None:
        # The last process died while a command was executed. Entries that it was just handing over
        # then had no part in that, and must not be counted as killers beside the one that has.
        explained = bool(self._folder.ledger.unfinished())
        for consumer in self._consumers:
            if explained:
                await self._client.delete(begun_key(consumer.stream, consumer.group))
            signals = consumer.stream == self._streams.emergency
            await consumer.prepare()
            handler = self._inbound.take_signal if signals else self._inbound.take_command
            self._tasks.start_soon(consumer.run, handler)

    def _start_janitor(self) -> None:
        shared = [shared_group(self._run)]
        janitor = Janitor(
            self._client,
            self._retentions,
            own={
                self._streams.control(self._run): [GROUP],
                self._streams.fleet_control: shared,
                self._streams.emergency: shared,
            },
            lease=timedelta(days=self._settings.group_lease_days),
            on_event=self.tell,
        )
        self._tasks.start_soon(janitor.run)

    def _measure(self) -> None:
        if self._registry is not None:
            sampler = measure(
                self._registry,
                self._client,
                self._streams,
                self._run,
                consumers=self._consumers,
                publisher=self._publisher,
                outbox=self._outbox,
                clock=self._clock,
                on_event=self.tell,
            )
            self._tasks.start_soon(sampler.run)

    def _lease_lost(self, reason: str) -> None:
        self._log.error("the run was taken over: stopping", reason=reason)
        self._mailbox.request_stop("lease")

    def tell(self, name: str, detail: Mapping[str, str]) -> None:
        """Something happened to the bus, or came by it: to the log, and to everybody."""
        if name == "reconnected":
            self._clock_keeper.ask()
        tell(name, detail, run=self._run, outbound=self.outbound, log=self._log)
