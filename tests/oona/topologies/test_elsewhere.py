"""A URL that names this machine alone leads to no other, whatever is said there."""

from __future__ import annotations

import socket

import pytest
from redis.asyncio import Redis
from redis.exceptions import ConnectionError as RedisConnectionError

from tests.oona.topologies.places import SERVICE, Cluster, Failover
from tolaria_bus.oona.cluster_nodes import ClusterNodes
from tolaria_bus.oona.connection import connect
from tolaria_bus.oona.sentinels import Sentinels
from tolaria_bus.oona.url import Address, is_loopback


def make(address: Address) -> Redis:
    return Redis(host=address[0], port=address[1], protocol=2)


async def test_sentinels_lead_to_no_other_machine(failover: Failover) -> None:
    clients = [make(("127.0.0.1", sentinel.port)) for sentinel in failover.sentinels]
    sentinels = Sentinels(clients, admits=lambda host: host != "127.0.0.1")
    with pytest.raises(RedisConnectionError, match=r"name 127\.0\.0\.1, another machine"):
        await sentinels.discover_master(SERVICE)
    await sentinels.aclose()


async def test_a_cluster_leads_to_no_other_machine(cluster: Cluster) -> None:
    seen: list[str] = []

    def admits(host: str) -> bool:
        seen.append(host)
        return is_loopback(host) and len(seen) == 1

    seed = cluster.primaries[0]
    nodes = ClusterNodes([("127.0.0.1", seed.port)], make, admits)
    with pytest.raises(RedisConnectionError, match="another machine"):
        await nodes.primaries()
    await nodes.aclose()


async def test_other_names_of_this_machine_may_lead_anywhere(failover: Failover) -> None:
    """Who names it as others do is not taken to be alone on it."""
    failover.wait_until_whole()
    port = failover.sentinels[0].port
    with socket.socket() as probe:
        # Not a loopback address to look at, and none else to the kernel.
        if probe.connect_ex(("0.0.0.0", port)):
            pytest.skip("0.0.0.0 is not this machine here")
    async with connect(f"redis+sentinel://0.0.0.0:{port}/{SERVICE}", name="tests") as client:
        assert await client.ping()
