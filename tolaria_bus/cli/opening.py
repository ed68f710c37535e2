"""Entries opened for people: what isn't verified is marked, what can't be read says why."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Final

from tolaria_bus.cli.render import Shown
from tolaria_bus.oona.opening import Opener, Refused
from tolaria_bus.oona.trust import KeyRing
from tolaria_bus.settings import SettingError, Settings

COMPAT_SECRET: Final = "ESPER_LEYLINE_SECRET"  # noqa: S105 - the name of a variable


def key_ring(settings: Settings) -> KeyRing:
    """Return the ring that ``signing_keys`` names; empty where signing is off.

    Raises:
        SettingError: A key is malformed.
    """
    if settings.signing_keys is None:
        return KeyRing()
    try:
        return KeyRing.parse(settings.signing_keys.get_secret_value())
    except ValueError as error:
        raise SettingError(f"setting signing_keys: {error}") from None


def compat_secret(settings: Settings) -> bytes | None:
    """Return the secret of envelopes with fields 1 to 3; ``None`` where those aren't read.

    Raises:
        SettingError: They are to be, and there is none.
    """
    if not settings.compat_envelopes:
        return None
    secret = os.environ.get(COMPAT_SECRET, "")
    if not secret:
        raise SettingError(
            f"setting compat_envelopes = True: {COMPAT_SECRET} is not set in the environment; "
            "it is the secret that those envelopes are signed with"
        )
    return secret.encode()


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
