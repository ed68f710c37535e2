"""Errors that are the user's to mend: one line on standard error, exit code 2."""

from __future__ import annotations

import errno
import os
import sys
from typing import Final

USER_ERROR: Final = 2

_KNOWN: Final = (
    ("tolaria_bus.settings", "SettingError"),
    ("tolaria_bus.cli.words", "ComposeError"),
    ("tolaria_bus.cli.locate", "NotLocated"),
    ("tolaria_bus.cli.dlq_place", "NoSuchLetter"),
    ("tolaria_bus.oona.where", "BadCondition"),
    ("tolaria_bus.oona.connection", "BadUrl"),
    ("tolaria_bus.oona.connection", "ServerUnreachable"),
    ("tolaria_bus.oona.embedded", "ServerStartError"),
    ("tolaria_bus.oona.lease", "LeaseHeld"),
    ("tolaria_bus.oona.spool", "SpoolLocked"),
    ("tolaria_bus.leyline.codec", "CodecError"),
    ("tolaria_bus.weatherlight.claim", "RunWatched"),
    ("tolaria_bus.tamiyo.policies", "PolicyRefused"),
    ("tolaria_bus.worker.holding", "RunKnown"),
    ("tolaria_bus.tolaria.engine.job_errors", "JobError"),
    ("tolaria_bus.cli.run_place", "NoSuchRun"),
    ("tolaria_bus.tolaria.resuming", "InexactResume"),
    ("tolaria_bus.tolaria.replay", "ReplayRefused"),
    ("tolaria_bus.tolaria.recovery.checkpoint_view", "NoSuchCheckpoint"),
    ("tolaria_bus.tolaria.recovery.checkpoint_info", "CheckpointCorrupt"),
    ("tolaria_bus.tolaria.recovery.exporting", "ExportRefused"),
    ("tolaria_bus.tolaria.recovery.journal_view", "NothingRecorded"),
    ("tolaria_bus.tolaria.recovery.journal", "RunLocked"),
    ("tolaria_bus.tolaria.recovery.journal", "JournalCorrupt"),
    ("tolaria_bus.tolaria.recovery.journal", "JournalUnwritable"),
    ("redis.exceptions", "RedisError"),
)
"""Module and class. A module that isn't loaded can't have raised anything, so none is imported."""

_NO_ROOM: Final = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})
_NOT_OURS: Final = frozenset({errno.EROFS, errno.EACCES})


def one_line(error: BaseException) -> str | None:
    """The line for an error that the user can mend, else ``None``: it is a fault of ours."""
    for module, name in _KNOWN:
        kind = getattr(sys.modules.get(module), name, None)
        if kind is not None and isinstance(error, kind):
            text = " ".join(str(error).split()) or type(error).__name__
            return f"server: {text}" if module == "redis.exceptions" else text
    if isinstance(error, OSError) and error.errno in _NO_ROOM:
        where = f"{os.fsdecode(error.filename)}: " if error.filename else ""
        return f"no room on the disk: {where}{os.strerror(error.errno)}"
    if isinstance(error, OSError) and error.errno in _NOT_OURS and error.filename:
        return f"{os.fsdecode(error.filename)}: {os.strerror(error.errno)}"
    if isinstance(error, BaseExceptionGroup) and len(error.exceptions) == 1:
        return one_line(error.exceptions[0])
    return None
