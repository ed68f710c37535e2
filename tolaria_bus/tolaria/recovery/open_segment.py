"""The segment in which a journal grows: appended to durably, with space held behind its end."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Self

from tolaria_bus.tolaria.recovery.reserve import reserve
from tolaria_bus.tolaria.recovery.segments import segment_path
from tolaria_bus.tolaria.recovery.sync_folder import sync_folder

RESERVE_BYTES = 1 << 20
"""So much space at least is held for what may use it, and up to twice as much."""


class OpenSegment:
    """A segment, open for appending. Not thread-safe.

    Args:
        path: The file; made if it isn't there.
        number: Which segment it is, counted from 1.
        end: Where its last sound record ends, in bytes.

    Attributes:
        path: The file.
        number: Which segment it is.
        end: Where the next record goes.
        fd: Of the file; -1 once it is closed.

    Raises:
        OSError: It can't be opened.
    """

    def __init__(self, path: Path, number: int, end: int) -> None:
        self.path = path
        self.number = number
        self.end = end
        flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_DSYNC | os.O_CLOEXEC
        self.fd = os.open(path, flags, 0o644)
        self._held = 0  # Space is held up to this offset.

    @classmethod
    def begin(cls, folder: Path, number: int) -> Self:
        """Begin a new segment, whose name is durable.

        Raises:
            OSError: There is no space for it, for one.
        """
        segment = cls(segment_path(folder, number), number, 0)
        try:
            reserve(segment.fd, 0, 2 * RESERVE_BYTES)
            sync_folder(folder)
        except BaseException:
            segment.close()
            raise
        segment._held = 2 * RESERVE_BYTES
        return segment

    @property
    def size(self) -> int:
        """Bytes in the file; more than ``end`` where its tail is torn."""
        return os.fstat(self.fd).st_size

    def hold(self, size: int) -> None:
        """Have space for ``size`` more bytes, and the reserve behind them.

        Raises:
            OSError: There is none.
        """
        needed = self.end + size + RESERVE_BYTES
        if needed > self._held:
            begin = max(self._held, self.end)
            reserve(self.fd, begin, needed + RESERVE_BYTES - begin)
            self._held = needed + RESERVE_BYTES

    def write(self, data: bytes) -> None:
        """Append ``data``, durably; ``end`` is for the caller to move, or to cut back to.

        Raises:
            OSError: Not all of it is in the file.
        """
        rest = memoryview(data)
        while rest:
            # Comes back short only where the next one says why: disk full, file too large.
            rest = rest[os.write(self.fd, rest) :]

    def cut_back(self) -> None:
        """Cut off what is behind ``end``, durably: it could come back after a power cut.

        Raises:
            OSError: Nobody knows what is in the file now.
        """
        self._held = 0  # A file system may let go of what was behind the end.
        os.ftruncate(self.fd, self.end)
        os.fsync(self.fd)

    def finish(self) -> None:
        """Nothing more comes into this segment: what was held behind it is free again.

        Raises:
            OSError: The file can't be cut to its end.
        """
        os.ftruncate(self.fd, self.end)
        self.close()

    def close(self) -> None:
        """Close the file; doing so twice is fine."""
        fd, self.fd = self.fd, -1
        if fd >= 0:
            os.close(fd)
