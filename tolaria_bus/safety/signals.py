"""The writer's side of a run's signal block: heartbeats, deadlines, emergencies.

What another process has to know though this one hangs, holds the interpreter's lock or is dead:
that it makes steps, what it must have finished by when, and what it wanted everybody to hear. A
step costs two stores into memory and one look at the clock; nothing here waits for anybody. At a
deadline and an emergency a bell is rung, for whoever watches (:mod:`.waking`).
"""

from __future__ import annotations

import mmap
import os
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Self

from tolaria_bus.safety import layout, waking
from tolaria_bus.safety.layout import Phase, WorkerState


class Deadline:
    """Something that must be over by a certain time; ends with its ``with`` block or ``clear``."""

    def __init__(self, signals: Signals, name: str) -> None:
        self._signals = signals
        self.name = name

    def clear(self) -> None:
        """It is over."""
        self._signals.clear(self.name)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.clear()


class Signals:
    """One worker's signals. Made by :meth:`create`, or :meth:`private` where nobody watches.

    ``step`` and ``phase`` belong to the training thread, ``beat`` and ``state`` to the event
    loop; the others may be called from any thread.
    """

    def __init__(
        self, memory: mmap.mmap, monotonic_ns: Callable[[], int], bell: bytes = b""
    ) -> None:
        self._memory = memory
        self._bell = bell
        self._words = memoryview(memory).cast("Q")
        self._monotonic_ns = monotonic_ns
        self._lock = threading.Lock()
        self._deadlines: dict[str, int] = {}
        self._state = WorkerState.STARTING
        self._last_signal = 0

    @classmethod
    def create(
        cls,
        folder: Path,
        name: str = layout.NAME,
        *,
        monotonic_ns: Callable[[], int] = time.monotonic_ns,
    ) -> Self:
        """Take over the block of a run's folder, or make it. Whoever calls this holds the run.

        Emergencies that an earlier process left and nobody relayed stay in it.

        Raises:
            OSError: The file can't be made, or the disk has no room for it.
        """
        path = folder / name
        memory = _usable(path)
        if memory is None:
            memory = _made(path)
        signals = cls(memory, monotonic_ns, waking.address(folder, name))
        signals._begin()
        return signals

    @classmethod
    def private(cls, *, monotonic_ns: Callable[[], int] = time.monotonic_ns) -> Self:
        """Signals that nobody sees."""
        signals = cls(mmap.mmap(-1, layout.SIZE), monotonic_ns)
        signals._begin()
        return signals

    # The training thread's

    def step(self, number: int) -> None:
        """A step is done: the heartbeat. Costs a fraction of a microsecond."""
        words = self._words
        words[layout.STEP_WORD] = number
        words[layout.PROGRESS_WORD] = self._monotonic_ns()

    def begin(self, step: int) -> None:
        """Training begins at this step. The first one may take long: it may compile."""
        self._words[layout.STEP_WORD] = step
        self._words[layout.FIRST_STEP_WORD] = step
        self._words[layout.PHASE_WORD] = Phase.TRAINING
        self.progress()

    def training(self) -> tuple[float, Phase, bool]:
        """How the training thread is; for any thread.

        Returns:
            Seconds since it last got on, what it is doing, and whether it has made a step.
        """
        words = self._words
        quiet = (self._monotonic_ns() - words[layout.PROGRESS_WORD]) / 1e9
        # Not "further": after a rollback it may be behind where it began.
        made = words[layout.STEP_WORD] != words[layout.FIRST_STEP_WORD]
        return max(quiet, 0.0), Phase(words[layout.PHASE_WORD]), made

    def progress(self) -> None:
        """Something else than a step got on: a batch of a validation, say."""
        self._words[layout.PROGRESS_WORD] = self._monotonic_ns()

    @contextmanager
    def phase(self, phase: Phase) -> Iterator[None]:
        """Do something else than training steps meanwhile."""
        before = self._words[layout.PHASE_WORD]
        self._words[layout.PHASE_WORD] = phase
        self.progress()
        try:
            yield
        finally:
            self.progress()
            self._words[layout.PHASE_WORD] = before

    # The event loop's

    def beat(self) -> None:
        """The event loop goes round."""
        self._words[layout.BEAT_WORD] = self._monotonic_ns()

    def state(self, state: WorkerState) -> None:
        """How the worker is. Once it is stopping, only an end follows."""
        with self._lock:
            if self._state < WorkerState.STOPPING or state.ended:
                self._state = state
                self._words[layout.STATE_WORD] = state

    @property
    def last_state(self) -> WorkerState:
        """The state that was last set."""
        return self._state

    def end(self, state: WorkerState, reason: str = "") -> None:
        """The worker ends: how, and why, in one line."""
        text = reason.encode("utf-8", "replace")[: layout.REASON_BYTES - 16]
        start = layout.REASON
        self._memory[start + 16 : start + 16 + len(text)] = text
        self._words[start // layout.WORD + 1] = len(text)
        self._words[start // layout.WORD] = layout.crc(text)
        self.state(state)

    # Anybody's

    def deadline(self, name: str, seconds: float) -> Deadline:
        """Say that something must be over within so many seconds, or the world is told.

        Args:
            name: What, at most 40 bytes; the same name again begins anew.
            seconds: From now on.

        Raises:
            ValueError: The name doesn't fit.
            RuntimeError: More deadlines at a time than there is room for.
        """
        label = name.encode()
        if not label or len(label) > layout.NAME_BYTES:
            raise ValueError(
                f"deadline {name!r}: its name must have 1 to {layout.NAME_BYTES} bytes"
            )
        with self._lock:
            slot = self._deadlines.get(name)
            if slot is None:
                free = set(range(layout.DEADLINE_COUNT)) - set(self._deadlines.values())
                if not free:
                    raise RuntimeError(
                        f"deadline {name!r}: {layout.DEADLINE_COUNT} are set already"
                    )
                slot = self._deadlines[name] = min(free)
            self._arm(slot, label, seconds)
        waking.ring(self._bell)
        return Deadline(self, name)

    def clear(self, name: str) -> None:
        """It was over in time, or is over now; of a deadline that isn't set, nothing happens."""
        with self._lock:
            slot = self._deadlines.pop(name, None)
            if slot is not None:
                self._words[_deadline(slot) // layout.WORD] = 0

    def emergency(self, payload: bytes) -> bool:
        """Leave a serialised ``EmergencySignal`` for the supervisor to send, should we not.

        Returns:
            False if it is larger than a slot; then only the bus carries it.
        """
        if len(payload) > layout.SIGNAL_LARGEST:
            return False
        with self._lock:
            number = self._last_signal + 1
            start = layout.SIGNALS + number % layout.SIGNAL_COUNT * layout.SIGNAL_BYTES
            word = start // layout.WORD
            record = layout.SIGNAL_RECORD.pack(self._monotonic_ns(), len(payload)) + payload
            self._words[word] = 0
            self._memory[start + 16 : start + 16 + len(record)] = record
            self._words[word + 1] = layout.crc(record)
            self._words[word] = number
            self._last_signal = number
        waking.ring(self._bell)
        return True

    def close(self) -> None:
        """Let go of the memory; the file stays, for whoever asks how the worker ended."""
        self._words.release()
        self._memory.close()

    def _begin(self) -> None:
        """Write everything that is the start's; the identity last."""
        words = self._words
        for slot in range(layout.DEADLINE_COUNT):
            words[_deadline(slot) // layout.WORD] = 0
        words[layout.REASON // layout.WORD] = 0
        for word in (layout.STEP_WORD, layout.FIRST_STEP_WORD):
            words[word] = 0
        words[layout.PHASE_WORD] = Phase.LOADING
        words[layout.STATE_WORD] = WorkerState.STARTING
        self.progress()
        self.beat()
        self._last_signal = max(
            words[(layout.SIGNALS + slot * layout.SIGNAL_BYTES) // layout.WORD]
            for slot in range(layout.SIGNAL_COUNT)
        )
        start = layout.IDENTITY
        earlier = int.from_bytes(self._memory[start : start + layout.WORD], "little")
        record = layout.IDENTITY_RECORD.pack(
            earlier + 1, os.getpid(), layout.process_began(os.getpid()), layout.boot_id()
        )
        self._memory[start : start + len(record)] = record
        words[(start + len(record)) // layout.WORD] = layout.crc(record)

    def _arm(self, slot: int, label: bytes, seconds: float) -> None:
        start = _deadline(slot)
        word = start // layout.WORD
        now = self._monotonic_ns()
        record = layout.DEADLINE_RECORD.pack(now, label)
        due = now + int(seconds * 1e9)
        self._words[word] = 0
        self._memory[start + 16 : start + 16 + len(record)] = record
        self._words[word + 1] = layout.crc(due.to_bytes(8, "little") + record)
        self._words[word] = due


def _deadline(slot: int) -> int:
    return layout.DEADLINES + slot * layout.DEADLINE_BYTES


def _usable(path: Path) -> mmap.mmap | None:
    """The block that is there, if it is one of ours and of this version."""
    try:
        with path.open("r+b") as file:
            if os.fstat(file.fileno()).st_size != layout.SIZE:
                return None
            memory = mmap.mmap(file.fileno(), layout.SIZE)
    except FileNotFoundError:
        return None
    if is_block(memory):
        return memory
    memory.close()
    return None


def is_block(memory: mmap.mmap) -> bool:
    """Is this a signal block of this version?"""
    header = memory[:24]
    words = [int.from_bytes(header[at : at + 8], "little") for at in (0, 8, 16)]
    return words == [layout.MAGIC, layout.VERSION, layout.SIZE]


def _made(path: Path) -> mmap.mmap:
    """A new block, put in its place whole."""
    scratch = path.with_name(f".{path.name}.{os.getpid()}")
    with scratch.open("w+b") as file:
        try:
            # Room on the disk, now: where it is full, a map into a hole kills its writer.
            os.posix_fallocate(file.fileno(), 0, layout.SIZE)
        except OSError:
            scratch.unlink()
            raise
        memory = mmap.mmap(file.fileno(), layout.SIZE)
    header = (layout.MAGIC, layout.VERSION, layout.SIZE)
    memory[:24] = b"".join(value.to_bytes(8, "little") for value in header)
    scratch.replace(path)
    return memory
