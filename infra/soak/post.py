"""Sends entries through every outage of the server, each of them once."""

from __future__ import annotations

import secrets
import time
from collections.abc import Callable, Sequence
from typing import Any

import redis

Fields = dict[bytes, bytes]
Seal = Callable[[], Fields]
"""Makes the fields of an entry, anew for each attempt to send it."""
AWAY = (redis.ConnectionError, redis.TimeoutError, OSError)
"""What the server's being away looks like."""
PAUSE = 0.05  # seconds, before it is tried again
CHUNK = 100  # entries to a round trip
ADD = """
local id = redis.call("GET", KEYS[2])
if not id then
    id = redis.call("XADD", KEYS[1], "*", unpack(ARGV))
    redis.call("SET", KEYS[2], id, "EX", 600)
end
return id
"""
"""Adds an entry to KEYS[1], unless KEYS[2] says that it was added; returns its id."""


class Post:
    """For any thread.

    Args:
        url: The server.
    """

    def __init__(self, url: str) -> None:
        self._client = redis.Redis.from_url(url, socket_timeout=5)

    def send(self, stream: str, seal: Seal) -> str:
        """Add an entry to a stream.

        Args:
            stream: Its key.
            seal: Makes its fields.

        Returns:
            Its id.
        """
        return self.send_many(stream, [seal])[0]

    def send_many(self, stream: str, seals: Sequence[Seal]) -> list[str]:
        """As :meth:`send`, many in few round trips."""
        ids: list[str] = []
        for start in range(0, len(seals), CHUNK):
            ids += self._add(stream, {_mark(): seal for seal in seals[start : start + CHUNK]})
        return ids

    def _add(self, stream: str, entries: dict[str, Seal]) -> list[str]:
        while True:
            pipe = self._client.pipeline(transaction=False)
            for mark, seal in entries.items():
                words = [word for field in seal().items() for word in field]
                pipe.eval(ADD, 2, stream, mark, *words)
            try:
                replies: list[Any] = pipe.execute()
            except AWAY:
                time.sleep(PAUSE)
            else:
                return [reply.decode() for reply in replies]

    def close(self) -> None:
        """Let go of its connections."""
        self._client.close()


def _mark() -> str:
    return f"soak:{secrets.token_hex(8)}"
