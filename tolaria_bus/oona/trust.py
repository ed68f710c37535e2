"""Whom to believe: the key ring that signs and verifies, and the window of nonces seen."""

import base64
import binascii
import hashlib
import hmac
import logging
import os
import re
import struct
from collections.abc import Mapping
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path
from typing import Final, Self

FRESH_BACK_MS: Final = 60_000
"""How long before the server took it an envelope may have been sealed."""
FRESH_AHEAD_MS: Final = 5_000
"""How far a sender's clock may be ahead of the server's."""
NONCE_BYTES: Final = 16

_BLOCK: Final = 64  # bytes that SHA-256 takes at a time
_END: Final = 1 << 64
_LONGEST: Final = 41  # characters of an entry id: two 64-bit numbers and a dash
_KEY_ID = re.compile(r"[A-Za-z0-9._-]{1,64}")
_log = logging.getLogger(__name__)


class Key:
    """A secret that signs and verifies: HMAC-SHA256 (RFC 2104).

    Both of its hashes are begun once, with the secret in them; ``hmac`` begins them for every
    message anew, which for one of ours takes longer than all the rest.
    """

    __slots__ = ("_inner", "_outer")

    def __init__(self, secret: bytes) -> None:
        if len(secret) > _BLOCK:
            secret = hashlib.sha256(secret).digest()
        block = secret.ljust(_BLOCK, b"\0")
        self._inner = hashlib.sha256(bytes(byte ^ 0x36 for byte in block))
        self._outer = hashlib.sha256(bytes(byte ^ 0x5C for byte in block))

    def sign(self, payload: bytes) -> bytes:
        """Return the base64 HMAC of ``payload``, as it stands in an entry."""
        inner, outer = self._inner.copy(), self._outer.copy()
        inner.update(payload)
        outer.update(inner.digest())
        return binascii.b2a_base64(outer.digest(), newline=False)

    def made(self, payload: bytes, signature: bytes) -> bool:
        """Tell whether this key made ``signature``, in constant time."""
        # As ``sign`` does; a call of it costs a tenth of the work.
        inner, outer = self._inner.copy(), self._outer.copy()
        inner.update(payload)
        outer.update(inner.digest())
        return hmac.compare_digest(binascii.b2a_base64(outer.digest(), newline=False), signature)


class KeyRing:
    """Named secrets. The first signs, all verify, so that keys are rotated with no gap."""

    def __init__(self, keys: dict[str, bytes] | None = None) -> None:
        self._keys = {key_id: Key(secret) for key_id, secret in (keys or {}).items()}
        self.signing_key = next(iter(self._keys), "")
        """The id of the key that signs; empty where signing is off."""
        self.enabled = bool(self._keys)
        """Whether signing is on."""

    @classmethod
    def parse(cls, text: str) -> Self:
        """Read ``id:base64secret[,id:base64secret...]``; empty text is a ring without keys.

        Raises:
            ValueError: which key is wrong and how, in one line, without showing a secret.
        """
        keys: dict[str, bytes] = {}
        for place, item in enumerate(filter(None, map(str.strip, text.split(","))), start=1):
            key_id, colon, encoded = item.partition(":")
            if not colon or _KEY_ID.fullmatch(key_id) is None:
                raise ValueError(f"key {place}: must be id:base64secret, id of A-Z a-z 0-9 . _ -")
            if key_id in keys:
                raise ValueError(f"key {place}: id {key_id!r} is given twice")
            keys[key_id] = _secret(encoded, key_id)
        return cls(keys)

    def sign(self, payload: bytes) -> tuple[str, bytes]:
        """Return the signing key's id and the base64 signature.

        Raises:
            ValueError: the ring is empty.
        """
        if not self._keys:
            raise ValueError("signing is off: the key ring is empty")
        return self.signing_key, self._keys[self.signing_key].sign(payload)

    @property
    def keys(self) -> Mapping[str, Key]:
        """The keys by their ids."""
        return self._keys

    def verify(self, key_id: str, payload: bytes, signature: bytes) -> bool:
        """Tell whether the key named ``key_id`` made ``signature``, in constant time."""
        key = self._keys.get(key_id)
        return key is not None and key.made(payload, signature)

    def __contains__(self, key_id: str) -> bool:
        return key_id in self._keys

    def __repr__(self) -> str:
        return f"KeyRing({', '.join(self._keys) or 'empty'})"


def _secret(encoded: str, key_id: str) -> bytes:
    text = encoded.strip().rstrip("=").translate(str.maketrans("-_", "+/"))
    try:
        secret = base64.b64decode(text + "=" * (-len(text) % 4), validate=True)
    except (binascii.Error, ValueError):
        raise ValueError(f"key {key_id!r}: the secret isn't base64") from None
    if not secret:
        raise ValueError(f"key {key_id!r}: the secret is empty")
    return secret


EntryId = tuple[int, int]
"""Milliseconds and sequence of a stream entry's id."""

_PLACE = struct.Struct("<8sQQ")  # stream (hash), entry id: milliseconds, sequence
_RECORD_BYTES = NONCE_BYTES + _PLACE.size
_FLUSHED_BYTES: Final = 64 << 10
"""Written without being asked, so that what nobody flushes takes no memory."""


@dataclass(slots=True)
class _StreamNonces:
    """Nonces of one stream in order of arrival: the younger ones, and before them the older."""

    key: bytes
    highest: int = 0  # milliseconds of the highest entry id
    young: list[bytes] = field(default_factory=list)
    old: list[bytes] = field(default_factory=list)
    old_highest: int = 0  # milliseconds, of the older ones


class NonceWindow:
    """Nonces seen, each bound to the one entry that brought it.

    The same nonce in the same entry is a redelivery and passes; in another entry it is a replay.
    An envelope can be fresh only in entries less than 65 s apart, so older nonces are forgotten:
    by the highest entry id of their stream, never by this machine's clock. The latest ones stay
    however old they are, for entries that are redelivered long after, out of order.

    With a path the window survives a restart: ``flush`` before what was checked is used. It isn't
    fsynced: after a power cut the commands' ids still catch a replay. Not thread-safe; one window
    per path.
    """

    WINDOW_MS: Final = FRESH_BACK_MS + FRESH_AHEAD_MS
    KEPT_AT_LEAST: Final = 4_096
    """Of each stream."""
    _COMPACT_FROM: Final = 8_192

    def __init__(self, path: Path | None = None) -> None:
        self._seen: dict[bytes, bytes] = {}  # nonce to where it came from, packed
        self._streams: dict[str, _StreamNonces] = {}
        self._by_key: dict[bytes, _StreamNonces] = {}
        self._path = path
        self._file: int | None = None
        self._unwritten = bytearray()
        self._records = 0
        self.unsaved = 0
        """Nonces that could not be written to the path: a restart will not know them."""
        if path is not None:
            self._load(path)

    def __len__(self) -> int:
        return len(self._seen)

    def check(self, nonce: bytes, stream: str, entry: EntryId) -> bool:
        """Remember ``nonce`` for this entry; false if another entry has brought it.

        Raises:
            ValueError: the nonce isn't 16 bytes.
        """
        if len(nonce) != NONCE_BYTES:
            raise ValueError(f"nonce has {len(nonce)} bytes, must have {NONCE_BYTES}")
        nonces = self._streams.get(stream) or self._stream(stream)
        place = _PLACE.pack(nonces.key, entry[0], entry[1])
        seen = self._seen.get(nonce)
        if seen is not None:
            return seen == place
        self._seen[nonce] = place
        if entry[0] > nonces.highest:
            nonces.highest = entry[0]
        nonces.young.append(nonce)
        if len(nonces.young) >= self.KEPT_AT_LEAST:
            self._forget_old(nonces)
        if self._path is not None:
            self._unwritten += nonce
            self._unwritten += place
            if len(self._unwritten) >= _FLUSHED_BYTES:
                self.flush()
        return True

    def flush(self) -> None:
        """Hand to the system what was remembered since the last call: it outlives this process."""
        if not self._unwritten:
            return
        count = len(self._unwritten) // _RECORD_BYTES
        try:
            if self._file is None and self._path is not None:
                flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC
                self._file = os.open(self._path, flags, 0o600)
            if self._file is not None and os.write(self._file, self._unwritten) != len(
                self._unwritten
            ):
                # A torn record would shift all later ones: begin a clean file.
                self._compact()
        except OSError as error:
            self._report(error, count)
        self._unwritten.clear()
        self._records += count
        if self._records > max(self._COMPACT_FROM, 2 * len(self._seen)):
            self._compact()

    def close(self) -> None:
        """Flush and close the file; the window must not be used any more."""
        self.flush()
        self._close_file()

    def _close_file(self) -> None:
        if self._file is not None:
            os.close(self._file)
            self._file = None

    def _stream(self, stream: str) -> _StreamNonces:
        key = _stream_key(stream)
        nonces = self._streams[stream] = self._by_key.setdefault(key, _StreamNonces(key))
        return nonces

    def _forget_old(self, stream: _StreamNonces) -> None:
        """Forget the older half once all of it is out of its window."""
        if stream.old and stream.old_highest >= stream.highest - self.WINDOW_MS:
            return
        for nonce in stream.old:
            del self._seen[nonce]
        stream.old, stream.young = stream.young, []
        stream.old_highest = stream.highest

    def _load(self, path: Path) -> None:
        data = path.read_bytes() if path.exists() else b""
        for start in range(0, len(data) - len(data) % _RECORD_BYTES, _RECORD_BYTES):
            nonce = data[start : start + NONCE_BYTES]
            place = data[start + NONCE_BYTES : start + _RECORD_BYTES]
            if nonce not in self._seen:
                key, milliseconds, _ = _PLACE.unpack(place)
                nonces = self._by_key.setdefault(key, _StreamNonces(key))
                self._seen[nonce] = place
                nonces.highest = max(nonces.highest, milliseconds)
                nonces.young.append(nonce)
        self._compact()

    def _compact(self) -> None:
        """Write what is remembered to a new file and put that in place of the old one."""
        if self._path is None:
            return
        scratch = self._path.with_name(self._path.name + ".new")
        try:
            kept = chain.from_iterable(chain(s.old, s.young) for s in self._by_key.values())
            scratch.write_bytes(b"".join(nonce + self._seen[nonce] for nonce in kept))
            scratch.chmod(0o600)
            scratch.replace(self._path)
            fresh = os.open(self._path, os.O_WRONLY | os.O_APPEND | os.O_CLOEXEC)
        except OSError as error:
            self._report(error, 0)
            # The old file still serves, until it has grown as much again.
        else:
            self._close_file()
            self._file = fresh
        self._records = len(self._seen)

    def _report(self, error: OSError, lost: int) -> None:
        if not self.unsaved:
            _log.warning("nonces can't be kept in %s: %s", self._path, error)
        self.unsaved += lost


def parse_entry_id(entry_id: str) -> EntryId:
    """Return (milliseconds, sequence) of a stream entry's id.

    Raises:
        ValueError: it isn't ``milliseconds-sequence``, both of at most 64 bits.
    """
    first, _, last = entry_id.partition("-")
    # isdigit alone also takes other alphabets' digits.
    if not (
        first.isdigit() and last.isdigit() and entry_id.isascii() and len(entry_id) <= _LONGEST
    ):
        raise ValueError(f"entry id {entry_id[:60]!r}: must be milliseconds-sequence")
    numbers = int(first), int(last)
    if numbers[0] >= _END or numbers[1] >= _END:
        raise ValueError(f"entry id {entry_id[:60]!r}: more than 64 bits")
    return numbers


def _stream_key(stream: str) -> bytes:
    return hashlib.blake2b(stream.encode("utf-8", "surrogatepass"), digest_size=8).digest()
