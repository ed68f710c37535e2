"""Ports of the loopback interface that stay the test's, from choosing one until the end."""

from __future__ import annotations

import os
import random
import socket
import weakref
from typing import Final

HOST: Final = "127.0.0.1"


class Port:
    """One that nobody listens on, and that nobody else is given while this object is there.

    A bound socket holds it. It isn't listened on, and by its option another socket with that option
    may bind the port as well: a server's, whenever it is started. Whoever looks for a free port
    binds without it, and the kernel gives clients none that is bound.

    Attributes:
        number: It.
    """

    def __init__(self) -> None:
        held = _bound()
        # Only now: with it, what another test holds would be bound too.
        held.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        self.number: int = held.getsockname()[1]
        weakref.finalize(self, os.close, held.detach())


def _bound() -> socket.socket:
    # Below those that the kernel gives to clients; by the system's randomness, whatever was seeded.
    chance = random.SystemRandom()
    while True:
        probe = socket.socket()
        try:
            probe.bind((HOST, chance.randrange(11_000, 32_000)))
        except OSError:
            probe.close()
        else:
            return probe
