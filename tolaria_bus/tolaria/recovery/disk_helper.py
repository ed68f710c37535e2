"""Who writes the bulk of a checkpoint: this process, or one of low priority beside it."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from collections.abc import Callable, Sequence
from typing import Any, Protocol

from torch import Tensor

from tolaria_bus.tolaria.recovery.disk import sum_stretches, write_stretches
from tolaria_bus.tolaria.recovery.disk_process import receive, send
from tolaria_bus.tolaria.recovery.shared_memory import Place
from tolaria_bus.tolaria.recovery.tensor_bytes import tensor_bytes

NICE = 10
"""The helper gets about a tenth of a core that training wants as well, and all of an idle one."""

HELPED_FROM = 16 << 20
"""Bytes: less is written sooner than it is handed over."""

SILENCE_SECONDS = 120.0
"""A helper that neither answers nor gets 64 MB further in this time is given up."""

HELPER_LOST = "checkpoint_helper_lost"

Find = Callable[[Tensor], Place | None]
OnEvent = Callable[[str, dict[str, str]], None]


class Disk(Protocol):
    """Writes and reads back a file that is a head and, without holes, stretches behind it."""

    def write(self, fd: int, head: bytes, tensors: Sequence[tuple[str, Tensor]]) -> list[int]:
        """Write all of a file, durably, and return the CRC32C of each tensor's bytes."""

    def sum(self, fd: int, sizes: Sequence[int]) -> list[int]:
        """The CRC32C of each of the stretches that the file begins with."""


class Here:
    """Does it in the calling thread."""

    def write(self, fd: int, head: bytes, tensors: Sequence[tuple[str, Tensor]]) -> list[int]:
        """Write all of a file, durably.

        Raises:
            ValueError: A tensor has no plain bytes.
            OSError: The file can't be written.
        """
        return write_stretches(fd, head, (_stretch(name, tensor) for name, tensor in tensors))

    def sum(self, fd: int, sizes: Sequence[int]) -> list[int]:
        """The CRC32C of each stretch.

        Raises:
            EOFError: The file ends too early.
            OSError: It can't be read.
        """
        return sum_stretches(fd, sizes)


class DiskHelper:
    """Has a process of low priority do it, as long as the tensors are in memory shared with it.

    The process is started when it is first needed. If it dies, hangs or can't be started, the work
    is done here, ``checkpoint_helper_lost`` is told, and another one is started the next time.

    One thread at a time.

    Args:
        find: Where in shared memory a tensor is.
        on_event: Told of ``checkpoint_helper_lost``.
        nice: Added to the process's niceness, 0 to 19.
        helped_from: Files with fewer bytes are written here.
        silence_seconds: See :data:`SILENCE_SECONDS`.
    """

    def __init__(
        self,
        find: Find,
        on_event: OnEvent,
        *,
        nice: int = NICE,
        helped_from: int = HELPED_FROM,
        silence_seconds: float = SILENCE_SECONDS,
    ) -> None:
        self._find = find
        self._on_event = on_event
        self._nice = nice
        self._helped_from = helped_from
        self._silence = silence_seconds
        self._here = Here()
        self._process: subprocess.Popen[bytes] | None = None
        self._link: socket.socket | None = None

    @property
    def pid(self) -> int | None:
        """The process's id, ``None`` while there is none."""
        return None if self._process is None else self._process.pid

    def write(self, fd: int, head: bytes, tensors: Sequence[tuple[str, Tensor]]) -> list[int]:
        """Write all of a file, durably. Raises as :meth:`Here.write`."""
        sizes = [tensor.numel() * tensor.element_size() for _, tensor in tensors]
        places = [self._find(tensor) for _, tensor in tensors]
        memories = {place.fd for place in places if place is not None}
        if sum(sizes) >= self._helped_from and len(memories) == 1 and None not in places:
            begins = [place.offset for place in places if place is not None]
            stretches = list(zip(begins, sizes, strict=True))
            sums = self._ask({"do": "write", "stretches": stretches}, head, [fd, memories.pop()])
            if sums is not None:
                return sums
        return self._here.write(fd, head, tensors)

    def sum(self, fd: int, sizes: Sequence[int]) -> list[int]:
        """The CRC32C of each stretch. Raises as :meth:`Here.sum`."""
        if self._link is not None and sum(sizes) >= self._helped_from:
            sums = self._ask({"do": "sum", "sizes": list(sizes)}, b"", [fd])
            if sums is not None:
                return sums
        return self._here.sum(fd, sizes)

    def close(self) -> None:
        """Let the process end, and wait for it."""
        link, self._link = self._link, None
        process, self._process = self._process, None
        if link is not None:
            link.close()
        if process is not None:
            try:
                process.wait(self._silence)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()

    def _ask(self, body: dict[str, Any], head: bytes, fds: Sequence[int]) -> list[int] | None:
        """The answer, ``None`` if there comes none."""
        try:
            link = self._link or self._start()
            send(link, body, head, fds)
            answer: dict[str, Any] = {}
            while not answer:
                answer, _, _ = receive(link)
        except (EOFError, OSError) as error:
            self._give_up(error)
            return None
        if "errno" in answer:
            raise OSError(answer["errno"], os.strerror(answer["errno"]))
        if "ended" in answer:
            raise EOFError("the file ends too early")
        sums: list[int] = answer["sums"]
        return sums

    def _start(self) -> socket.socket:
        here, there = socket.socketpair()
        here.settimeout(self._silence)
        module = "tolaria_bus.tolaria.recovery.disk_process"
        self._link = here  # Whoever gives up closes it.
        with there:
            self._process = subprocess.Popen(
                [sys.executable, "-P", "-m", module, str(self._nice)],
                stdin=there.fileno(),
                stdout=subprocess.DEVNULL,
                # Of its own, so that a terminal's Ctrl-C is the trainer's alone.
                start_new_session=True,
                # What this process can import, that one can.
                env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
            )
        return here

    def _give_up(self, error: BaseException) -> None:
        process = self._process
        if process is not None:
            process.kill()
        self.close()
        why = "it is gone" if isinstance(error, EOFError | ConnectionError) else str(error)
        code = "" if process is None else f" (exit status {process.returncode})"
        self._on_event(
            HELPER_LOST,
            {"detail": f"the process that writes checkpoints: {why}{code}; the trainer writes"},
        )


def _stretch(name: str, tensor: Tensor) -> tuple[Callable[[int, int], bytes], int]:
    data = tensor_bytes(name, tensor)
    return lambda offset, size: bytes(data[offset : offset + size]), len(data)
