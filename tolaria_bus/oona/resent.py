"""The mark of an entry that a replay of dead letters has made.

A command id that was REJECTED or EXPIRED may be used again by such an entry alone, so whoever reads
one has to know it. The mark is in the envelope's attributes, not in the message: the message, and
with it the digest that a command id is bound to, stays what it was.

Where signing is on the mark is under the signature: only who has a key can set it. Where it is off
anybody can, as anybody can send a command with a new id; nobody does by accident, for it has to
name a letter of the very stream that the entry is in.
"""

from __future__ import annotations

from typing import Final

from tolaria_bus.leyline import BusEnvelope
from tolaria_bus.oona.streams import dead_letters_of
from tolaria_bus.oona.trust import parse_entry_id

REPLAY_OF: Final = "replay_of"
"""Attribute: ``KEY OF THE DEAD-LETTER STREAM/ENTRY ID`` of the letter."""
REPLAYED_BY: Final = "replayed_by"
"""Attribute: who did it (``operator/ann``)."""
REPLAYS: Final = "replays"
"""Attribute: how often the message was replayed, this time included."""


def mark(envelope: BusEnvelope, *, dead: str, letter_id: str, by: str) -> None:
    """Mark an envelope as a replay.

    Args:
        envelope: Not yet sealed; is changed.
        dead: Key of the dead-letter stream.
        letter_id: The letter's entry there.
        by: Who replays it.
    """
    times = replays(envelope) + 1
    envelope.attributes[REPLAY_OF] = f"{dead}/{letter_id}"
    envelope.attributes[REPLAYED_BY] = by
    envelope.attributes[REPLAYS] = str(times)


def is_resent(envelope: BusEnvelope, stream: str) -> bool:
    """Was the entry of ``stream`` that holds the envelope made by a replay of dead letters?"""
    dead, _, letter_id = envelope.attributes.get(REPLAY_OF, "").rpartition("/")
    if dead != dead_letters_of(stream):
        return False
    try:
        parse_entry_id(letter_id)
    except ValueError:
        return False
    return True


def replays(envelope: BusEnvelope) -> int:
    """How often the message was replayed, by its own word."""
    text = envelope.attributes.get(REPLAYS, "")
    return int(text) if text.isascii() and text.isdecimal() and len(text) < 9 else 0
