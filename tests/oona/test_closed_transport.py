"""A connection that is lost at the worst moment is a lost connection to every event loop."""

import asyncio
from collections.abc import Callable

import anyio.lowlevel
import pytest
import uvloop
from redis.asyncio.connection import AbstractConnection
from redis.exceptions import ConnectionError as ConnectionLost

from tolaria_bus.oona.connection import connect
from tolaria_bus.oona.embedded import EmbeddedServer


async def ping(connection: AbstractConnection) -> None:
    """To asyncio the write goes well: the read that follows tells."""
    await connection.send_command("PING")
    await connection.read_response()


async def write_to_a_closed_transport(url: str) -> None:
    async with connect(url, name="tests") as client:
        connection = await client.connection_pool.get_connection()  # type: ignore[no-untyped-call]
        connection._writer.transport.abort()
        await anyio.lowlevel.checkpoint()
        with pytest.raises(ConnectionLost):
            await ping(connection)
        assert not connection.is_connected
        await client.connection_pool.release(connection)
        assert await client.ping()


@pytest.mark.parametrize("loop", [asyncio.new_event_loop, uvloop.new_event_loop])
def test_a_write_to_a_closed_transport_is_a_lost_connection(
    server: EmbeddedServer, loop: Callable[[], asyncio.AbstractEventLoop]
):
    with asyncio.Runner(loop_factory=loop) as runner:
        runner.run(write_to_a_closed_transport(server.url))
