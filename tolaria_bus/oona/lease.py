"""One worker per run, as far as the server can tell.

A lease is held by renewing it. Each holder has a *token*, which the caller takes from the run's
journal so that it rises with every process that works on the run. The highest token is remembered
long after its lease has ended (the *fence*): a worker that hung through its lease and wakes up
finds out at its next renewal, and what it tries to settle before that is refused. After a wipe of
the server whoever comes first has the lease, and the higher token takes it from there.

The run's folder is locked as well; the lease is for the case that the folder is not shared, or
its lock not honoured.

Events: ``lease_unrenewed`` (error), and when that is over ``lease_renewed`` (run);
``lease_reacquired`` (run), ``lease_lost`` (reason).
"""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Final

import anyio
from redis.asyncio import Redis
from redis.exceptions import RedisError

from tolaria_bus.oona.events import OnEvent, log_event, reason_of
from tolaria_bus.oona.scripts import (
    LeaseReply,
    LeaseTerms,
    lease_acquire,
    lease_release,
    lease_renew,
)
from tolaria_bus.oona.streams import Streams

FENCE_KEPT: Final = timedelta(days=30)
"""How long the token of an ended lease is remembered."""


class LeaseHeld(Exception):
    """Another worker has the run, or a newer one had it; one line.

    Attributes:
        holder: Who.
        since: Since when, by the server's clock.
    """

    def __init__(self, run: str, reply: LeaseReply) -> None:
        self.holder = reply.holder
        self.since = datetime.fromtimestamp(reply.since_ms / 1000, UTC)
        when = self.since.isoformat(sep=" ", timespec="seconds")
        if reply.verdict == "HELD":
            text = f"run {run!r} is held by {self.holder} since {when}"
        else:
            text = f"run {run!r} was continued by {self.holder} at {when}, from a newer journal"
        super().__init__(text)


class Lease:
    """A worker's lease of a run.

    Args:
        client: Any client; renewals wait for nothing else on it.
        streams: Names of the keys.
        run: The run's id.
        holder: Who wants it. The same holder gets it back at once after a crash, so it should name
            what only one process can have, like the run's locked folder on its host.
        token: Rises with each process that works on the run.
        ttl: How long it holds without being renewed; it is renewed three times as often.
        on_lost: Told once why the run isn't ours any more.
        on_event: Told what else happens.

    Attributes:
        held: It is ours, as far as is known.
    """

    def __init__(
        self,
        client: Redis,
        streams: Streams,
        run: str,
        holder: str,
        token: int,
        ttl: timedelta,
        *,
        on_lost: Callable[[str], None] | None = None,
        on_event: OnEvent = log_event,
    ) -> None:
        self.held = False
        self._client = client
        self._run = run
        self._every = ttl.total_seconds() / 3
        self._terms = LeaseTerms(
            key=streams.lease(run),
            fence=fence_key(streams, run),
            holder=holder,
            token=token,
            ttl_ms=int(ttl.total_seconds() * 1000),
            fence_ms=int(FENCE_KEPT.total_seconds() * 1000),
        )
        self._lock = anyio.Lock()
        self._on_lost = on_lost
        self._on_event = on_event

    async def acquire(self, *, fresh: bool = False) -> None:
        """Take the lease.

        Args:
            fresh: The run begins anew, with a new journal: tokens of ended leases don't count.

        Raises:
            LeaseHeld: another holder has it, or a newer worker had it.
            RedisError: the server can't be asked.
        """
        reply = await lease_acquire(self._client, self._terms, fresh=fresh)
        if reply.verdict != "ACQUIRED":
            raise LeaseHeld(self._run, reply)
        self.held = True

    async def keep(self) -> None:
        """Renew until cancelled, released or lost. An outage doesn't end it."""
        unrenewed = False
        while True:
            await anyio.sleep(self._every)
            # Under a lock, or a renewal on its way would take back what was just released.
            async with self._lock:
                if not self.held:
                    return
                try:
                    reply = await lease_renew(self._client, self._terms)
                except (RedisError, OSError) as error:
                    if not unrenewed:
                        self._on_event("lease_unrenewed", {"error": reason_of(error)})
                    unrenewed = True
                else:
                    self._judge(reply)
                    if unrenewed and self.held:
                        self._on_event("lease_renewed", {"run": self._run})
                    unrenewed = False

    async def release(self) -> bool:
        """Give it back, so that the next worker needn't wait; was it ours?

        Raises:
            RedisError: the server can't be told; it will lapse.
        """
        async with self._lock:
            self.held = False
            return await lease_release(self._client, self._terms)

    def _judge(self, reply: LeaseReply) -> None:
        if reply.verdict == "LOST":
            self.held = False
            reason = f"{reply.holder} has the run now"
            self._on_event("lease_lost", {"reason": reason})
            if self._on_lost is not None:
                self._on_lost(reason)
        elif reply.verdict == "REACQUIRED":
            self._on_event("lease_reacquired", {"run": self._run})


def fence_key(streams: Streams, run: str) -> str:
    """Key of the token that outlives its lease."""
    return f"{streams.lease(run)}:fence"
