"""Policies switched while runs go on: the stream of policy updates, read whole by every Tamiyo.

It has no group: every instance needs every update, and one that starts anew reads the stream from
its beginning, so that it knows what was said before it was there. The newest update for a run
counts; one without a run is for all.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from datetime import timedelta
from typing import Any, Final

import anyio
from redis.asyncio import Redis
from redis.exceptions import RedisError

from tolaria_bus.leyline import PolicyUpdate
from tolaria_bus.oona.attempts import Attempts
from tolaria_bus.oona.opening import Opener, Refused
from tolaria_bus.oona.streams import Streams
from tolaria_bus.oona.trust import KeyRing
from tolaria_bus.tamiyo.policies import PolicyBook, PolicyRefused

BLOCK: Final = timedelta(seconds=2)
KEPT: Final = 1000
"""Updates kept in the stream, about."""
_PAGE: Final = 256

OnEvent = Callable[[str, Mapping[str, str]], None]


class PolicyUpdates:
    """Reads updates into a book.

    Args:
        client: Blocks in reads; nobody else's.
        streams: Names of the streams.
        ring: Verifies.
        book: Is updated.
        on_event: ``policy_switched`` (run, policy), ``policy_refused`` (run, policy, reason),
            ``policy_unread`` (entry_id, reason), and those of :class:`Attempts`.
    """

    def __init__(
        self, client: Redis, streams: Streams, ring: KeyRing, book: PolicyBook, on_event: OnEvent
    ) -> None:
        self._client = client
        self._stream = streams.policies
        self._opener = Opener(ring, None)
        self._book = book
        self._on_event = on_event
        self._attempts = Attempts("policies", on_event)
        self._last = "0"
        self._seen: set[bytes] = set()

    async def catch_up(self) -> None:
        """Read all that there is now. Raises redis-py's errors."""
        while entries := await self._client.xrange(self._stream, f"({self._last}", count=_PAGE):
            self._take(entries)

    async def run(self) -> None:
        """Read on until cancelled; troubles are told and don't end it."""
        while True:
            try:
                read: Any = await self._client.xread(
                    {self._stream: self._last}, count=_PAGE, block=int(BLOCK.total_seconds() * 1e3)
                )
            except (RedisError, OSError) as error:
                await anyio.sleep(self._attempts.failed(error))
                continue
            self._attempts.answered({})
            for _, entries in read or []:
                self._take(entries)

    def _take(self, entries: Any) -> None:
        for key, fields in entries:
            self._last = key.decode()
            try:
                opened = self._opener.open(self._stream, key, fields)
            except Refused as refusal:
                self._on_event("policy_unread", {"entry_id": self._last, "reason": str(refusal)})
                continue
            update, nonce = opened.message, opened.envelope.nonce
            if not isinstance(update, PolicyUpdate) or (nonce and nonce in self._seen):
                reason = "replay" if isinstance(update, PolicyUpdate) else "no PolicyUpdate"
                self._on_event("policy_unread", {"entry_id": self._last, "reason": reason})
                continue
            self._seen.add(nonce)
            self._apply(update)

    def _apply(self, update: PolicyUpdate) -> None:
        run = update.training_run_id or "all"
        try:
            named = self._book.update(update)
        except PolicyRefused as error:
            self._on_event(
                "policy_refused", {"run": run, "policy": update.policy_id, "reason": str(error)}
            )
        else:
            self._on_event("policy_switched", {"run": run, "policy": named.label})
