"""What a process of its own does to write checkpoints: see :class:`~.disk_helper.DiskHelper`.

``python -m tolaria_bus.tolaria.recovery.disk_process NICE``, with a Unix socket as its standard
input. It takes one request after the other until the other end is gone; it opens no file by itself
and knows no names, so one that outlives its run can't hurt the next.

A message is 8 bytes with two lengths, then JSON, then plain bytes. A request brings file
descriptors with it: the file to write or read, and the shared memory with what to write. The answer
is JSON alone; ``{}`` means that the work goes on.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import struct
import sys
from collections.abc import Callable, Sequence
from typing import Any

from tolaria_bus.tolaria.recovery.disk import sum_stretches, write_stretches

LENGTHS = struct.Struct("<II")
_MOST_FDS = 2


def send(
    link: socket.socket, body: dict[str, Any], data: bytes = b"", fds: Sequence[int] = ()
) -> None:
    """Send one message. Raises OSError if the other end is gone."""
    text = json.dumps(body).encode()
    whole = memoryview(LENGTHS.pack(len(text), len(data)) + text + data)
    sent = socket.send_fds(link, [whole], list(fds)) if fds else 0
    link.sendall(whole[sent:])


def receive(link: socket.socket) -> tuple[dict[str, Any], bytes, list[int]]:
    """One message: its JSON, its bytes, and its file descriptors, which are the caller's to close.

    Raises:
        EOFError: The other end is gone.
        OSError: The socket failed, or timed out.
    """
    first, fds, _, _ = socket.recv_fds(link, LENGTHS.size, _MOST_FDS)
    head = first + _exactly(link, LENGTHS.size - len(first)) if first else b""
    if not head:
        raise EOFError("the other end is gone")
    text, size = LENGTHS.unpack(head)
    body: dict[str, Any] = json.loads(_exactly(link, text))
    return body, _exactly(link, size), fds


def main() -> None:
    """Serve requests from the standard input."""
    # A terminal sends these to everybody; this process ends when its trainer does.
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    os.nice(int(sys.argv[1]))
    with socket.socket(fileno=os.dup(0)) as link:
        while True:
            try:
                body, head, fds = receive(link)
            except (EOFError, ConnectionError):
                return
            try:
                answer = _serve(body, head, fds, lambda: send(link, {}))
            except ConnectionError:
                return
            except EOFError:
                answer = {"ended": True}
            except OSError as error:
                answer = {"errno": error.errno or 0}
            finally:
                for fd in fds:
                    os.close(fd)
            send(link, answer)


def _serve(
    body: dict[str, Any], head: bytes, fds: list[int], progress: Callable[[], None]
) -> dict[str, Any]:
    if body["do"] == "sum":
        return {"sums": sum_stretches(fds[0], body["sizes"], progress)}
    file, memory = fds

    def reader(begin: int) -> Callable[[int, int], bytes]:
        return lambda offset, size: os.pread(memory, size, begin + offset)

    stretches = [(reader(begin), size) for begin, size in body["stretches"]]
    return {"sums": write_stretches(file, head, stretches, progress)}


def _exactly(link: socket.socket, size: int) -> bytes:
    data = bytearray()
    while len(data) < size:
        piece = link.recv(min(size - len(data), 1 << 20))
        if not piece:
            raise EOFError("the other end is gone")
        data += piece
    return bytes(data)


if __name__ == "__main__":
    main()
