"""A real worker and a real command line, behind sentinels and on a cluster, through a failover."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.cli.conftest import Call, clean_place, cli
from tests.oona.topologies.places import Cluster, Failover
from tests.oona.topologies.processes import Server, wait_until
from tests.oona.topologies.test_cluster import run_of_third
from tests.worker.processes import Terminal, summary
from tolaria_bus.oona.streams import Streams

__all__ = ["clean_place", "cli"]

RUN = run_of_third(0)
"""Its streams are where a cluster has a replica."""


def master_of(place: Failover | Cluster) -> Server:
    return place.owner(Streams().control(RUN)) if isinstance(place, Cluster) else place.master()


@pytest.mark.slow
@pytest.mark.parametrize("topology", ["failover", "cluster"])
def test_a_worker_is_steered_before_and_after_a_failover(
    topology: str, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    place: Failover | Cluster = request.getfixturevalue(topology)
    place.wait_until_whole()
    terminal = Terminal(tmp_path)
    where = ("--run", RUN, "--redis", place.url)
    words = ("run", "tiny.py:Tiny", *where, "--epochs", "1000000", "--summary", "summary.json")
    with terminal.start(*words) as worker:
        assert "APPLIED" in terminal.run("send", "lr", "0.003", *where, "--wait", "120")
        old = master_of(place)
        old.kill()
        try:
            with place.hasty():
                wait_until(lambda: master_of(place) is not old)
            assert "APPLIED" in terminal.run("send", "pause", *where, "--wait", "120")
        finally:
            old.start()
        place.wait_until_whole()
        assert "APPLIED" in terminal.run("send", "stop", *where, "--wait", "120")
        worker.ends(0)
    assert summary(tmp_path / "summary.json")["stopped_by"] == "command"
    shown = terminal.run("tail", "--all", *where, "--since", "0", "--no-follow")
    assert "STOP" in shown


async def test_the_doctor_looks_at_every_node(cli: Call, cluster: Cluster) -> None:
    cluster.wait_until_whole()
    node = cluster.primaries[1]
    node.ask("CONFIG", "SET", "appendfsync", "everysec")
    try:
        ended = await cli("doctor", "--redis", cluster.url)
    finally:
        node.ask("CONFIG", "SET", "appendfsync", "always")
    assert ended.code == 0, ended.out
    assert "! durability     appendonly yes, appendfsync everysec" in ended.out


async def test_the_doctor_looks_behind_the_sentinels(cli: Call, failover: Failover) -> None:
    failover.wait_until_whole()
    ended = await cli("doctor", "--redis", failover.url)
    assert ended.code == 0, ended.out
    assert "✓ durability" in ended.out
