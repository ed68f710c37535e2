"""A bell at a run's folder: wakes the worker that holds it, so that it needn't look all the time.

A datagram socket in Linux's abstract namespace (unix(7)), called by the folder's device and inode:
it leaves nothing in the folder and goes with its process. It says nothing but "look"; who can't
ring it (another network namespace, as of another container) is noticed at the next look.
"""

from __future__ import annotations

import socket
import sys
from contextlib import closing
from pathlib import Path

_DRAIN = 64
"""Rings taken at once: whoever floods the bell gets no more than a look for so many."""


def listen(folder: Path) -> socket.socket | None:
    """The bell of a folder, readable once it has been rung; ``None``: it can't be had here.

    Raises:
        OSError: There is no such folder.
    """
    name = _name(folder)
    if not sys.platform.startswith("linux"):
        return None
    bell = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK)
    try:
        bell.bind(name)
    except OSError:
        # Somebody else has that name: he can take our rings, but not what was passed on.
        bell.close()
        return None
    return bell


def heard(bell: socket.socket) -> None:
    """Take the rings that have come, so that the bell is silent until the next one."""
    for _ in range(_DRAIN):
        try:
            bell.recv(1)
        except BlockingIOError:
            return


def ring(folder: Path) -> None:
    """Wake the worker that holds a folder, if one listens; never waits.

    Raises:
        OSError: There is no such folder.
    """
    name = _name(folder)
    if not sys.platform.startswith("linux"):
        return
    with closing(socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK)) as bell:
        try:
            bell.sendto(b"!", name)
        except OSError:
            # Nobody listens, or has so many rings that one more says nothing new.
            return


def _name(folder: Path) -> bytes:
    found = folder.stat()
    return f"\0tolaria-bus/passed-on/{found.st_dev:x}/{found.st_ino:x}".encode()
