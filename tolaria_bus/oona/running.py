"""Which embedded servers run on this machine, and where: notes that each leaves for others.

A server writes ``server.json`` into its folder and the same note under the user's state folder,
named after the run, so that another terminal finds it by the run's id alone. Notes outlive a
server that was killed; only what answers counts.
"""

import json
import logging
import os
import socket
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from enum import Enum
from pathlib import Path
from typing import Final, Self

import psutil

from tolaria_bus.oona.streams import check_run_id

NOTE: Final = "server.json"
_PING_TIMEOUT: Final = 5.0
"""Seconds. A server on this machine answers in less than a millisecond, and much later where its
disk or the machine is busy: it is not to be taken for gone then."""
_log = logging.getLogger(__name__)


class Life(Enum):
    """How a server answers."""

    LIVE = "live"
    LOADING = "loading"
    """It reads its data and will answer."""
    SILENT = "silent"
    """Something listens, but doesn't answer (in time)."""
    GONE = "gone"


@dataclass(frozen=True, slots=True)
class Found:
    """A server that runs."""

    url: str
    run: str
    folder: Path


@dataclass(frozen=True, slots=True)
class Note:
    """What a server's starter wrote down about it."""

    url: str
    pid: int
    run: str
    folder: str
    owner: int
    """The process that started it, and ends it by its own end."""
    owner_started: float
    """When that process began (seconds since the epoch): its number may be used again."""

    @classmethod
    def read(cls, path: Path) -> Self | None:
        """Return the note at ``path``, or ``None`` if there is none that can be read."""
        try:
            values = json.loads(path.read_bytes())
            return cls(
                url=str(values["url"]),
                pid=int(values["pid"]),
                run=str(values["run"]),
                folder=str(values["folder"]),
                owner=int(values["owner"]),
                owner_started=float(values["owner_started"]),
            )
        except (OSError, ValueError, KeyError, TypeError):
            return None

    def write(self, path: Path) -> None:
        """Put the note at ``path``, whole or not at all, readable by its owner only.

        Raises:
            OSError: it can't be written there.
        """
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        scratch = path.with_name(f".{path.name}.{os.getpid()}")
        scratch.touch(mode=0o600)
        scratch.write_text(json.dumps(asdict(self)) + "\n")
        scratch.replace(path)

    @property
    def socket(self) -> Path:
        """The server's Unix socket."""
        return Path(self.url.removeprefix("unix://"))

    def owner_lives(self) -> bool:
        """Tell whether the process that started the server still runs."""
        try:
            owner = psutil.Process(self.owner)
            began = owner.create_time()
            if owner.status() == psutil.STATUS_ZOMBIE:
                return False
        except psutil.NoSuchProcess:
            return False
        # Derived from the machine's clock, which may have been set by a little since.
        return abs(began - self.owner_started) < 5.0

    def life(self) -> Life:
        """Ask the server."""
        return ping(self.socket) if psutil.pid_exists(self.pid) else Life.GONE


def find(run: str | None = None, folder: Path | None = None) -> Found | None:
    """Return the live server of a run, or of a run's folder, or the only one there is.

    Notes of servers that are gone are removed.

    Raises:
        ValueError: ``run`` can't be a run's id.
    """
    if folder is not None:
        found = _live(Path(folder) / NOTE)
        return found if found is not None and run in (None, found.run) else None
    if run is not None:
        return _live(registered(run))
    everyone = running()
    return everyone[0] if len(everyone) == 1 else None


def running() -> list[Found]:
    """Return the live servers of this user on this machine, by run."""
    return list(_every_live())


def registered(run: str) -> Path:
    """Return where the note of a run's server stands."""
    return _registry() / f"{check_run_id(run)}.json"


def withdraw(note: Note) -> None:
    """Remove a server's notes, as far as they are its own and not those of a later one."""
    for path in (Path(note.folder) / NOTE, registered(note.run)):
        if Note.read(path) == note:
            path.unlink(missing_ok=True)


def publish(note: Note) -> None:
    """Leave a server's notes.

    Raises:
        OSError: its folder can't be written. The registry is a comfort: a warning is enough.
    """
    note.write(Path(note.folder) / NOTE)
    try:
        note.write(registered(note.run))
    except OSError as error:
        _log.warning("the server of run %s can't be found by its id alone: %s", note.run, error)


def ping(path: Path) -> Life:
    """Send one PING to the Unix socket at ``path``."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as client:
        client.settimeout(_PING_TIMEOUT)
        try:
            client.connect(os.fsencode(path))
            client.sendall(b"PING\r\n")
            reply = client.recv(64)
        except TimeoutError:
            return Life.SILENT
        except OSError:
            return Life.GONE
    if reply.startswith(b"-LOADING"):
        return Life.LOADING
    return Life.LIVE if reply.startswith(b"+PONG") else Life.SILENT


def _registry() -> Path:
    # The specification of XDG has relative paths ignored.
    home = os.environ.get("XDG_STATE_HOME", "")
    state = Path(home) if home.startswith("/") else Path.home() / ".local" / "state"
    return state / "tolaria-bus" / "servers"


def _every_live() -> Iterator[Found]:
    for path in sorted(_registry().glob("*.json")):
        found = _live(path)
        if found is not None:
            yield found


def _live(path: Path) -> Found | None:
    note = Note.read(path)
    if note is None:
        return None
    match note.life():
        case Life.LIVE | Life.LOADING:
            return Found(note.url, note.run, Path(note.folder))
        case Life.GONE:
            withdraw(note)
    return None
