"""One Weatherlight from its start to its end: all keepers, the bus, the machine, the endpoint.

It ends when nothing is left to be kept: 0 if every run came to its end or was stopped, 1 if one was
given up. SIGINT or SIGTERM stops the workers in good order first, a second one at once. SIGHUP ends
it alone. So does whatever else ends it: its workers go on, and the next one adopts them.
"""

from __future__ import annotations

import os
import platform
import signal
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import Final

import anyio
import structlog
from anyio.abc import TaskStatus
from prometheus_client.registry import CollectorRegistry

from tolaria_bus.configured import copies, metrics_endpoint
from tolaria_bus.leyline import EmergencySignal
from tolaria_bus.oona.alone import OpenPublisher, open_publisher
from tolaria_bus.oona.embedded import EmbeddedServer
from tolaria_bus.oona.running import Note, registered
from tolaria_bus.oona.streams import Streams
from tolaria_bus.oona.trust import KeyRing
from tolaria_bus.oona.url import parse
from tolaria_bus.safety.endpoint import Endpoint
from tolaria_bus.settings import Settings
from tolaria_bus.weatherlight.claim import claimed
from tolaria_bus.weatherlight.fleet import Planned
from tolaria_bus.weatherlight.judging import Health
from tolaria_bus.weatherlight.keeper import Keeper
from tolaria_bus.weatherlight.machine import MachineWatch
from tolaria_bus.weatherlight.metrics import WeatherlightMetrics
from tolaria_bus.weatherlight.process import SERVER_VARIABLE
from tolaria_bus.weatherlight.systemd import Notifier, watchdog_seconds
from tolaria_bus.weatherlight.telling import Teller
from tolaria_bus.weatherlight.terms import Terms

STATE: Final = ".weatherlight"
"""Our own folder beside those of the runs: the spool, an embedded server of several runs."""

_STALLED: Final = 10.0
"""Seconds without a round of our event loop that make us unhealthy ourselves."""
_ROUND: Final = 0.5  # seconds
_DRAIN: Final = timedelta(seconds=5)
_NOT_READY: Final = frozenset({Health.STARTING, Health.HUNG, Health.ENDED})


@dataclass(frozen=True, slots=True)
class Watch:
    """What to watch, and how.

    Attributes:
        fleet: The workers.
        settings: Ours.
        ring: Signs what we tell.
        state: Our own folder; one process at a time.
        inherit: Workers write where we do.
    """

    fleet: Sequence[Planned]
    settings: Settings
    ring: KeyRing = field(default_factory=KeyRing)
    state: Path | None = None
    inherit: bool = False


def supervise(watch: Watch) -> int:
    """Keep a fleet going to its end.

    Returns:
        The exit code.

    Raises:
        SettingError: A setting is wrong.
        BadUrl: The server's URL can't name one.
        RunWatched: Another Weatherlight watches one of the runs.
        SpoolLocked: Another one has the same folder of its own.
        ServerStartError: The embedded server can't be started.
    """
    settings = watch.settings
    state = watch.state or settings.runs_dir / STATE
    if settings.redis_url is not None:
        # Before anything is made: whether it answers is another matter.
        parse(settings.redis_url)
    with ExitStack() as stack:
        for planned in watch.fleet:
            stack.enter_context(claimed(planned.run, planned.folder))
        state.mkdir(parents=True, exist_ok=True)
        url = settings.redis_url or _embedded(stack, watch.fleet, state)
        registry = CollectorRegistry()
        endpoint = metrics_endpoint(stack, settings, registry)
        return anyio.run(
            _serve,
            watch,
            url,
            state,
            registry,
            endpoint,
            backend="asyncio",
            backend_options={"use_uvloop": True},
        )


async def _serve(
    watch: Watch, url: str, state: Path, registry: CollectorRegistry, endpoint: Endpoint | None
) -> int:
    settings = watch.settings
    streams = Streams(settings.prefix)
    async with open_publisher(
        url,
        source=f"weatherlight/{platform.node()}",
        ring=watch.ring,
        spool=state / "spool",
        streams=streams,
        drain=_DRAIN,
        copies=copies(settings),
        on_event=_log_event,
    ) as publisher:
        teller = Teller(publisher, streams)
        keepers = _keepers(watch, url, teller, publisher)
        machine = MachineWatch(
            [planned.folder for planned in watch.fleet],
            teller,
            memory_limit=settings.memory_alert,
            disk_limit=settings.disk_alert,
        )
        WeatherlightMetrics(registry, keepers, machine, publisher)
        pulse = _Pulse(keepers)
        if endpoint is not None:
            endpoint.health, endpoint.ready = pulse.health, pulse.ready
        async with anyio.create_task_group() as tasks:
            await tasks.start(_obey_signals, keepers, tasks.cancel_scope.cancel)
            tasks.start_soon(machine.run)
            tasks.start_soon(pulse.run)
            async with anyio.create_task_group() as keeping:
                for keeper in keepers:
                    keeping.start_soon(keeper.run)
            tasks.cancel_scope.cancel()
    given_up = [keeper.run_id for keeper in keepers if keeper.given_up]
    if given_up:
        structlog.get_logger().error("given up", runs=given_up)
    return int(bool(given_up))


def _keepers(watch: Watch, url: str, teller: Teller, publisher: OpenPublisher) -> list[Keeper]:
    environment = {
        # Ours is of another process: a port can be listened to once, an id be one run's.
        name: value
        for name, value in os.environ.items()
        if name not in ("TOLARIA_METRICS_PORT", "TOLARIA_RUN", "TOLARIA_RUN_DIR")
    }
    environment[SERVER_VARIABLE] = url

    def server_up() -> bool:
        return publisher.publisher.connected["emergency"]

    def tell_others(signal: EmergencySignal) -> None:
        for keeper in keepers:
            keeper.hear(signal)

    keepers = [
        Keeper(
            planned,
            Terms.of(planned.known, environment, inherit=watch.inherit),
            teller,
            server_up=server_up,
            tell_others=tell_others,
        )
        for planned in watch.fleet
    ]
    return keepers


class _Pulse:
    """Our own health, and word to systemd."""

    def __init__(self, keepers: Sequence[Keeper]) -> None:
        self._keepers = keepers
        self._round = time.monotonic()
        self._notifier = Notifier()

    def health(self) -> str:
        """Why we should be started again; from any thread."""
        age = time.monotonic() - self._round
        return f"the event loop stands still for {age:.0f} s" if age > _STALLED else ""

    def ready(self) -> str:
        """Which runs aren't at work, and aren't paused or halted either; from any thread."""
        waiting = [
            f"{keeper.run_id} {'given up' if keeper.given_up else keeper.condition.health.value}"
            for keeper in self._keepers
            if keeper.condition.health in _NOT_READY
        ]
        return self.health() or ", ".join(waiting)

    async def run(self) -> None:
        """Go round until cancelled."""
        log = structlog.get_logger()
        seconds = watchdog_seconds()
        pause = min(_ROUND, seconds / 3) if seconds else _ROUND
        said = ""
        first = ["READY=1"]
        while True:
            self._round = time.monotonic()
            status = self._status()
            notes = [*first, *(["WATCHDOG=1"] if seconds else [])]
            if status != said:
                notes.append(f"STATUS={status}")
            try:
                if notes:
                    self._notifier.notify(*notes)
                first, said = [], status
            except OSError as error:
                log.warning("systemd is not told", reason=str(error))
                first = []
            await anyio.sleep(pause)

    def _status(self) -> str:
        return ", ".join(
            f"{keeper.run_id} {keeper.condition.health.value}" for keeper in self._keepers
        )


async def _obey_signals(
    keepers: Sequence[Keeper],
    leave: Callable[[], None],
    *,
    task_status: TaskStatus[None] = anyio.TASK_STATUS_IGNORED,
) -> None:
    numbers = [signal.SIGINT, signal.SIGTERM]
    if signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN:
        # As nohup has it: then a terminal that is closed is nothing to us.
        numbers.append(signal.SIGHUP)
    with anyio.open_signal_receiver(*numbers) as signals:
        task_status.started()
        async for number in signals:
            if number == signal.SIGHUP:
                structlog.get_logger().info("leaving the workers at work", reason="SIGHUP")
                leave()
                return
            structlog.get_logger().info(
                "stopping the workers",
                reason=signal.Signals(number).name,
                again="a second signal stops them at once",
            )
            for keeper in keepers:
                keeper.stop()


def _embedded(stack: ExitStack, fleet: Sequence[Planned], state: Path) -> str:
    """A server that ends with us, for workers that go on without it if they must."""
    if len(fleet) == 1:
        server = stack.enter_context(EmbeddedServer.start(fleet[0].folder, fleet[0].run))
    else:
        server = stack.enter_context(EmbeddedServer.start(state, "weatherlight"))
        found = Note.read(state / "server.json")
        for planned in fleet if found is not None else ():
            assert found is not None
            path = registered(planned.run)
            Note(
                found.url, found.pid, planned.run, found.folder, found.owner, found.owner_started
            ).write(path)
            stack.callback(path.unlink, missing_ok=True)
    structlog.get_logger().info("embedded server", address=server.url, by_hand=server.cli)
    return server.url


def _log_event(name: str, detail: Mapping[str, str]) -> None:
    structlog.get_logger().warning(name, **detail)
