"""Waiting for replicas: a write that one server has is lost if another takes its place in time.

A pipeline that ends with ``WAIT`` is answered when so many replicas have what it wrote, or when
the time is up; then what may not be lost is sent again, under the same message id.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import timedelta
from typing import Any, Final

from redis.exceptions import RedisError

from tolaria_bus.oona.scripts import Argument

WITHIN: Final = timedelta(seconds=2)
"""A replica that takes longer is behind; the packets are sent again then. What it has on disk it
tells once a second only, so that less would ask again and again for what is about to be told."""


class TooFewCopies(RedisError):
    """Fewer replicas than asked for have confirmed a write."""


@dataclass(frozen=True, slots=True)
class Copies:
    """How many copies a write must have before it counts.

    Attributes:
        replicas: So many replicas must have it; of each node, in a cluster.
        on_disk: They must have it on disk, and so must the server itself (``WAITAOF``).
        within: How long that may take.
    """

    replicas: int
    on_disk: bool = False
    within: timedelta = WITHIN

    def command(self) -> list[Argument]:
        """The question that stands behind the writes."""
        milliseconds = max(1, int(self.within.total_seconds() * 1000))
        if self.on_disk:
            return ["WAITAOF", 1, self.replicas, milliseconds]
        return ["WAIT", self.replicas, milliseconds]

    def missing(self, reply: Any) -> Exception | None:
        """Why the writes don't count, by the reply; ``None`` if they do."""
        if isinstance(reply, Exception):
            return reply
        local, copies = reply if self.on_disk else (1, reply)
        if local and copies >= self.replicas:
            return None
        where = "on disk on" if self.on_disk else "on"
        return TooFewCopies(f"written, but {where} {copies} replicas of {self.replicas}")
