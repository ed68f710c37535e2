"""Telling systemd how we are, where it started us: the protocol of ``sd_notify(3)``.

A datagram to the socket in ``NOTIFY_SOCKET``. Elsewhere nothing happens.
"""

from __future__ import annotations

import os
import socket
from typing import Final

_ADDRESS: Final = "NOTIFY_SOCKET"
_WATCHDOG: Final = "WATCHDOG_USEC"
_WATCHED: Final = "WATCHDOG_PID"


class Notifier:
    """Sends notes to systemd, if there is one that wants them."""

    def __init__(self) -> None:
        address = os.environ.get(_ADDRESS, "")
        # An abstract socket is written with an @ for its leading zero byte.
        self._address = "\0" + address[1:] if address.startswith("@") else address

    def notify(self, *notes: str) -> None:
        """Send ``NAME=value`` notes, as ``READY=1``.

        Raises:
            OSError: The socket is named and can't be reached.
        """
        if not self._address:
            return
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as client:
            client.connect(self._address)
            client.sendall("\n".join(notes).encode())


def watchdog_seconds() -> float | None:
    """How often systemd wants to hear of us, at least; ``None``: it doesn't."""
    if os.environ.get(_WATCHED, str(os.getpid())) != str(os.getpid()):
        return None
    microseconds = os.environ.get(_WATCHDOG, "")
    return int(microseconds) / 1e6 if microseconds.isdigit() and int(microseconds) else None


def withheld(environment: dict[str, str]) -> dict[str, str]:
    """An environment for children, who aren't to speak for us."""
    ours = (_ADDRESS, _WATCHDOG, _WATCHED)
    return {name: value for name, value in environment.items() if name not in ours}
