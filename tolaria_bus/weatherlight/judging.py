"""Is a worker at work, slow, or hanging? Decided from what its signal block says, look by look.

A worker hangs when its training thread or its event loop gets no further for longer than the limit.
While it is paused or halted its training thread owes nothing, its event loop does. Until the first
step of a process (which loads, builds, restores, compiles), and while it waits for a checkpoint to
be on disk, the limit is another one. A run whose steps are long by nature has a longer one: ten
times what its steps take.

Only time in which we looked counts. Whoever was asleep itself, with its machine or by a signal,
has no right to call others slow: a gap between two looks counts as little as an ordinary one.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import timedelta
from enum import Enum
from typing import Final

from tolaria_bus.safety import Phase, WorkerState, may_take_as_a_start

LONGEST_GAP: Final = 1.0
"""Seconds between two looks that are believed; of a longer gap so much counts."""
_USUAL: Final = 10.0
"""A step may take so many times what steps took lately before it counts as hanging."""
_SLOW: Final = 5.0
"""Likewise for slow."""
_SLOW_SECONDS: Final = 1.0
"""Nothing shorter is called slow."""
_FADING: Final = 0.8
"""Of the mean of step times: how much of it one step leaves."""


class Health(Enum):
    """How a worker is, in one word; also the label of its metrics."""

    STARTING = "starting"
    WORKING = "working"
    SLOW = "slow"
    HUNG = "hung"
    PAUSED = "paused"
    HALTED = "halted"
    STOPPING = "stopping"
    ENDED = "ended"


_QUIET: Final = {
    WorkerState.PAUSED: Health.PAUSED,
    WorkerState.HALTED: Health.HALTED,
    WorkerState.STOPPING: Health.STOPPING,
}
"""States in which no step is owed."""


@dataclass(frozen=True, slots=True)
class Look:
    """What a worker's block said at one time.

    Attributes:
        now: When, in seconds of our monotonic clock.
        state: The worker's.
        phase: Of its training thread.
        step: The newest step done.
        made_a_step: This process has made one.
        progress_ns: When its training thread last got on.
        beat_ns: When its event loop last went round.
    """

    now: float
    state: WorkerState
    phase: Phase
    step: int
    made_a_step: bool
    progress_ns: int
    beat_ns: int


@dataclass(slots=True)
class _Quiet:
    """How long a word hasn't changed, as far as we looked."""

    word: int = -1
    seconds: float = 0.0

    def look(self, word: int, gap: float) -> None:
        if word == self.word:
            self.seconds += gap
        else:
            self.word, self.seconds = word, 0.0


class Judge:
    """Judges one process of one worker; a new process gets a new one.

    Args:
        hang: How long a worker may get no further.
        start: Likewise until its first step.

    Attributes:
        cause: While it hangs: ``training`` or ``event loop``.
        step_seconds: What its steps took lately; 0 before the first.
    """

    def __init__(self, *, hang: timedelta, start: timedelta) -> None:
        self.cause = ""
        self.step_seconds = 0.0
        self._hang = hang.total_seconds()
        self._start = start.total_seconds()
        self._training = _Quiet()
        self._loop = _Quiet()
        self._last: Look | None = None

    @property
    def quiet(self) -> float:
        """Seconds since the training thread last got on, as far as we looked."""
        return self._training.seconds

    @property
    def limit(self) -> float:
        """Seconds after which the worker counts as hanging, as it is now."""
        last = self._last
        if last is None or last.state is WorkerState.STARTING:
            return max(self._start, self._hang)
        if may_take_as_a_start(last.phase, made_a_step=last.made_a_step):
            return max(self._start, self._hang)
        return max(self._hang, _USUAL * self.step_seconds)

    def look(self, look: Look) -> Health:
        """Take note of a look and judge."""
        before, self._last = self._last, look
        gap = 0.0 if before is None else min(max(look.now - before.now, 0.0), LONGEST_GAP)
        self._loop.look(look.beat_ns, gap)
        self._training.look(look.progress_ns, gap)
        if look.state in _QUIET:
            self._training.seconds = 0.0
        elif before is not None:
            self._time_steps(before, look)
        return self._judge(look)

    def _judge(self, look: Look) -> Health:
        self.cause = ""
        if look.state.ended:
            return Health.ENDED
        limit = self.limit
        if self._loop.seconds > limit:
            # First: whoever holds the interpreter's lock keeps both from going on.
            self.cause = "event loop"
        elif self._training.seconds > limit:
            self.cause = "training"
        if self.cause:
            return Health.HUNG
        if look.state in _QUIET:
            return _QUIET[look.state]
        if look.state is WorkerState.STARTING or not look.made_a_step:
            return Health.STARTING
        usual = max(_SLOW * self.step_seconds, _SLOW_SECONDS)
        if look.phase is Phase.TRAINING and self._training.seconds > usual:
            return Health.SLOW
        return Health.WORKING

    def _time_steps(self, before: Look, look: Look) -> None:
        """The mean of what steps take, each of the last ones counting for more."""
        steps = look.step - before.step
        if steps <= 0 or before.phase is not Phase.TRAINING or before.state in _QUIET:
            return
        seconds = max(look.progress_ns - before.progress_ns, 0) / 1e9 / steps
        kept = _FADING**steps if self.step_seconds else 0.0
        self.step_seconds = kept * self.step_seconds + (1.0 - kept) * seconds
