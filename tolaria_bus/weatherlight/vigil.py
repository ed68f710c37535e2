"""Watching one process of a worker, from its start or its adoption to its end.

How it is, ``judging`` says; what it wants said, ``relay`` says for it. Here it is ended where it
hangs: its stacks are saved, then it is killed, with all that it started. SIGKILL, because a process
that hangs obeys nothing less, and because nothing is lost by it.
"""

from __future__ import annotations

import socket
import time
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Final

import anyio

from tolaria_bus.safety import Phase, SignalView, WorkerState, layout, waking
from tolaria_bus.safety.watching import Identity
from tolaria_bus.weatherlight.judging import Health, Judge, Look
from tolaria_bus.weatherlight.process import STACKS, WorkerProcess
from tolaria_bus.weatherlight.relay import Relay
from tolaria_bus.weatherlight.telling import Teller
from tolaria_bus.weatherlight.terms import Terms

TICK: Final = 0.1
"""Seconds between two looks at a block, and two questions to the kernel whether its writer lives.

What must be heard at once, an emergency or a deadline, rings."""
BLIND_TICK: Final = 0.02
"""Between two looks where there is no bell."""
_DRAIN_MARGIN: Final = 10.0
"""Seconds that a worker gets for leaving on top of its own deadline for that."""
_STACK_SHOWN: Final = 4000
"""Letters of a stack in an alert."""


@dataclass(slots=True)
class Condition:
    """How a run's worker is, over all of its processes.

    Attributes:
        health: In one word.
        step: Its newest.
        step_seconds: What its steps took lately.
        quiet: Seconds since it last got on.
        hangs: How often it hung.
    """

    health: Health = Health.STARTING
    step: int = 0
    step_seconds: float = 0.0
    quiet: float = 0.0
    hangs: int = 0


@dataclass(frozen=True, slots=True)
class End:
    """How a process ended.

    Attributes:
        state: FINISHED, STOPPED, TAKEN or FAILED.
        how: ``exit code 1``, ``SIGKILL``, ``hung``; empty where it is no matter.
        reason: What it said, one line.
        step: The newest.
        began: With which step it began; 0 if it didn't get so far.
    """

    state: WorkerState
    how: str
    reason: str
    step: int
    began: int = 0


class Vigil:
    """Watches one process.

    Args:
        run: The run's id.
        process: The process.
        view: The run's signal block.
        condition: Kept up to date.
        terms: How it is treated.
        teller: Tells.
        relay: Speaks for it.
    """

    def __init__(
        self,
        run: str,
        process: WorkerProcess,
        view: SignalView,
        condition: Condition,
        *,
        terms: Terms,
        teller: Teller,
        relay: Relay,
    ) -> None:
        self._run = run
        self._process = process
        self._view = view
        self._condition = condition
        self._terms = terms
        self._teller = teller
        self._relay = relay
        self._judge = Judge(hang=terms.hang, start=terms.start)
        self._frozen = False

    async def keep(self, stop: anyio.Event) -> End:
        """Watch until the process is gone, or has to be ended.

        Args:
            stop: Once it is set, the process is asked to stop.
        """
        with waking.listening(waking.address(self._process.folder, layout.NAME)) as bell:
            return await self._keep(stop, bell)

    async def _keep(self, stop: anyio.Event, bell: socket.socket | None) -> End:
        process, view = self._process, self._view
        leaving_since: float | None = None
        asked, ask_next = False, 0.0
        while True:
            if time.monotonic() >= ask_next:
                ask_next = time.monotonic() + TICK
                view.refresh()
                if not process.alive():
                    return self._ended()
                self._look_for_a_freeze()
            self._look()
            if self._condition.health is Health.HUNG:
                return await self._end_hung()
            now = time.monotonic()
            if stop.is_set() and not asked:
                asked, leaving_since = True, now
                process.ask_to_stop()
            if self._condition.health is Health.ENDED and leaving_since is None:
                # It is done; something of its user's may still keep it from leaving.
                leaving_since = now
            if leaving_since is not None and now - leaving_since > self._patience:
                return await self._end_lingering()
            await waking.rung(bell, self._until_next_look(blind=bell is None))

    def _until_next_look(self, *, blind: bool) -> float:
        due = self._relay.next_due_ns
        if blind or not due:
            return BLIND_TICK if blind else TICK
        # At its very moment a deadline isn't overrun yet.
        return min(TICK, max(0, due - time.monotonic_ns()) / 1e9 + 0.001)

    @property
    def _patience(self) -> float:
        return self._terms.drain.total_seconds() + _DRAIN_MARGIN

    @property
    def _identity(self) -> Identity | None:
        """The block's writer, if that is this process: not before it has got so far."""
        identity, process = self._view.identity, self._process
        if identity is None or (identity.pid, identity.began) != (process.pid, process.began):
            return None
        return identity

    def _look(self) -> None:
        view, condition = self._view, self._condition
        identity = self._identity
        now = time.monotonic()
        if identity is None:
            look = Look(now, WorkerState.STARTING, Phase.LOADING, 0, False, 0, 0)
        else:
            self._relay.look(view, identity)
            condition.step = view.step
            look = Look(
                now=now,
                state=view.state,
                phase=view.phase,
                step=view.step,
                made_a_step=view.made_a_step,
                progress_ns=view.progress_ns,
                beat_ns=view.beat_ns,
            )
        before, condition.health = condition.health, self._judge.look(look)
        condition.quiet, condition.step_seconds = self._judge.quiet, self._judge.step_seconds
        if condition.health is not before:
            self._tell_change(before)

    def _tell_change(self, before: Health) -> None:
        condition = self._condition
        if condition.health is Health.SLOW:
            took = condition.step_seconds
            self._teller.event(
                self._run,
                "worker_slow",
                f"no step for {condition.quiet:.1f} s; they took {took:.3g} s",
                step=condition.step,
                warning=True,
            )
        elif condition.health is Health.WORKING and before in (Health.STARTING, Health.SLOW):
            self._teller.event(self._run, "worker_works", "it makes steps", step=condition.step)

    def _look_for_a_freeze(self) -> None:
        process, frozen = self._process, self._process.frozen
        if frozen and not self._frozen:
            self._teller.alert(
                self._run,
                "worker_frozen",
                f"process {process.pid} was stopped by a signal (SIGSTOP, a debugger); "
                "if nobody lets it go on it counts as hanging",
                step=self._condition.step,
                pid=process.pid,
            )
        self._frozen = frozen

    # Its end

    def _ended(self) -> End:
        process, view = self._process, self._view
        identity, how = self._identity, process.ended_by
        if identity is None:
            state = WorkerState.FINISHED if process.succeeded else WorkerState.FAILED
            return self._end(state, how or "died", process.last_words())
        self._relay.look(view, identity)
        self._condition.step = view.step
        state = view.state
        if state is WorkerState.STOPPING:
            # On its way out it left by its deadline, or a second signal.
            return self._end(WorkerState.STOPPED, how)
        if not state.ended:
            state, how = WorkerState.FAILED, how or "died"
        return self._end(state, how, view.reason or process.last_words())

    async def _end_hung(self) -> End:
        process, view, condition = self._process, self._view, self._condition
        condition.hangs += 1
        frozen = process.frozen
        cause = "frozen" if frozen else self._judge.cause
        what = "it is stopped by a signal" if frozen else f"its {cause} got no further"
        stacks = "" if frozen or self._identity is None else await self._dump_stacks(cause)
        self._teller.alert(
            self._run,
            "worker_hung",
            f"process {process.pid} hangs: {what} for over {self._judge.limit:.3g} s, "
            f"at step {condition.step}; it is ended",
            critical=True,
            step=condition.step,
            pid=process.pid,
            cause=cause,
            state=view.state.name.lower(),
            phase=view.phase.name.lower(),
            stacks=str(process.folder / STACKS) if stacks else "",
            stack=_shown(stacks),
        )
        await process.kill()
        # What it still left meanwhile.
        self._relay.signals(view)
        stopping = view.state is WorkerState.STOPPING
        return self._end(WorkerState.STOPPED if stopping else WorkerState.FAILED, "hung", what)

    async def _end_lingering(self) -> End:
        process, state = self._process, self._view.state
        self._teller.alert(
            self._run,
            "worker_killed",
            f"process {process.pid} didn't leave within {self._patience:g} s; "
            "its journal has everything",
            step=self._condition.step,
            pid=process.pid,
        )
        await process.kill()
        self._relay.signals(self._view)
        return self._end(state if state.ended else WorkerState.STOPPED, "killed")

    def _end(self, state: WorkerState, how: str, reason: str = "") -> End:
        began = 0 if self._identity is None else self._view.first_step
        return End(state, how, reason, self._condition.step, began)

    async def _dump_stacks(self, cause: str) -> str:
        now = datetime.now(UTC).isoformat(timespec="seconds")
        pid, step = self._process.pid, self._condition.step
        try:
            with (self._process.folder / STACKS).open("a") as file:
                file.write(f"\n--- {now} process {pid}, step {step}: {cause} hangs\n")
            return await self._process.dump_stacks()
        except OSError as error:
            # Where the disk is full, too, the worker has to be ended.
            self._teller.event(self._run, "no_stacks", str(error), step=step, warning=True)
            return ""


def _shown(stacks: str) -> str:
    """The stack that matters: of the thread that trains, if it can be found."""
    threads = stacks.split("\n\n")
    training = [thread for thread in threads if "/tolaria/trainer.py" in thread]
    return "\n\n".join(training or threads)[:_STACK_SHOWN]
