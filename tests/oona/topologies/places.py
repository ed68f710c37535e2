"""What the bus is tested on: a server alone, a master with sentinels, a cluster."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from redis.crc import key_slot

from tests.oona.topologies.processes import (
    HASTY,
    PATIENT,
    SentinelServer,
    Server,
    pairs,
    wait_until,
)
from tests.ports import HOST, Port

SERVICE = "tolaria"
SLOTS = 16_384


class Failover:
    """A master, its replica, and three sentinels. After a failover the two have changed places.

    Attributes:
        servers: Master and replica, as they were started.
        sentinels: The sentinels.
    """

    def __init__(self, folder: Path) -> None:
        first = Server(folder / "server-0")
        second = Server(folder / "server-1", replicaof=f"{HOST} {first.port}")
        self.servers = (first, second)
        self.sentinels = [
            SentinelServer(folder / f"sentinel-{number}", SERVICE, first) for number in range(3)
        ]

    @property
    def url(self) -> str:
        addresses = ",".join(sentinel.address for sentinel in self.sentinels)
        return f"redis+sentinel://{addresses}/{SERVICE}"

    def start(self) -> None:
        for server in (*self.servers, *self.sentinels):
            server.start()
        self.wait_until_whole()

    def kill(self) -> None:
        for server in (*self.servers, *self.sentinels):
            server.kill()

    @contextmanager
    def hasty(self) -> Iterator[None]:
        """Meanwhile a master that is silent is soon replaced; at other times, only after long."""
        for sentinel in self.sentinels:
            sentinel.wait_for_masters(HASTY)
        try:
            yield
        finally:
            for sentinel in self.sentinels:
                sentinel.wait_for_masters(PATIENT)

    def master(self) -> Server:
        """As the sentinels have it."""
        port = self._port(self.sentinels[0])
        return next(server for server in self.servers if server.port == port)

    def replica(self) -> Server:
        return next(server for server in self.servers if server is not self.master())

    def wait_until_whole(self) -> None:
        wait_until(self.is_whole)

    def wait_until_master(self, server: Server) -> None:
        """Wait until all sentinels name it."""
        wait_until(lambda: all(self._port(sentinel) == server.port for sentinel in self.sentinels))

    def is_whole(self) -> bool:
        """Would a failover begin, and lose nothing?"""
        for sentinel in self.sentinels:
            state = sentinel.pairs("SENTINEL", "MASTER", SERVICE)
            peers = (int(state["num-other-sentinels"]), int(state["num-slaves"]))
            if state["flags"] != "master" or peers != (2, 1):
                return False
            (replica,) = sentinel.ask("SENTINEL", "REPLICAS", SERVICE)
            if pairs(replica)["flags"] != "slave":
                return False
        told = self.master().info("replication")
        return bool(told["role"] == "master" and told.get("slave0", {}).get("state") == "online")

    def _port(self, sentinel: Server) -> int:
        return int(sentinel.pairs("SENTINEL", "MASTER", SERVICE)["port"])


class ClusterNode(Server):
    """One node of a cluster."""

    def __init__(self, folder: Path) -> None:
        self._bus_port = Port()
        super().__init__(
            folder,
            cluster_enabled="yes",
            cluster_port=self._bus_port.number,
            cluster_node_timeout=PATIENT,
            cluster_replica_validity_factor=0,
            cluster_allow_replica_migration="no",
        )

    @property
    def bus_port(self) -> int:
        """Where the nodes talk to each other."""
        return self._bus_port.number

    def node_id(self) -> str:
        found: bytes = self.ask("CLUSTER", "MYID")
        return found.decode()

    def knows(self, nodes: Sequence[Server]) -> bool:
        """Has it heard of them all?"""
        lines: bytes = self.ask("CLUSTER", "NODES")
        return all(f"{node.address}@".encode() in lines for node in nodes)


class Cluster:
    """Three primaries with a third of the slots each, and a replica of the first.

    Attributes:
        primaries: The primaries, as they were started.
        replica: Of the first of them.
    """

    def __init__(self, folder: Path) -> None:
        self.primaries = [ClusterNode(folder / f"node-{number}") for number in range(3)]
        self.replica = ClusterNode(folder / "node-3")

    @property
    def nodes(self) -> list[ClusterNode]:
        return [*self.primaries, self.replica]

    @property
    def url(self) -> str:
        return f"redis+cluster://{','.join(node.address for node in self.primaries)}"

    def start(self) -> None:
        for node in self.nodes:
            node.start()
        bounds = [SLOTS * third // 3 for third in range(4)]
        for epoch, node in enumerate(self.nodes, start=1):
            node.ask("CLUSTER", "SET-CONFIG-EPOCH", epoch)
        for node, first, after in zip(self.primaries, bounds, bounds[1:], strict=False):
            node.ask("CLUSTER", "ADDSLOTSRANGE", first, after - 1)
        for node in self.nodes[1:]:
            first_node = self.primaries[0]
            node.ask("CLUSTER", "MEET", HOST, first_node.port, first_node.bus_port)
        wait_until(lambda: self.replica.knows(self.nodes))
        self.replica.ask("CLUSTER", "REPLICATE", self.primaries[0].node_id())
        self.wait_until_whole()

    def kill(self) -> None:
        for node in self.nodes:
            node.kill()

    @contextmanager
    def hasty(self) -> Iterator[None]:
        """Meanwhile a primary that is silent is soon replaced; at other times, only after long."""
        self._node_timeout(HASTY)
        try:
            yield
        finally:
            self._node_timeout(PATIENT)

    def owner(self, key: str) -> ClusterNode:
        """The node that has a key's slot."""
        slot = key_slot(key.encode())
        for first, last, (_, port, *_), *_ in self.primaries[1].ask("CLUSTER", "SLOTS"):
            if first <= slot <= last:
                return next(node for node in self.nodes if node.port == port)
        raise AssertionError(f"nobody has slot {slot}")

    def begin_move(self, key: str, target: ClusterNode) -> None:
        """Have new keys of a key's slot made at another node, which isn't its owner yet."""
        slot, source = key_slot(key.encode()), self.owner(key)
        target.ask("CLUSTER", "SETSLOT", slot, "IMPORTING", source.node_id())
        source.ask("CLUSTER", "SETSLOT", slot, "MIGRATING", target.node_id())

    def end_move(self, key: str, target: ClusterNode) -> None:
        """Give a key's slot to another node, with all that is in it."""
        slot, source = key_slot(key.encode()), self.owner(key)
        keys = source.ask("CLUSTER", "GETKEYSINSLOT", slot, 1000)
        if keys:
            source.ask("MIGRATE", HOST, target.port, "", 0, 5000, "KEYS", *keys)
        for node in (target, source, *self.primaries):
            node.ask("CLUSTER", "SETSLOT", slot, "NODE", target.node_id())

    def wait_until_whole(self) -> None:
        wait_until(self.is_whole)

    def is_whole(self) -> bool:
        """Does every node say that all slots are served, and is the replica in step?"""
        roles = []
        for node in self.nodes:
            if b"cluster_state:ok" not in node.ask("CLUSTER", "INFO"):
                return False
            roles.append(node.info("replication"))
        replicas = [role for role in roles if role["role"] == "slave"]
        return len(replicas) == 1 and replicas[0]["master_link_status"] == "up"

    def _node_timeout(self, milliseconds: int) -> None:
        for node in self.nodes:
            if node.lives():
                node.ask("CONFIG", "SET", "cluster-node-timeout", milliseconds)
