"""Holding a run: nobody else's by what the server says, and given back at the end."""

from __future__ import annotations

import platform
from collections.abc import Callable
from datetime import timedelta

from redis.asyncio import Redis

from tolaria_bus.oona.directory import STARTING, runs
from tolaria_bus.oona.events import OnEvent
from tolaria_bus.oona.lease import Lease
from tolaria_bus.oona.streams import Streams
from tolaria_bus.settings import Settings
from tolaria_bus.tolaria.recovery.run_folder import RunFolder


class RunKnown(RuntimeError):
    """The server knows a run of this id, and its folder here is empty. One line says the mend."""


async def refuse_known_run(client: Redis, streams: Streams, run: str, folder: RunFolder) -> None:
    """Don't begin a run anew by accident. One that never got beyond its start may.

    Raises:
        RunKnown: See there.
    """
    if not folder.is_new:
        return
    known = (await runs(client, streams)).get(run)
    if known is not None and known.get("mode") != STARTING:
        raise RunKnown(
            f"the server knows a run {run!r}, but {folder.path} is empty: "
            "give the folder that it has, another id, or --new to begin it anew"
        )


def make_lease(
    client: Redis,
    run: str,
    token: int,
    *,
    folder: RunFolder,
    settings: Settings,
    on_lost: Callable[[str], None],
    on_event: OnEvent,
) -> Lease:
    """The run's lease, not taken yet. The arguments are those of :class:`Lease`."""
    return Lease(
        client,
        Streams(settings.prefix),
        run,
        # The folder's lock keeps a second process of this machine away, so that whoever asks
        # from here again is the successor of one that died.
        holder=f"{platform.node()}:{folder.path}",
        token=token,
        ttl=timedelta(seconds=settings.lease_seconds),
        on_lost=on_lost,
        on_event=on_event,
    )
