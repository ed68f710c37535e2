"""A network between clients and a server that can be slow, late, or dead without saying so."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

import anyio
from anyio.abc import ByteStream, SocketAttribute


@dataclass(eq=False)
class _Link:
    """One connection.

    Attributes:
        swallows: Which bytes go nowhere: those to the server (true), those from it (false).
        requests: Set while bytes to the server may go on.
    """

    swallows: set[bool] = field(default_factory=set)
    requests: anyio.Event = field(default_factory=anyio.Event)


class Proxy:
    """On a port of the loopback interface, before a server on a Unix socket.

    Args:
        path: The server's socket.

    Attributes:
        latency: Seconds that each piece takes, in each direction.
        unanswered: A connection is dead to its client once this went over it to the server.
        lost: How many died of that.
        url: For clients.
    """

    def __init__(self, path: Path) -> None:
        self.latency = 0.0
        self.unanswered: bytes | None = None
        self.lost = 0
        self.url = ""
        self._path = path
        self._links: set[_Link] = set()
        self._swallows: set[bool] = set()

    def die(self, *, replies_only: bool = False) -> None:
        """Swallow what comes over old and new connections; none is closed.

        Args:
            replies_only: The server gets all, and does it; its answers are lost.
        """
        self._swallows = {False} if replies_only else {True, False}
        for link in self._links:
            link.swallows |= self._swallows

    def heal(self) -> None:
        """Serve new connections; those that have lost something stay dead."""
        self._swallows = set()

    def hold_requests(self) -> None:
        """Hold what the clients of this moment send, until :meth:`deliver_late`."""
        for link in self._links:
            link.requests = anyio.Event()

    def deliver_late(self) -> None:
        """Deliver what was held, though the clients may be gone meanwhile."""
        for link in self._links:
            link.requests.set()

    async def serve(self, client: ByteStream) -> None:
        """Carry one connection until both sides are closed."""
        link = _Link(set(self._swallows))
        link.requests.set()
        self._links.add(link)
        try:
            async with (
                client,
                await anyio.connect_unix(self._path) as server,
                anyio.create_task_group() as tasks,
            ):
                tasks.start_soon(self._carry, client, server, link, True)
                tasks.start_soon(self._carry, server, client, link, False)
        finally:
            self._links.discard(link)

    def _look_at(self, request: bytes, link: _Link) -> None:
        if self.unanswered is not None and self.unanswered in request:
            self.lost += 1
            link.swallows.add(False)

    async def _carry(
        self, source: ByteStream, sink: ByteStream, link: _Link, to_server: bool
    ) -> None:
        try:
            while True:
                data = await source.receive()
                if self.latency:
                    await anyio.sleep(self.latency)
                if to_server:
                    await link.requests.wait()
                    self._look_at(data, link)
                if to_server not in link.swallows:
                    await sink.send(data)
        except (anyio.EndOfStream, anyio.BrokenResourceError, anyio.ClosedResourceError):
            await sink.aclose()


@asynccontextmanager
async def proxied(path: Path) -> AsyncIterator[Proxy]:
    """A proxy that runs until the block ends."""
    proxy = Proxy(path)
    async with (
        await anyio.create_tcp_listener(local_host="127.0.0.1") as listener,
        anyio.create_task_group() as tasks,
    ):
        port = listener.extra(SocketAttribute.local_port)
        proxy.url = f"redis://127.0.0.1:{port}"
        tasks.start_soon(listener.serve, proxy.serve)
        yield proxy
        tasks.cancel_scope.cancel()
