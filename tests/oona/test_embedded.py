"""An embedded server is a real one, ends with its starter, and keeps its data."""

import contextlib
import os
import signal
import threading
from datetime import timedelta
from pathlib import Path
from typing import Any

import psutil
import pytest

from tests.oona.embedding import Starter, apart, ended, said, starter
from tolaria_bus.oona import embedded
from tolaria_bus.oona.connection import check, connect, is_local
from tolaria_bus.oona.embedded import EmbeddedServer, ServerStartError, find
from tolaria_bus.oona.running import NOTE, Life, Note, ping, registered

__all__ = ["apart", "starter"]  # fixtures


async def test_it_is_durable_local_and_closed_to_the_network(tmp_path: Path) -> None:
    with EmbeddedServer.start(tmp_path / "run", "digits") as server:
        assert server.url == f"unix://{tmp_path}/run/valkey/valkey.sock"
        assert is_local(server.url)
        info = await check(server.url)
        assert info.durable
        assert not info.evicts
        assert not psutil.Process(server.pid).net_connections("inet")
        assert (tmp_path / "run/valkey/valkey.sock").stat().st_mode & 0o777 == 0o700
        assert server.cli == f"redis-cli -s {tmp_path}/run/valkey/valkey.sock"


async def test_data_survive_a_restart(tmp_path: Path) -> None:
    for expected in (0, 1, 2):
        with EmbeddedServer.start(tmp_path, "digits") as server:
            async with connect(server.url, name="test") as client:
                assert await client.xlen("oona:{digits}:control") == expected
                await client.xadd("oona:{digits}:control", {"json": "{}"})


async def test_data_survive_the_servers_own_kill(tmp_path: Path) -> None:
    server = EmbeddedServer.start(tmp_path, "digits")
    async with connect(server.url, name="test") as client:
        await client.set("key", "value")
    os.kill(server.pid, signal.SIGKILL)
    server.stop()
    with EmbeddedServer.start(tmp_path, "digits") as server:
        async with connect(server.url, name="test") as client:
            assert await client.get("key") == b"value"


def test_it_stops_and_leaves_no_notes(tmp_path: Path) -> None:
    server = EmbeddedServer.start(tmp_path, "digits")
    server.stop()
    server.stop()
    assert not psutil.pid_exists(server.pid)
    assert find("digits") is None
    assert not (tmp_path / NOTE).exists()
    assert not registered("digits").exists()


def test_it_ends_when_its_starter_is_killed(tmp_path: Path, starter: Starter) -> None:
    child = starter(tmp_path / "run", "digits")
    server = int(said(child))
    child.kill()
    assert ended(server)


def test_ctrl_c_doesnt_reach_it(tmp_path: Path, starter: Starter) -> None:
    child = starter(tmp_path / "run", "digits")
    server = int(said(child))
    os.killpg(child.pid, signal.SIGINT)
    assert said(child) == "interrupted"
    assert psutil.pid_exists(server)
    assert ping(tmp_path / "run/valkey/valkey.sock") is Life.LIVE


async def test_the_next_start_waits_for_an_orphan(tmp_path: Path, starter: Starter) -> None:
    child = starter(tmp_path, "digits")
    server = int(said(child))
    async with connect(f"unix://{tmp_path}/valkey/valkey.sock", name="test") as client:
        await client.set("key", "value")
    child.kill()
    with EmbeddedServer.start(tmp_path, "digits") as successor:
        assert successor.pid != server
        async with connect(successor.url, name="test") as client:
            assert await client.get("key") == b"value"


def test_an_orphan_that_doesnt_end_is_killed(
    tmp_path: Path, starter: Starter, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(embedded, "PREDECESSOR_TIMEOUT", timedelta(milliseconds=300))
    child = starter(tmp_path, "digits")
    server = int(said(child))
    # Stopped, it can't follow the kernel's request to end.
    os.kill(server, signal.SIGSTOP)
    child.kill()
    try:
        with EmbeddedServer.start(tmp_path, "digits") as successor:
            assert successor.pid != server
            assert ended(server)
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.kill(server, signal.SIGKILL)


def test_a_folder_in_use_is_refused(
    tmp_path: Path, starter: Starter, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(embedded, "OWNED_TIMEOUT", timedelta(milliseconds=50))
    child = starter(tmp_path, "digits")
    server = int(said(child))
    with pytest.raises(ServerStartError, match=f"in use by process {child.pid}"):
        EmbeddedServer.start(tmp_path, "digits")
    assert ping(tmp_path / "valkey/valkey.sock") is Life.LIVE
    assert psutil.pid_exists(server)


def test_a_long_path_gets_a_private_socket(tmp_path: Path, starter: Starter) -> None:
    folder = tmp_path / ("x" * 120)
    server = EmbeddedServer.start(folder, "digits")
    path = Path(server.url.removeprefix("unix://"))
    assert len(os.fsencode(path)) < 100
    assert path.parent.stat().st_mode & 0o777 == 0o700
    found = find("digits")
    assert found is not None
    assert found.url == server.url
    server.stop()
    assert not path.parent.exists()


def test_a_private_socket_left_by_a_killed_starter_is_removed(
    tmp_path: Path, starter: Starter
) -> None:
    folder = tmp_path / ("x" * 120)
    child = starter(folder, "digits")
    server = int(said(child))
    note = Note.read(folder / NOTE)
    assert note is not None
    child.kill()
    assert ended(server)
    with EmbeddedServer.start(folder, "digits") as successor:
        assert not note.socket.parent.exists()
        assert successor.url != note.url


@pytest.mark.parametrize("name", ["with space", 'quo"te', "ünï", "$HOME", "new\nline"])
def test_odd_names_of_folders(tmp_path: Path, name: str) -> None:
    with EmbeddedServer.start(tmp_path / name, "digits") as server:
        assert find(folder=tmp_path / name) is not None
        assert ping(Path(server.url.removeprefix("unix://"))) is Life.LIVE


def test_a_broken_log_is_named(tmp_path: Path) -> None:
    with EmbeddedServer.start(tmp_path, "digits"):
        pass
    [manifest] = (tmp_path / "valkey/appendonlydir").glob("*.manifest")
    manifest.write_text("nonsense\n")
    with pytest.raises(ServerStartError, match=r"ended at once: .*valkey\.log") as error:
        EmbeddedServer.start(tmp_path, "digits")
    assert len(str(error.value).splitlines()) == 1
    assert not (tmp_path / NOTE).exists()


def test_only_the_main_thread_may_start_it(tmp_path: Path) -> None:
    errors: list[Any] = []

    def start() -> None:
        try:
            EmbeddedServer.start(tmp_path, "digits")
        except RuntimeError as error:
            errors.append(str(error))

    thread = threading.Thread(target=start)
    thread.start()
    thread.join()
    assert errors == ["an embedded server must be started from the main thread"]


def test_a_bad_run_id_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"^run id"):
        EmbeddedServer.start(tmp_path, "a b")
    with pytest.raises(ValueError, match=r"^run id"):
        find("../x")
