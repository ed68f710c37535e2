"""The reader's side of a run's signal block: for the supervisor, and whoever else looks."""

from __future__ import annotations

import mmap
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from tolaria_bus.safety import layout
from tolaria_bus.safety.layout import Phase, WorkerState
from tolaria_bus.safety.signals import is_block

_LOOKS = 3
"""At what doesn't fit together: its writer needs microseconds between two of them."""
_PHASES = frozenset(Phase)
_STATES = frozenset(WorkerState)


@dataclass(frozen=True, slots=True)
class Identity:
    """Who writes a block.

    Attributes:
        start: How many processes have written it.
        pid: The process.
        began: When that began; see ``layout.process_began``.
        boot: Of the machine.
    """

    start: int
    pid: int
    began: int
    boot: bytes

    def lives(self) -> bool:
        """Does that very process still run here?"""
        return self.boot == layout.boot_id() and layout.process_began(self.pid) == self.began


@dataclass(frozen=True, slots=True)
class ArmedDeadline:
    """Something that must be over by ``due_ns``.

    Attributes:
        name: What.
        began_ns: When it began.
        due_ns: By when it must be over.
    """

    name: str
    began_ns: int
    due_ns: int


@dataclass(frozen=True, slots=True)
class LeftSignal:
    """An emergency signal that a worker left.

    Attributes:
        number: Counts all of the run's.
        given_ns: When.
        payload: The serialised ``EmergencySignal``.
    """

    number: int
    given_ns: int
    payload: bytes


class SignalView:
    """What a run's worker says of itself, read in microseconds, whatever that worker is doing.

    Args:
        folder: The run's folder; the block needn't be there yet.
        name: Of the file.
    """

    def __init__(self, folder: Path, name: str = layout.NAME) -> None:
        self._path = folder / name
        self._memory: mmap.mmap | None = None
        self._words: memoryview | None = None
        self._inode = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def refresh(self) -> bool:
        """Look whether there is a block, or another one in its place. False: there is none."""
        try:
            found = self._path.stat()
        except FileNotFoundError:
            self.close()
            return False
        if found.st_ino != self._inode:
            self.close()
            self._open()
        return self._words is not None

    @property
    def identity(self) -> Identity | None:
        """Who writes it; ``None`` if nobody ever did."""
        memory, words = self._memory, self._words
        if memory is None or words is None:
            return None
        start, size = layout.IDENTITY, layout.IDENTITY_RECORD.size
        for _ in range(_LOOKS):
            record = bytes(memory[start : start + size])
            if words[(start + size) // layout.WORD] == layout.crc(record):
                number, pid, began, boot = layout.IDENTITY_RECORD.unpack(record)
                return Identity(number, pid, began, boot.rstrip(b"\0"))
        return None

    @property
    def progress_ns(self) -> int:
        """When the training thread last got on."""
        return self._word(layout.PROGRESS_WORD)

    @property
    def step(self) -> int:
        """The newest step that is done."""
        return self._word(layout.STEP_WORD)

    @property
    def first_step(self) -> int:
        """The step that this process began with."""
        return self._word(layout.FIRST_STEP_WORD)

    @property
    def made_a_step(self) -> bool:
        """This process has made one; before its first it may be loading, or compiling."""
        return self.step != self.first_step

    @property
    def phase(self) -> Phase:
        """What the training thread is doing."""
        found = self._word(layout.PHASE_WORD)
        return Phase(found) if found in _PHASES else Phase.LOADING

    @property
    def beat_ns(self) -> int:
        """When the event loop last went round."""
        return self._word(layout.BEAT_WORD)

    @property
    def state(self) -> WorkerState:
        """How the worker is, or how it ended."""
        found = self._word(layout.STATE_WORD)
        return WorkerState(found) if found in _STATES else WorkerState.STARTING

    @property
    def reason(self) -> str:
        """Why it ended, in one line; empty if it didn't say."""
        memory, words = self._memory, self._words
        if memory is None or words is None:
            return ""
        start = layout.REASON
        length = words[start // layout.WORD + 1]
        text = bytes(memory[start + 16 : start + 16 + min(length, layout.REASON_BYTES - 16)])
        whole = words[start // layout.WORD] == layout.crc(text)
        return text.decode("utf-8", "replace") if whole else ""

    def deadlines(self) -> list[ArmedDeadline]:
        """Everything that must be over by a certain time, overdue or not."""
        found = (self._deadline(slot) for slot in range(layout.DEADLINE_COUNT))
        return [deadline for deadline in found if deadline is not None]

    def unrelayed(self) -> list[LeftSignal]:
        """Emergency signals that no supervisor has taken yet, in their order.

        One that is being written at this moment is there at the next look.
        """
        if self._words is None:
            return []
        relayed = self._words[layout.RELAYED_WORD]
        found = (self._signal(slot, relayed) for slot in range(layout.SIGNAL_COUNT))
        return sorted((left for left in found if left is not None), key=lambda left: left.number)

    def relayed(self, number: int) -> None:
        """These and all before are taken: the supervisor's only word."""
        if self._words is not None:
            self._words[layout.RELAYED_WORD] = number

    def close(self) -> None:
        """Let go of the memory."""
        if self._words is not None:
            self._words.release()
        if self._memory is not None:
            self._memory.close()
        self._words, self._memory, self._inode = None, None, 0

    def _open(self) -> None:
        try:
            file = os.open(self._path, os.O_RDWR | os.O_CLOEXEC)
        except FileNotFoundError:
            return
        try:
            found = os.fstat(file)
            if found.st_size != layout.SIZE:
                return
            memory = mmap.mmap(file, layout.SIZE)
        finally:
            os.close(file)
        if not is_block(memory):
            memory.close()
            return
        self._memory, self._inode = memory, found.st_ino
        self._words = memoryview(memory).cast("Q")

    def _word(self, number: int) -> int:
        return 0 if self._words is None else int(self._words[number])

    def _deadline(self, slot: int) -> ArmedDeadline | None:
        memory, words = self._memory, self._words
        if memory is None or words is None:
            return None
        start = layout.DEADLINES + slot * layout.DEADLINE_BYTES
        word, size = start // layout.WORD, layout.DEADLINE_RECORD.size
        for _ in range(_LOOKS):
            due = words[word]
            if due == 0:
                return None
            record = bytes(memory[start + 16 : start + 16 + size])
            whole = words[word + 1] == layout.crc(due.to_bytes(8, "little") + record)
            if whole and words[word] == due:
                began, name = layout.DEADLINE_RECORD.unpack(record)
                return ArmedDeadline(name.rstrip(b"\0").decode("utf-8", "replace"), began, due)
        return None

    def _signal(self, slot: int, relayed: int) -> LeftSignal | None:
        memory, words = self._memory, self._words
        if memory is None or words is None:
            return None
        start = layout.SIGNALS + slot * layout.SIGNAL_BYTES
        word = start // layout.WORD
        number = words[word]
        if number <= relayed:
            return None
        head = layout.SIGNAL_RECORD.size
        given, length = layout.SIGNAL_RECORD.unpack(memory[start + 16 : start + 16 + head])
        if length > layout.SIGNAL_LARGEST:
            return None
        record = bytes(memory[start + 16 : start + 16 + head + length])
        if words[word + 1] != layout.crc(record) or words[word] != number:
            return None
        return LeftSignal(number, given, record[head:])
