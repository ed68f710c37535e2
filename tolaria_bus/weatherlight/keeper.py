"""One run and its worker: starts or adopts it, watches it, ends it when it hangs, starts it again.

What is done about a worker is decided here; how it is, in ``judging``; what it wants said, in
``relay``. The restarted worker recovers by itself: last good checkpoint, then its journal.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any, Final, Self

import anyio

from tolaria_bus.safety import Phase, SignalView, WorkerState
from tolaria_bus.safety.watching import Identity
from tolaria_bus.settings import Settings
from tolaria_bus.weatherlight.fleet import Planned
from tolaria_bus.weatherlight.judging import Health, Judge, Look
from tolaria_bus.weatherlight.process import SERVER_VARIABLE, STACKS, WorkerProcess
from tolaria_bus.weatherlight.relay import Relay
from tolaria_bus.weatherlight.restarts import Restarts
from tolaria_bus.weatherlight.systemd import withheld
from tolaria_bus.weatherlight.telling import Teller

TICK: Final = 0.02
"""Seconds between two looks at a block: a signal that is left there is sent within these."""
_ALIVE_EVERY: Final = 5
"""Looks between two questions to the kernel whether the process is there."""
_DRAIN_MARGIN: Final = 10.0
"""Seconds that a worker gets for leaving on top of its own deadline for that."""
_SERVER_POLL: Final = 0.25  # seconds
_STACK_SHOWN: Final = 4000  # letters of a stack in an alert


@dataclass(frozen=True, slots=True)
class Terms:
    """How a worker is treated.

    Attributes:
        hang: How long it may get no further.
        start: Likewise until its first step.
        drain: How long it takes to leave in good order, at most.
        restarts: In a row without progress, before it is given up.
        first_wait: Before the first of them.
        environment: Of its process.
        inherit: It writes where we do, and not into its run's folder.
    """

    hang: timedelta
    start: timedelta
    drain: timedelta
    restarts: int
    first_wait: timedelta
    environment: Mapping[str, str]
    inherit: bool = False

    @classmethod
    def of(cls, settings: Settings, environment: Mapping[str, str], *, inherit: bool) -> Self:
        """As a worker's settings have it."""
        return cls(
            hang=timedelta(seconds=settings.hang_seconds),
            start=timedelta(seconds=settings.start_seconds),
            drain=timedelta(seconds=settings.drain_seconds),
            restarts=settings.restart_limit,
            first_wait=timedelta(seconds=settings.restart_seconds),
            environment=environment,
            inherit=inherit,
        )


@dataclass(frozen=True, slots=True)
class _End:
    """How a process ended."""

    state: WorkerState
    how: str
    reason: str
    step: int


class Keeper:
    """Keeps one run going.

    Args:
        planned: The worker.
        terms: How it is treated.
        teller: Tells.
        server_up: Is the server there? A worker can't start without it.

    Attributes:
        health: How the worker is.
        step: Its newest.
        step_seconds: What its steps took lately.
        quiet: Seconds since it last got on.
        process: Its process, while there is one.
        relay: Speaks for it.
        restarts: Counts.
        hangs: How often it hung.
        given_up: It is not started any more.
        done: Nothing more is to be done: it came to its end, was stopped or given up.
    """

    def __init__(
        self,
        planned: Planned,
        terms: Terms,
        teller: Teller,
        *,
        server_up: Callable[[], bool] = lambda: True,
    ) -> None:
        self.run_id = planned.run
        self.folder = planned.folder
        self.health = Health.STARTING
        self.step = 0
        self.step_seconds = 0.0
        self.quiet = 0.0
        self.process: WorkerProcess | None = None
        self.relay = Relay(planned.run, teller)
        self.restarts = Restarts(limit=terms.restarts, first=terms.first_wait.total_seconds())
        self.hangs = 0
        self.given_up = False
        self.done = False
        self._planned = planned
        self._terms = terms
        self._teller = teller
        self._server_up = server_up
        self._stop = anyio.Event()
        self._frozen = False
        self._moving = False

    def stop(self) -> None:
        """Ask the worker to stop in good order; the second time, at once."""
        if self._stop.is_set() and self.process is not None:
            self.process.ask_to_stop()
        self._stop.set()

    async def run(self) -> None:
        """Keep the run going to its end."""
        with SignalView(self.folder) as view:
            while True:
                # Also after a death: it may have died of one that was just starting without us.
                process = self._adopt(view) or await self._start()
                if process is None:
                    break
                end = await self._see_through(view, process)
                moved, self._moving = self._moving, False
                if moved and end.state is WorkerState.STOPPED and not self._stop.is_set():
                    continue
                if self._is_over(end) or not await self._wait_for_restart(end):
                    break
        self.done = True

    def _adopt(self, view: SignalView) -> WorkerProcess | None:
        view.refresh()
        # What a dead worker left; of one that lives it is seen soon enough.
        self.relay.signals(view)
        identity = view.identity
        if identity is None or not identity.lives():
            return None
        process = WorkerProcess(self.folder, identity.pid, identity.began)
        # Its server may have come back elsewhere, as an embedded one can, or was replaced.
        theirs, ours = process.server_url, self._terms.environment.get(SERVER_VARIABLE, "")
        self._moving = bool(theirs and ours and theirs != ours)
        then = "; it is started again with the server that there is now" if self._moving else ""
        self._teller.event(
            self.run_id,
            "worker_adopted",
            f"process {identity.pid} runs already, at step {view.step}{then}",
            step=view.step,
            pid=identity.pid,
        )
        return process

    async def _start(self) -> WorkerProcess | None:
        """Start a process; ``None`` if it isn't wanted any more, or can't be."""
        while True:
            if not await self._server_is_there():
                return None
            try:
                process = WorkerProcess.spawn(
                    self._words(), self.folder, self._environment(), inherit=self._terms.inherit
                )
            except OSError as error:
                end = _End(WorkerState.FAILED, f"can't be started: {error}", "", self.step)
                if not await self._wait_for_restart(end):
                    return None
            else:
                self._teller.event(
                    self.run_id, "worker_started", f"as process {process.pid}", pid=process.pid
                )
                return process

    async def _server_is_there(self) -> bool:
        told = False
        while not self._stop.is_set():
            if self._server_up():
                return True
            if not told:
                told = True
                self._teller.event(
                    self.run_id, "worker_waits", "it is started when the server is there"
                )
            await anyio.sleep(_SERVER_POLL)
        return False

    async def _see_through(self, view: SignalView, process: WorkerProcess) -> _End:
        """Watch a process to its end."""
        self.process, self._frozen = process, False
        judge = Judge(hang=self._terms.hang, start=self._terms.start)
        stopping_since: float | None = None
        looks = 0
        try:
            while True:
                if looks % _ALIVE_EVERY == 0:
                    view.refresh()
                    if not process.alive():
                        return self._ended(view, process)
                    self._look_for_a_freeze(process)
                looks += 1
                identity = self._ours(view, process)
                self._look(view, identity, judge)
                if self.health is Health.HUNG:
                    return await self._end_hung(view, process, identity, judge)
                now = time.monotonic()
                if (self._stop.is_set() or self._moving) and stopping_since is None:
                    stopping_since = now
                    process.ask_to_stop()
                drain = self._terms.drain.total_seconds() + _DRAIN_MARGIN
                if stopping_since is not None and now - stopping_since > drain:
                    return await self._end_unstoppable(view, process)
                await anyio.sleep(TICK)
        finally:
            self.process = None

    def _ours(self, view: SignalView, process: WorkerProcess) -> Identity | None:
        """The block's writer, if that is this process and not yet or no longer another."""
        identity = view.identity
        if identity is None or (identity.pid, identity.began) != (process.pid, process.began):
            return None
        return identity

    def _look(self, view: SignalView, identity: Identity | None, judge: Judge) -> None:
        now = time.monotonic()
        if identity is None:
            # It hasn't got as far as to have a block.
            look = Look(now, WorkerState.STARTING, Phase.LOADING, 0, False, 0, 0)
        else:
            self.relay.look(view, identity)
            self.step = view.step
            look = Look(
                now,
                view.state,
                view.phase,
                view.step,
                view.made_a_step,
                view.progress_ns,
                view.beat_ns,
            )
        before, self.health = self.health, judge.look(look)
        self.quiet, self.step_seconds = judge.quiet, judge.step_seconds
        if self.health is not before:
            self._tell_change(before)

    def _tell_change(self, before: Health) -> None:
        if self.health is Health.SLOW:
            self._teller.event(
                self.run_id,
                "worker_slow",
                f"no step for {self.quiet:.1f} s; they took {self.step_seconds:.3g} s",
                step=self.step,
                warning=True,
            )
        elif self.health is Health.WORKING and before in (Health.STARTING, Health.SLOW):
            self._teller.event(self.run_id, "worker_works", "it makes steps", step=self.step)

    def _look_for_a_freeze(self, process: WorkerProcess) -> None:
        frozen = process.frozen
        if frozen and not self._frozen:
            self._teller.alert(
                self.run_id,
                "worker_frozen",
                f"process {process.pid} was stopped by a signal (SIGSTOP, a debugger); "
                "if nobody lets it go on it counts as hanging",
                step=self.step,
                pid=process.pid,
            )
        self._frozen = frozen

    async def _end_hung(
        self,
        view: SignalView,
        process: WorkerProcess,
        identity: Identity | None,
        judge: Judge,
    ) -> _End:
        self.hangs += 1
        cause = "frozen" if process.frozen else judge.cause
        what = f"its {cause} got no further" if cause != "frozen" else "it is stopped by a signal"
        stacks = ""
        if identity is not None and cause != "frozen":
            self._mark_stacks(process, cause)
            stacks = await process.dump_stacks()
        step, state, phase = self.step, view.state, view.phase
        self._teller.alert(
            self.run_id,
            "worker_hung",
            f"process {process.pid} hangs: {what} for over {judge.limit:.3g} s, "
            f"at step {step}; it is ended",
            critical=True,
            step=step,
            pid=process.pid,
            cause=cause,
            state=state.name.lower(),
            phase=phase.name.lower(),
            stacks=str(self.folder / STACKS) if stacks else "",
            stack=_shown(stacks),
        )
        await process.kill()
        # What it still left meanwhile.
        self.relay.signals(view)
        return _End(WorkerState.FAILED, "hung", what, step)

    async def _end_unstoppable(self, view: SignalView, process: WorkerProcess) -> _End:
        seconds = self._terms.drain.total_seconds() + _DRAIN_MARGIN
        self._teller.alert(
            self.run_id,
            "worker_killed",
            f"process {process.pid} didn't stop within {seconds:g} s; its journal has everything",
            step=self.step,
            pid=process.pid,
        )
        await process.kill()
        self.relay.signals(view)
        return _End(WorkerState.STOPPED, "killed", "", self.step)

    def _ended(self, view: SignalView, process: WorkerProcess) -> _End:
        identity = self._ours(view, process)
        if identity is None:
            state = WorkerState.FINISHED if process.succeeded else WorkerState.FAILED
            return _End(state, process.ended_by or "died", process.last_words(), self.step)
        self.relay.look(view, identity)
        self.step = view.step
        state, how = view.state, process.ended_by
        if state is WorkerState.STOPPING:
            # On its way out it left by its deadline, or a second signal.
            return _End(WorkerState.STOPPED, how, "", self.step)
        if not state.ended:
            state, how = WorkerState.FAILED, how or "died"
        return _End(state, how, view.reason or process.last_words(), self.step)

    def _is_over(self, end: _End) -> bool:
        """Did it come to an end that is meant?"""
        if end.state is WorkerState.FAILED and not self._stop.is_set():
            return False
        self.health = Health.ENDED
        names = {
            WorkerState.FINISHED: "worker_finished",
            WorkerState.TAKEN: "worker_taken",
            WorkerState.FAILED: "worker_died",
        }
        texts = {
            WorkerState.TAKEN: "another worker has the run",
            WorkerState.FAILED: f"{end.how} while it was asked to stop: {end.reason}",
        }
        self._teller.event(
            self.run_id,
            names.get(end.state, "worker_stopped"),
            texts.get(end.state, f"at step {end.step}"),
            step=end.step,
            how=end.how,
        )
        return True

    async def _wait_for_restart(self, end: _End) -> bool:
        """Tell of a death and wait. False: it is not started again."""
        wait = self.restarts.died(end.step)
        count, limit = self.restarts.in_a_row, self._terms.restarts
        about: dict[str, Any] = {"how": end.how, "reason": end.reason}
        if wait is None:
            self.given_up, self.health = True, Health.ENDED
            self._teller.alert(
                self.run_id,
                "worker_given_up",
                f"{end.how} at step {end.step}: {end.reason or 'no reason given'}; "
                f"not started again after {limit} restarts that got it no further",
                critical=True,
                step=end.step,
                restarts=limit,
                **about,
            )
            return False
        self.health = Health.STARTING
        self._teller.alert(
            self.run_id,
            "worker_died",
            f"{end.how} at step {end.step}: {end.reason or 'no reason given'}; "
            f"started again in {wait:.3g} s ({count} of {limit})",
            step=end.step,
            restart=count,
            **about,
        )
        with anyio.move_on_after(wait):
            await self._stop.wait()
        return not self._stop.is_set()

    def _mark_stacks(self, process: WorkerProcess, cause: str) -> None:
        now = datetime.now(UTC).isoformat(timespec="seconds")
        line = f"\n--- {now} process {process.pid}, step {self.step}: {cause} hangs\n"
        try:
            with (self.folder / STACKS).open("a") as file:
                file.write(line)
        except OSError as error:
            # Where the disk is full, too, the worker has to be ended.
            self._teller.event(self.run_id, "stacks_unwritable", str(error), warning=True)

    def _words(self) -> list[str]:
        planned = self._planned
        words = ["worker", planned.job, "--run", planned.run, "--run-dir", str(planned.folder)]
        for setting in planned.settings:
            words += ["--set", setting]
        return words

    def _environment(self) -> dict[str, str]:
        return {**withheld(dict(self._terms.environment)), **self._planned.environment}


def _shown(stacks: str) -> str:
    """The stack that matters: of the thread that trains, if it can be found."""
    threads = stacks.split("\n\n")
    training = [thread for thread in threads if "/tolaria/trainer.py" in thread]
    return "\n\n".join(training or threads)[:_STACK_SHOWN]
