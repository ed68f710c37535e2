"""Space behind a file's end, so that there is room for what must be written to a full disk."""

from __future__ import annotations

import ctypes
import errno
import os
import sys

_KEEP_SIZE = 1  # FALLOC_FL_KEEP_SIZE: the file's size stays, and with it what readers see.


def reserve(fd: int, begin: int, size: int) -> bool:
    """Hold space for a stretch of a file, without changing its size.

    Args:
        fd: The file, open for writing.
        begin: Offset of the stretch; may lie behind the end.
        size: Its length, at least 1.

    Returns:
        False where the system or the file system knows no such thing; nothing is held then.

    Raises:
        OSError: There is no space.
    """
    if sys.platform != "linux":
        return False
    call = ctypes.CDLL(None, use_errno=True).fallocate
    call.argtypes = (ctypes.c_int, ctypes.c_int, ctypes.c_int64, ctypes.c_int64)
    while call(fd, _KEEP_SIZE, begin, size):
        code = ctypes.get_errno()
        if code in {errno.EOPNOTSUPP, errno.ENOSYS}:
            return False
        if code != errno.EINTR:
            raise OSError(code, os.strerror(code))
    return True
