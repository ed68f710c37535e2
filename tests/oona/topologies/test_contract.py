"""What holds wherever the server is: alone, behind sentinels, spread over a cluster."""

from __future__ import annotations

from redis.asyncio import Redis


async def test_a_client_is_there(client: Redis) -> None:
    assert await client.ping()
    await client.set("a", "1")
    assert await client.get("a") == b"1"
