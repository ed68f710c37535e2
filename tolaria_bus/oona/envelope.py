"""One entry of a stream: sealing a message into its fields, and opening what came.

Re-exports ``sealing`` and ``opening``.
"""

from tolaria_bus.oona.by_hand import derived_id
from tolaria_bus.oona.opening import REFUSED_REASONS, Opened, Opener, Refused, RefusedReason
from tolaria_bus.oona.sealing import (
    JSON,
    PAYLOAD,
    SIGNATURE,
    new_message_id,
    seal,
    seal_envelope,
    wrap,
)

__all__ = [
    "JSON",
    "PAYLOAD",
    "REFUSED_REASONS",
    "SIGNATURE",
    "Opened",
    "Opener",
    "Refused",
    "RefusedReason",
    "derived_id",
    "new_message_id",
    "seal",
    "seal_envelope",
    "wrap",
]
