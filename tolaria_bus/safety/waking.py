"""A bell at a signal block: wakes whoever looks at it, so that nobody has to look all the time.

A datagram socket in Linux's abstract namespace (unix(7)), called by the device and inode of the
block's folder: it leaves nothing in the folder and goes with its process. It says nothing but
"look"; who can't ring it (another network namespace, as of another container) is noticed at the
next look.
"""

from __future__ import annotations

import socket
import sys
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext, suppress
from pathlib import Path

import anyio

_DRAIN = 64
"""Rings taken at once: whoever floods the bell gets no more than a look for so many."""


def address(folder: Path, name: str) -> bytes:
    """Where the bell of a block is; empty: there are no such bells here.

    Args:
        folder: The run's.
        name: Of the block's file.

    Raises:
        OSError: There is no such folder.
    """
    if not sys.platform.startswith("linux"):
        return b""
    found = folder.stat()
    return f"\0tolaria-bus/{found.st_dev:x}/{found.st_ino:x}/{name}".encode()


@contextmanager
def listening(where: bytes) -> Iterator[socket.socket | None]:
    """The bell at an address, readable once it has been rung; ``None``: it can't be had."""
    bell = _listen(where) if where else None
    with nullcontext() if bell is None else bell:
        yield bell


async def rung(bell: socket.socket | None, within: float) -> None:
    """Wait for a ring, for so many seconds at most; without a bell, for so long."""
    if bell is None:
        await anyio.sleep(within)
        return
    with anyio.move_on_after(within):
        await anyio.wait_readable(bell)
    heard(bell)


def heard(bell: socket.socket) -> None:
    """Take the rings that have come, so that the bell is silent until the next one."""
    for _ in range(_DRAIN):
        try:
            bell.recv(1)
        except BlockingIOError:
            return


def ring(where: bytes) -> None:
    """Wake who listens at an address, if anybody does; never waits, never raises."""
    if not where:
        return
    # Nobody may listen, or have so many rings that one more says nothing new; or this process has
    # no room for one more file. What was left is found at the next look.
    with suppress(OSError), _socket() as bell:
        bell.sendto(b"!", where)


def _listen(where: bytes) -> socket.socket | None:
    try:
        bell = _socket()
    except OSError:
        return None
    try:
        bell.bind(where)
    except OSError:
        # Somebody else has that name: he can take our rings, but not what was left.
        bell.close()
        return None
    return bell


def _socket() -> socket.socket:
    return socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK)
