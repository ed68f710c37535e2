"""A worker among the others of its server: entered when it can be reached, then beating."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any

import structlog
from redis.asyncio import Redis
from redis.exceptions import RedisError

from tolaria_bus.oona.connection import ServerClock
from tolaria_bus.oona.directory import beat, enter, forget, write_status
from tolaria_bus.oona.streams import Streams
from tolaria_bus.safety import Signals
from tolaria_bus.settings import Settings
from tolaria_bus.tolaria.summary import Progress
from tolaria_bus.worker.status import brief, who, whole


class Presence:
    """What is said of one run in ``oona:runs`` and ``oona:{RUN}:status``.

    Args:
        client: Any that doesn't block.
        streams: Names of the keys.
        run: The run's id.
        clock: The server's.
        job: The job's name.
        signals: Of this worker.
        settings: After how long it hangs.
    """

    def __init__(
        self,
        client: Redis,
        streams: Streams,
        run: str,
        clock: ServerClock,
        *,
        job: str,
        signals: Signals | None,
        settings: Settings,
    ) -> None:
        self._client = client
        self._streams = streams
        self._run = run
        self._clock = clock
        self._job = job
        self._signals = signals
        self._settings = settings
        self._began = time.time()
        self._only_entered = False

    async def enter(self) -> None:
        """Be found, and meant by broadcasts, though training may take a while to begin.

        Raises:
            RedisError: The server doesn't answer.
        """
        few = who(self._run, began=self._began, server_now=self._clock.now())
        self._only_entered = await enter(self._client, self._streams, self._run, few)

    async def leave(self) -> None:
        """Be found no more, if the run was none: it was entered, and failed before it began.

        Raises:
            RedisError: The server doesn't answer.
        """
        if self._only_entered:
            await forget(self._client, self._streams, self._run)

    async def beat(
        self,
        progress: Progress,
        standing: Mapping[str, Any],
        *,
        read_age: float,
        ended: Mapping[str, str] | None,
    ) -> None:
        """Tell everybody where the run is. An outage is the publisher's to report.

        Args:
            progress: Where it is.
            standing: How it stands beside its numbers.
            read_age: Seconds since the read loop that is furthest behind went round.
            ended: How and why training ended; ``None``: it goes on.
        """
        self._only_entered = False
        few = brief(
            self._run,
            progress,
            began=self._began,
            read_age=read_age,
            server_now=self._clock.now(),
        )
        all_of_it = whole(
            few,
            standing,
            job=self._job,
            signals=self._signals,
            settings=self._settings,
            ended=ended,
        )
        try:
            await beat(self._client, self._streams, self._run, few)
            await write_status(self._client, self._streams, self._run, all_of_it)
        except (RedisError, OSError) as error:
            structlog.get_logger().debug("no beat", run=self._run, reason=str(error))
