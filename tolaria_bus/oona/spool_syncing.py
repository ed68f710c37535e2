"""Keeps a spool on the disk while packets are added; sending doesn't wait for this."""

from __future__ import annotations

from typing import Final

import anyio

from tolaria_bus.oona.backoff import Backoff
from tolaria_bus.oona.bell import Bell, Sleeper
from tolaria_bus.oona.events import OnEvent, reason_of
from tolaria_bus.oona.spool import Spool

_PAUSE: Final = 0.01  # seconds between two syncs


async def keep_synced(spool: Spool, spooled: Bell, on_event: OnEvent) -> None:
    """Sync the spool whenever something was added, until cancelled.

    Args:
        spool: The spool.
        spooled: Rings when something was.
        on_event: Told ``spool_failed`` (error).
    """
    backoff = Backoff((1.0, 5.0, 30.0))
    with Sleeper(spooled) as sleeper:
        while True:
            await sleeper.sleep_unless(lambda: spool.unsynced)
            try:
                await anyio.to_thread.run_sync(spool.sync, abandon_on_cancel=True)
            except OSError as error:
                on_event("spool_failed", {"error": reason_of(error)})
                await anyio.sleep(backoff.next())
            else:
                backoff.reset()
                await anyio.sleep(_PAUSE)
