"""The processes of a soak: a server, a Weatherlight with its fleet, a Tamiyo. All of them real."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from base64 import b64encode
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import redis

from infra.torture.server import Server
from tolaria_bus.oona.trust import KeyRing
from tolaria_bus.safety import SignalView, WorkerState

ROOT = Path(__file__).parents[2]
RUNS = ("digits", "bytes", "moons")
SPARED = "moons"
"""Never killed, stopped or made to fail itself: whether its memory stays flat has to be seen."""
JOBS = {"digits": "SteadyDigits", "bytes": "SteadyBytes", "moons": "Moons"}
HANG_SECONDS = 15.0
SECRETS = {"first": b"f" * 32, "second": b"s" * 32}
STRANGE = KeyRing({"strange": b"x" * 32})
FLEET = f"""
[settings]
threads = 1
hang_seconds = {HANG_SECONDS}
lease_seconds = 25
restart_seconds = 0.2
restart_limit = 100
# What is learnt by heart makes the next odd batch look like a spike; rates are set at random here.
loss_spike_factor = 1000000
accuracy_collapse_factor = 0
# The machine may be slow: that is no cause for conservative mode.
boundary_ms = 5000
checkpoint_every_epochs = 20
telemetry_stream_length = 5000
"""


class House:
    """Starts and ends all processes. Main thread only, but for what reads. A context manager.

    Args:
        home: Folder for everything; a short path.

    Attributes:
        url: The server.
        rotated: The second key signs.
        lives: How often each was started, by name.
    """

    def __init__(self, home: Path) -> None:
        self.home = home
        self.rotated = False
        self.lives = {"server": 1, "weatherlight": 0, "tamiyo": 0}
        self.server = Server(home / "s")
        self.url = self.server.url
        self.client = redis.Redis.from_url(self.url, socket_timeout=10)
        self._processes: dict[str, subprocess.Popen[bytes]] = {}
        fleet = [FLEET]
        fleet += [f'[[worker]]\njob = "infra.soak.jobs:{JOBS[run]}"\nrun = "{run}"' for run in RUNS]
        (home / "fleet.toml").write_text("\n".join(fleet))

    # Places

    def folder(self, run: str) -> Path:
        """A run's folder."""
        return self.home / "runs" / run

    def log(self, name: str, life: int | None = None) -> Path:
        """What a life of Weatherlight or Tamiyo prints; by default the present one's."""
        return self.home / f"{name}-{self.lives[name] if life is None else life:03d}.log"

    @contextlib.contextmanager
    def view(self, run: str) -> Iterator[SignalView]:
        """A run's signal block."""
        with SignalView(self.folder(run)) as view:
            view.refresh()
            yield view

    @property
    def keys(self) -> str:
        """As in ``TOLARIA_SIGNING_KEYS``; the first signs."""
        names = sorted(SECRETS, reverse=self.rotated)
        return ",".join(f"{name}:{b64encode(SECRETS[name]).decode()}" for name in names)

    @property
    def ring(self) -> KeyRing:
        """As everybody has it who is started now."""
        return KeyRing.parse(self.keys)

    # Who is there

    def pid(self, name: str) -> int:
        """Of the server, Weatherlight or Tamiyo."""
        if name == "server":
            return self.server.pid
        return self._processes[name].pid

    def worker(self, run: str) -> int:
        """The process of a run's worker; 0 if none lives."""
        with self.view(run) as view:
            identity = view.identity
            return identity.pid if identity is not None and identity.lives() else 0

    def at_work(self, run: str) -> bool:
        """Does a living process of the run make steps, or stand still because it was told to?"""
        with self.view(run) as view:
            identity = view.identity
            if identity is None or not identity.lives():
                return False
            held = view.state in (WorkerState.PAUSED, WorkerState.HALTED)
            return held or (view.state is WorkerState.RUNNING and view.made_a_step)

    # Starting and ending

    def start(self, name: str) -> None:
        """Start Weatherlight or Tamiyo."""
        words = {
            "weatherlight": ["weatherlight", "--fleet", "fleet.toml", "--redis", self.url],
            "tamiyo": ["tamiyo", "--redis", self.url],
        }[name]
        self.lives[name] += 1
        with self.log(name).open("wb") as log:
            self._processes[name] = subprocess.Popen(
                [sys.executable, "-m", "tolaria_bus", *words],
                cwd=self.home,
                env=self._environment(),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    def signal(self, name: str, number: signal.Signals) -> None:
        """Send a signal to Weatherlight or Tamiyo."""
        self._processes[name].send_signal(number)

    def kill(self, name: str) -> None:
        """SIGKILL for Weatherlight or Tamiyo, and wait for its end."""
        self._processes[name].kill()
        self._processes[name].wait()

    def ended(self, name: str) -> int | None:
        """The exit code of Weatherlight or Tamiyo; ``None`` while it lives."""
        return self._processes[name].poll()

    def restart_server(self) -> None:
        """Start the server again, on its data."""
        self.server.start()
        self.lives["server"] += 1

    def stop(self, name: str, seconds: float) -> int | None:
        """End Weatherlight or Tamiyo in good order; its code, ``None``: it had to be killed."""
        process = self._processes[name]
        process.terminate()
        try:
            return process.wait(seconds)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
            return None

    def __enter__(self) -> House:
        return self

    def __exit__(self, *_: object) -> None:
        for process in self._processes.values():
            if process.poll() is None:
                process.kill()
            process.wait()
        workers = [psutil.Process(pid) for run in RUNS if (pid := self.worker(run))]
        for worker in workers:
            with contextlib.suppress(psutil.NoSuchProcess):
                worker.kill()
        psutil.wait_procs(workers, 30)
        self.client.close()
        self.server.__exit__()

    def _environment(self) -> dict[str, str]:
        kept = {name: value for name, value in os.environ.items() if "TOLARIA" not in name}
        path = [str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
        return {
            **kept,
            "XDG_STATE_HOME": str(self.home / "state"),
            "OMP_NUM_THREADS": "1",
            "OPENBLAS_NUM_THREADS": "1",
            "PYTHONPATH": os.pathsep.join(path),
            "TOLARIA_SIGNING_KEYS": self.keys,
        }


def wait_for(what: Callable[[], bool], seconds: float, poll: float = 0.1) -> bool:
    """Wait until it is so; whether it was in time."""
    end = time.monotonic() + seconds
    while not what():
        if time.monotonic() > end:
            return False
        time.sleep(poll)
    return True
