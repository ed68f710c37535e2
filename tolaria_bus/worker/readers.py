"""The three consumers of a worker: of its own commands, of the fleet's, and of emergencies."""

from __future__ import annotations

from contextlib import AsyncExitStack
from datetime import timedelta
from functools import partial

from tolaria_bus.configured import compat_secret
from tolaria_bus.oona.connection import ServerClock, connect
from tolaria_bus.oona.consumer import Consumer
from tolaria_bus.oona.events import OnEvent
from tolaria_bus.oona.opening import Opener
from tolaria_bus.oona.streams import Streams
from tolaria_bus.oona.trust import KeyRing, NonceWindow
from tolaria_bus.settings import Settings
from tolaria_bus.tolaria.recovery.run_folder import RunFolder
from tolaria_bus.worker.bridge import ALERTS, COMMANDS

GROUP = "tolaria"
"""Of a run's own stream; on shared ones each run has its own, see :func:`shared_group`."""
BLOCK = timedelta(seconds=2)
"""How long a reader waits in the server; a stop is noticed at once all the same."""


def shared_group(run: str) -> str:
    """The run's group of streams that all runs read."""
    return f"{GROUP}.{run}"


async def make_consumers(
    stack: AsyncExitStack,
    url: str,
    run: str,
    *,
    folder: RunFolder,
    settings: Settings,
    ring: KeyRing,
    clock: ServerClock,
    on_event: OnEvent,
) -> list[Consumer]:
    """Make them; nothing is read yet.

    Args:
        stack: Closes their connections, and the file of nonces.
        url: The server.
        run: The run's id.
        folder: The run's.
        settings: Prefix, and whether old envelopes are taken.
        ring: Verifies.
        clock: Entry ids are judged by it.
        on_event: Told what happens.
    """
    nonces = NonceWindow(folder.path / "nonces")
    stack.callback(nonces.close)
    opener = Opener(
        ring,
        nonces,
        compat_secret=compat_secret(settings),
        server_now_ms=clock.now_ms,
    )
    streams, shared = Streams(settings.prefix), shared_group(run)
    # Only a run that never began has nothing to catch up with; one whose groups are gone was
    # away too long, or its server was wiped.
    begins = "0" if folder.ledger.starts else "$"
    consumers = []
    for stream, group, accept, delete in (
        (streams.control(run), GROUP, COMMANDS, True),
        (streams.fleet_control, shared, COMMANDS, False),
        (streams.emergency, shared, ALERTS, False),
    ):
        client = await stack.enter_async_context(connect(url, name="tolaria-reader", block=BLOCK))
        acks = await stack.enter_async_context(connect(url, name="tolaria-acks"))
        consumers.append(
            Consumer(
                client,
                acks,
                stream=stream,
                group=group,
                # Stable: what an earlier process of this run left pending is our own.
                name=run,
                opener=opener,
                ring=ring,
                accept=accept,
                delete=delete,
                start="0" if delete else begins,
                block=BLOCK,
                on_event=on_event,
                server_now=clock.now,
                sync_clock=partial(clock.sync, acks),
            )
        )
    return consumers
