"""Oona: the bus. Streams, priorities, signatures, delivery.

Knows the contracts (``leyline``) and nothing else of tolaria-bus; usable by any other program.
"""

from tolaria_bus.oona.connection import (
    BadUrl,
    ServerClock,
    ServerUnreachable,
    connect,
    is_local,
    redacted,
)
from tolaria_bus.oona.embedded import EmbeddedServer, Found, ServerStartError
from tolaria_bus.oona.envelope import Opened, Opener, Refused, seal
from tolaria_bus.oona.streams import Streams, check_run_id, dead_letters_of
from tolaria_bus.oona.trust import KeyRing, NonceWindow

__all__ = [
    "BadUrl",
    "EmbeddedServer",
    "Found",
    "KeyRing",
    "NonceWindow",
    "Opened",
    "Opener",
    "Refused",
    "ServerClock",
    "ServerStartError",
    "ServerUnreachable",
    "Streams",
    "check_run_id",
    "connect",
    "dead_letters_of",
    "is_local",
    "redacted",
    "seal",
]
