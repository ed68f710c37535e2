"""Weatherlight itself is killed: its workers go on, and the next one takes them over."""

from __future__ import annotations

import signal
import socket
from pathlib import Path

import pytest

from tests.weatherlight.streams import noted, wait_for
from tests.worker.processes import Terminal
from tolaria_bus.oona.connection import connect
from tolaria_bus.safety import SignalView, WorkerState

RUN = "tiny"


@pytest.mark.slow
async def test_a_killed_supervisor_costs_its_workers_nothing_and_the_next_adopts_them(
    tmp_path: Path, redis_url: str
) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as systemd:
        systemd.bind(str(tmp_path / "n"))
        systemd.settimeout(120)
        terminal = Terminal(tmp_path, {"NOTIFY_SOCKET": str(tmp_path / "n")})
        words = ("weatherlight", "tiny.py:Tiny", "--run", RUN, "--redis", redis_url,
                 "--set", "epochs=1000000", "--set", "threads=1")  # fmt: skip
        with terminal.start(*words) as first:
            assert systemd.recv(4096).startswith(b"READY=1\n")
            first.says("worker_works")
            with SignalView(tmp_path / "runs" / RUN) as view:
                assert view.refresh()
                identity = view.identity
                assert identity is not None
                second_at_once = terminal.run(*words, check=2)
                assert f"watched by weatherlight process {first.popen.pid}" in second_at_once
                first.signal(signal.SIGKILL)
                first.ends(-signal.SIGKILL)
                step = view.step

                async def gone_on() -> bool:
                    return view.step > step

                await wait_for(gone_on)
                with terminal.start(*words) as second:
                    second.says("worker_adopted")
                    second.signal(signal.SIGHUP)
                    second.ends(0)
                assert identity.lives()
                with terminal.start(*words) as third:
                    third.says("worker_adopted")
                    async with connect(redis_url, name="tests") as redis:
                        for adopted in await wait_for(lambda: noted(redis, RUN, "worker_adopted")):
                            assert adopted.attributes["pid"] == str(identity.pid)
                        assert view.identity == identity
                        third.signal(signal.SIGTERM)
                        third.ends(0)
                        assert view.state is WorkerState.STOPPED
                        assert not identity.lives()
                        assert await noted(redis, RUN, "worker_stopped")
