"""Entries opened for people: what isn't verified is marked, what can't be read says why."""

from __future__ import annotations

from collections.abc import Mapping

from tolaria_bus.cli.render import Shown
from tolaria_bus.configured import compat_secret, key_ring
from tolaria_bus.oona.opening import Opener, Refused
from tolaria_bus.oona.trust import KeyRing
from tolaria_bus.settings import Settings


class Reader:
    """Opens entries with the keys there are; nonces aren't checked, a replay only shows twice."""

    def __init__(self, ring: KeyRing, compat_secret: bytes | None = None) -> None:
        self._believing = Opener(ring, None, compat_secret)
        self._unbelieving = Opener(KeyRing(), None)

    @classmethod
    def of(cls, settings: Settings) -> Reader:
        """Return a reader with the keys of the settings.

        Raises:
            SettingError: A key is malformed, or the secret of old envelopes isn't there.
        """
        return cls(key_ring(settings), compat_secret(settings))

    def read(self, stream: str, entry_id: str, fields: Mapping[bytes, bytes] | None) -> Shown:
        """Open one entry; whatever it holds, something is returned that can be shown."""
        signed, doubt = self._believing.signed, ""
        try:
            opened = self._believing.open(stream, entry_id, fields)
        except Refused as refusal:
            doubt = str(refusal)
            if not signed:
                return Shown(stream, entry_id, None, doubt=doubt)
            try:
                opened = self._unbelieving.open(stream, entry_id, fields)
            except Refused as unreadable:
                return Shown(stream, entry_id, None, verified=False, doubt=str(unreadable))
        return Shown(
            stream,
            entry_id,
            opened.message,
            verified=not doubt if signed else None,
            doubt=doubt,
            source=opened.source,
            correlation_id=opened.correlation_id,
        )
