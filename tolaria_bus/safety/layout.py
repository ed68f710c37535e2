"""The layout of a run's signal block: a file of fixed size that one worker writes and others read.

It is mapped into memory, so what was written is there for every process of the machine at once and
outlives its writer, however that died. Little-endian throughout::

    0x0000  header      magic, version, size
    0x0040  identity    who writes: number of the start, process, boot; with a CRC
    0x0100  training    progress (ns), step, phase, first step   written by the training thread
    0x0140  loop        beat (ns), state                         written by the event loop
    0x0180  supervisor  number of the last signal relayed        written by Weatherlight
    0x0200  reason      why the worker ended; with a CRC
    0x0400  deadlines   16 of 64 bytes
    0x1000  signals     8 of 4096 bytes

Nothing is locked. A field of eight bytes has one writer and is stored by one instruction, so it is
never seen half written; what is longer has a CRC, and is armed by a word that is stored last. A
reader that comes in between sees what doesn't fit together and looks again.

Times are of the machine's monotonic clock in nanoseconds, which all processes share; it stands
still while the machine sleeps, and begins anew at each boot, which the identity names.
"""

from __future__ import annotations

import struct
from enum import IntEnum
from pathlib import Path
from typing import Final

import google_crc32c

MAGIC: Final = int.from_bytes(b"TOLSIGNL", "little")
VERSION: Final = 1
SIZE: Final = 0x9000
NAME: Final = "signals"
"""Of the file in a run's folder."""

WORD: Final = 8  # bytes

MAGIC_WORD: Final = 0x00 // WORD
VERSION_WORD: Final = 0x08 // WORD
SIZE_WORD: Final = 0x10 // WORD

IDENTITY: Final = 0x40
IDENTITY_RECORD: Final = struct.Struct("<QQQ40s")
"""Number of the start, process, when that began, boot."""

PROGRESS_WORD: Final = 0x100 // WORD
STEP_WORD: Final = 0x108 // WORD
PHASE_WORD: Final = 0x110 // WORD
FIRST_STEP_WORD: Final = 0x118 // WORD

BEAT_WORD: Final = 0x140 // WORD
STATE_WORD: Final = 0x148 // WORD

RELAYED_WORD: Final = 0x180 // WORD

REASON: Final = 0x200
REASON_BYTES: Final = 0x1E0

DEADLINES: Final = 0x400
DEADLINE_COUNT: Final = 16
DEADLINE_BYTES: Final = 64
DEADLINE_RECORD: Final = struct.Struct("<Q40s")
"""When it began, and its name; in front of it the word that arms it: when it is due."""
NAME_BYTES: Final = 40

SIGNALS: Final = 0x1000
SIGNAL_COUNT: Final = 8
SIGNAL_BYTES: Final = 0x1000
SIGNAL_RECORD: Final = struct.Struct("<QQ")
"""When it was given, and how many bytes follow; in front of it its number, which arms it."""
SIGNAL_LARGEST: Final = SIGNAL_BYTES - 4 * WORD


class Phase(IntEnum):
    """What the training thread is doing; each has a time limit of its own."""

    LOADING = 0
    """Building the model, reading the state; journaled steps are run again as TRAINING."""
    TRAINING = 1
    VALIDATING = 2
    SAVING = 3
    """Waiting until a checkpoint is on disk."""


def may_take_as_a_start(phase: Phase, *, made_a_step: bool) -> bool:
    """May training get no further for as long as a start may take, and not hang?

    While it loads, while it waits for the disk, and until its first step is made.
    """
    return phase in (Phase.LOADING, Phase.SAVING) or not made_a_step


class WorkerState(IntEnum):
    """How a worker is, or how it ended."""

    STARTING = 0
    RUNNING = 1
    PAUSED = 2
    HALTED = 3
    STOPPING = 4
    """It was asked to stop by a signal."""
    FINISHED = 5
    STOPPED = 6
    """By a command or a signal."""
    TAKEN = 7
    """Another worker has the run."""
    FAILED = 8

    @property
    def ended(self) -> bool:
        """It will do nothing more."""
        return self >= WorkerState.FINISHED


def crc(data: bytes) -> int:
    """CRC-32C, never 0: an empty block isn't a valid record."""
    return int(google_crc32c.value(data)) + 1


def boot_id() -> bytes:
    """What tells this boot of the machine from another, at most 40 bytes."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_bytes().strip()[:NAME_BYTES]
    except OSError:
        # Not Linux: the time of the boot does it, but for a clock that is set.
        import psutil

        return str(int(psutil.boot_time())).encode()


def process_began(pid: int) -> int:
    """When a process began, in a unit of its system's; 0 if there is none (or only its body).

    With its number it names a process for as long as the machine runs.
    """
    try:
        # The second field is a name in parentheses, which may hold anything.
        fields = Path(f"/proc/{pid}/stat").read_bytes().rpartition(b")")[2].split()
    except FileNotFoundError:
        if Path("/proc/self/stat").exists():
            return 0
        return _began_elsewhere(pid)
    except ProcessLookupError:
        return 0
    return 0 if fields[0] in (b"Z", b"X") else int(fields[19])


def _began_elsewhere(pid: int) -> int:
    """The same where there is no /proc."""
    import psutil

    try:
        process = psutil.Process(pid)
        if process.status() == psutil.STATUS_ZOMBIE:
            return 0
        return int(process.create_time() * 100)
    except psutil.NoSuchProcess:
        return 0
