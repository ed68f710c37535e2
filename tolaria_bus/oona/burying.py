"""Making entries dead letters, through whatever keeps the server from taking them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Final

import anyio
from anyio.abc import TaskGroup
from redis.asyncio import Redis
from redis.exceptions import RedisError

from tolaria_bus.leyline import DeadLetter
from tolaria_bus.oona.attempts import Attempts
from tolaria_bus.oona.claimed import claimed_kind
from tolaria_bus.oona.dead_letters import begun_key, build, bury, seen_key
from tolaria_bus.oona.events import OnEvent
from tolaria_bus.oona.in_flight import InFlight
from tolaria_bus.oona.letter_limit import LetterLimit
from tolaria_bus.oona.reading import Delivered, Member
from tolaria_bus.oona.scripts import Entry, mend
from tolaria_bus.oona.streams import dead_letters_of
from tolaria_bus.oona.trust import FRESH_AHEAD_MS, KeyRing

_MEND_AT_MOST: Final = 100_000
"""Entries of a stream that is mended: copying them takes the server less than a second."""


class Burying:
    """Writes the dead letters of one consumer.

    Events: ``dead_letter`` (stream, entry_id, reason, detail, kind: what the entry claims to be),
    ``stream_mended`` (stream, left_behind): an id from the future kept it from going on,
    ``stream_blocked`` (stream, entries):
    the same, but it can't be mended, those of :class:`LetterLimit`, and those of :class:`Attempts`
    for letters that can't be written.

    Args:
        client: Not the one that blocks.
        member: Which consumer.
        in_flight: The entries in its hands.
        ring: Signs dead letters.
        on_event: Told what happens.
        clock: Nanoseconds since the epoch.

    Attributes:
        dead: Entries that became dead letters, by reason.
        mend_at_most: Entries of a stream that is mended.
        limit: What the letters may have together.
    """

    def __init__(
        self,
        client: Redis,
        member: Member,
        in_flight: InFlight,
        *,
        ring: KeyRing,
        on_event: OnEvent,
        clock: Callable[[], int],
    ) -> None:
        self.dead: Counter[str] = Counter()
        self.mend_at_most = _MEND_AT_MOST
        self.limit = LetterLimit(client, dead_letters_of(member.stream), on_event)
        self._client = client
        self._member = member
        self._in_flight = in_flight
        self._ring = ring
        self._on_event = on_event
        self._clock = clock
        # One for all of them: what keeps one letter from being written keeps the others, too.
        self._letters = Attempts(f"{member.stream} dead letters", on_event)
        self._tasks: TaskGroup | None = None
        self._stopped = anyio.Event()

    def start(self, tasks: TaskGroup) -> None:
        """From now on, letters that can't be written wait in ``tasks``."""
        self._tasks = tasks

    def stop(self) -> None:
        """Wait no longer; ``tasks`` end soon."""
        self._stopped.set()

    def end(self) -> None:
        """The tasks have ended: a letter that can't be written raises."""
        self._tasks = None

    async def bury(self, entry: Delivered, reason: str, detail: str) -> None:
        """Make an entry a dead letter, if not now then when the server can.

        Raises:
            RedisError, OSError: not now, and nothing can wait any more.
        """
        letter = build(
            Entry(self._member.stream, self._member.group, entry.entry_id),
            reason,
            detail,
            entry.fields,
            consumer=self._member.name,
            deliveries=entry.deliveries,
            clock=self._clock,
        )
        # In flight until then: it isn't read again, and its claim is extended.
        self._in_flight.add_dying(entry.entry_id)
        try:
            await self._write(letter)
        except (RedisError, OSError) as error:
            if self._tasks is None:
                raise
            # One letter that can't be written doesn't keep other entries from being read.
            self._tasks.start_soon(self._write_later, letter, error)

    async def mend(self) -> None:
        """After an id from the future: let the stream give ids of today again.

        Raises:
            RedisError, OSError: it can't be now; the next such entry brings it up again.
        """
        stream = self._member.stream
        left = await mend(
            self._client,
            stream,
            seen=seen_key(stream),
            scratch=f"{begun_key(stream, self._member.group)}:mending",
            ahead_ms=FRESH_AHEAD_MS,
            most=self.mend_at_most,
        )
        if left >= 0:
            self._on_event("stream_mended", {"stream": stream, "left_behind": str(left)})
        elif left in (-2, -3):
            too_long = f"more than {self.mend_at_most}"
            entries = too_long if left == -2 else "one that has too many fields and no dead letter"
            self._on_event("stream_blocked", {"stream": stream, "entries": entries})

    async def _write_later(self, letter: DeadLetter, error: Exception) -> None:
        while True:
            with anyio.move_on_after(self._letters.failed(error)):
                await self._stopped.wait()
            if self._stopped.is_set():
                self._in_flight.remove(letter.entry_id)
                return
            try:
                await self._write(letter)
            except (RedisError, OSError) as again:
                error = again
            else:
                self._letters.answered()
                return

    async def _write(self, letter: DeadLetter) -> None:
        await bury(self._client, letter, ring=self._ring, delete=self._member.delete)
        self._in_flight.finish(letter.entry_id, acknowledged=True)
        self.dead[letter.reason] += 1
        self._on_event(
            "dead_letter",
            {
                "stream": letter.stream,
                "entry_id": letter.entry_id,
                "reason": letter.reason,
                "detail": letter.detail,
                "kind": claimed_kind(letter),
            },
        )
        await self.limit.wrote(letter.ByteSize())
