"""The server answers, and says no."""

from pathlib import Path

from redis.asyncio import Redis

from tests.oona.faults.own_server import OwnServer
from tests.oona.faults.scene import PUBLISHING, READING
from tests.oona.faults.stage import acting
from tolaria_bus.oona.connection import connect


async def test_a_server_without_memory_gets_everything_when_it_has_some(
    own: OwnServer, tmp_path: Path
):
    async with acting(tmp_path, own.url) as scene:
        await scene.flows()
        await scene.operator.config_set("maxmemory", "1")
        await scene.told("refused", *PUBLISHING)
        await scene.held()
        await scene.operator.config_set("maxmemory", "0")
        await scene.closes()
        assert all("OutOfMemory" in told["error"] for told in scene.events.of("refused"))
        assert "disconnected" not in scene.events.names()


async def test_a_server_that_becomes_a_replica_and_a_primary_again(own: OwnServer, tmp_path: Path):
    async with acting(tmp_path, own.url) as scene:
        await scene.flows()
        # Nobody listens there: it keeps what it has, and takes no writes.
        await scene.operator.replicaof("127.0.0.1", "1")
        await scene.told("refused", READING, *PUBLISHING)
        await scene.held()
        await scene.operator.replicaof("NO", "ONE")
        await scene.closes()
        assert all("ReadOnly" in told["error"] for told in scene.events.of("refused"))
        assert "group_recreated" not in scene.events.names()


async def test_a_password_that_is_asked_for_suddenly(own: OwnServer, tmp_path: Path):
    async with acting(tmp_path, own.url) as scene:
        await scene.flows()
        await scene.operator.config_set("requirepass", "secret")
        await scene.operator.client_kill_filter(_type="normal", skipme=True)
        await scene.told("refused", READING, *PUBLISHING)
        await scene.held()
        await scene.operator.config_set("requirepass", "")
        await scene.told("accepted", READING, *PUBLISHING)
        await scene.closes()
        errors = {told["error"] for told in scene.events.of("refused")}
        assert errors == {"AuthenticationError: Authentication required."}


async def test_a_password_that_was_changed(own: OwnServer, tmp_path: Path):
    url = own.url.replace("unix://", "unix://bus:old@")
    async with connect(own.url, name="operator") as operator:
        rights = ["+@all", "~*"]
        await acl(operator, "on", ">old", *rights)
        async with acting(tmp_path, own.url, url=url) as scene:
            await scene.flows()
            await acl(operator, "resetpass", ">new")
            await operator.client_kill_filter(_type="normal", skipme=True)
            await scene.told("refused", READING, *PUBLISHING)
            await scene.held()
            await acl(operator, ">old")
            await scene.told("accepted", READING, *PUBLISHING)
            await scene.closes()
            (error,) = {told["error"] for told in scene.events.of("refused")}
            assert "invalid username-password pair" in error


async def test_rights_that_are_taken_away_and_given_back(own: OwnServer, tmp_path: Path):
    url = own.url.replace("unix://", "unix://bus:old@")
    async with connect(own.url, name="operator") as operator:
        await acl(operator, "on", ">old", "+@all", "~*")
        async with acting(tmp_path, own.url, url=url) as scene:
            await scene.flows()
            await acl(operator, "-@write")
            await scene.told("refused", READING, *PUBLISHING)
            await scene.held()
            await acl(operator, "+@all")
            await scene.told("accepted", READING, *PUBLISHING)
            await scene.closes()
            assert "disconnected" not in scene.events.names()


async def acl(operator: Redis, *rules: str) -> None:
    """Change the user that the worker is."""
    await operator.execute_command("ACL", "SETUSER", "bus", *rules)  # type: ignore[no-untyped-call]
