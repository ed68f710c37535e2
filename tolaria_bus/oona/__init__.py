"""Oona: the bus. Streams, priorities, signatures, delivery.

Knows the contracts (``leyline``) and nothing else of tolaria-bus; usable by any other program.
"""

from tolaria_bus.oona.alone import OpenPublisher, open_consumer, open_publisher
from tolaria_bus.oona.connection import (
    BadUrl,
    ServerClock,
    ServerUnreachable,
    connect,
    is_local,
    redacted,
)
from tolaria_bus.oona.consumer import Consumer, Received
from tolaria_bus.oona.copies import Copies
from tolaria_bus.oona.embedded import EmbeddedServer, Found, ServerStartError
from tolaria_bus.oona.envelope import Opened, Opener, Refused, seal
from tolaria_bus.oona.outbox import Outbox
from tolaria_bus.oona.publisher import Publisher
from tolaria_bus.oona.spool import Spool
from tolaria_bus.oona.streams import Streams, check_run_id, dead_letters_of
from tolaria_bus.oona.trust import KeyRing, NonceWindow

__all__ = [
    "BadUrl",
    "Consumer",
    "Copies",
    "EmbeddedServer",
    "Found",
    "KeyRing",
    "NonceWindow",
    "Opened",
    "OpenPublisher",
    "Opener",
    "Outbox",
    "Publisher",
    "Received",
    "Refused",
    "ServerClock",
    "ServerStartError",
    "ServerUnreachable",
    "Spool",
    "Streams",
    "check_run_id",
    "connect",
    "dead_letters_of",
    "is_local",
    "open_consumer",
    "open_publisher",
    "redacted",
    "seal",
]
