"""One run and its worker: starts or adopts it, has it watched, and starts it again when it died.

The restarted worker recovers by itself: last good checkpoint, then its journal.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

import anyio

from tolaria_bus.leyline import EmergencySignal
from tolaria_bus.safety import SignalView, WorkerState
from tolaria_bus.safety.emergency_signal import concerns
from tolaria_bus.safety.passing import pass_on
from tolaria_bus.weatherlight.fleet import Planned
from tolaria_bus.weatherlight.judging import Health
from tolaria_bus.weatherlight.process import SERVER_VARIABLE, WorkerProcess
from tolaria_bus.weatherlight.relay import Relay
from tolaria_bus.weatherlight.restarts import Restarts
from tolaria_bus.weatherlight.systemd import withheld
from tolaria_bus.weatherlight.telling import Teller
from tolaria_bus.weatherlight.terms import Terms
from tolaria_bus.weatherlight.vigil import Condition, End, Vigil

_SERVER_POLL: Final = 0.25  # seconds


class Keeper:
    """Keeps one run going.

    Args:
        planned: The worker.
        terms: How it is treated.
        teller: Tells.
        server_up: Is the server there? A worker can't start without it.
        tell_others: Gives a signal of its worker to those beside it.

    Attributes:
        condition: How the worker is.
        process: Its process, while there is one.
        relay: Speaks for it.
        restarts: Counts.
        given_up: It is not started any more.
    """

    def __init__(
        self,
        planned: Planned,
        terms: Terms,
        teller: Teller,
        *,
        server_up: Callable[[], bool] = lambda: True,
        tell_others: Callable[[EmergencySignal], None] = lambda signal: None,
    ) -> None:
        self.run_id = planned.run
        self.folder = planned.folder
        self.condition = Condition()
        self.process: WorkerProcess | None = None
        self.relay = Relay(planned.run, teller, pass_on=tell_others)
        self.restarts = Restarts(limit=terms.restarts, first=terms.first_wait.total_seconds())
        self.given_up = False
        self._planned = planned
        self._terms = terms
        self._teller = teller
        self._server_up = server_up
        self._stop = anyio.Event()
        self._moving = False

    def stop(self) -> None:
        """Ask the worker to stop in good order; the second time, at once."""
        if self._stop.is_set() and self.process is not None:
            self.process.ask_to_stop()
        self._stop.set()

    def hear(self, signal: EmergencySignal) -> None:
        """Give the worker another one's signal, if it has to obey it."""
        if not concerns(signal, self.run_id):
            return
        try:
            pass_on(self.folder, signal)
        except OSError as error:
            # The bus carries it as well.
            self._teller.event(self.run_id, "not_passed_on", str(error), warning=True)

    async def run(self) -> None:
        """Keep the run going to its end."""
        with SignalView(self.folder) as view:
            while True:
                # Also after a death: it may have died of one that was just starting without us.
                process = self._adopt(view) or await self._start()
                if process is None:
                    return
                pid = process.pid
                end = await self._see_through(process, view)
                if self._moved(end) or self._another_has_it(end, view, pid):
                    continue
                if self._is_over(end) or not await self._wait_for_restart(end, pid):
                    return

    async def _see_through(self, process: WorkerProcess, view: SignalView) -> End:
        vigil = Vigil(
            self.run_id,
            process,
            view,
            self.condition,
            terms=self._terms,
            teller=self._teller,
            relay=self.relay,
        )
        self.process = process
        stop = self._stop
        if self._moving:
            # In good order, though nobody wants the run to end.
            stop = anyio.Event()
            stop.set()
        try:
            return await vigil.keep(stop)
        finally:
            self.process = None

    # Its beginning

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

    def _another_has_it(self, end: End, view: SignalView, pid: int) -> bool:
        """Did it only fail because the run was taken meanwhile?

        So it is with the worker that a killed Weatherlight had just started: it shows itself in the
        block only once it has imported everything. Nobody has to know more than that it is adopted.
        """
        if end.state is not WorkerState.FAILED:
            return False
        view.refresh()
        identity = view.identity
        return identity is not None and identity.pid != pid and identity.lives()

    async def _start(self) -> WorkerProcess | None:
        """Start a process; ``None`` if it isn't wanted any more, or can't be."""
        while await self._server_is_there():
            try:
                process = WorkerProcess.spawn(
                    self._words(), self.folder, self._environment(), inherit=self._terms.inherit
                )
            except OSError as error:
                how = f"it can't be started: {error}"
                end = End(WorkerState.FAILED, how, "", self.condition.step)
                if not await self._wait_for_restart(end):
                    return None
            else:
                self._teller.event(
                    self.run_id, "worker_started", f"as process {process.pid}", pid=process.pid
                )
                return process
        return None

    async def _server_is_there(self) -> bool:
        """Wait for the server. False: a stop was asked for."""
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

    def _words(self) -> list[str]:
        planned = self._planned
        words = ["worker", planned.job, "--run", planned.run, "--run-dir", str(planned.folder)]
        for setting in planned.settings:
            words += ["--set", setting]
        return words

    def _environment(self) -> dict[str, str]:
        return {**withheld(dict(self._terms.environment)), **self._planned.environment}

    # Its end

    def _moved(self, end: End) -> bool:
        moving, self._moving = self._moving, False
        return moving and end.state is WorkerState.STOPPED and not self._stop.is_set()

    def _is_over(self, end: End) -> bool:
        """Did it come to an end that is meant?"""
        if end.state is WorkerState.FAILED and not self._stop.is_set():
            return False
        self.condition.health = Health.ENDED
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

    async def _wait_for_restart(self, end: End, pid: int = 0) -> bool:
        """Tell of a death and wait. False: it is not started again.

        Args:
            end: How it died.
            pid: Which process; 0: it never was one.
        """
        wait = self.restarts.died(end.step, end.began)
        count, limit = self.restarts.in_a_row, self._terms.restarts
        text = f"{end.how} at step {end.step}: {end.reason or 'no reason given'}; "
        about: dict[str, Any] = {
            "how": end.how,
            "reason": end.reason,
            **({"pid": pid} if pid else {}),
        }
        if wait is None:
            self.given_up, self.condition.health = True, Health.ENDED
            self._teller.alert(
                self.run_id,
                "worker_given_up",
                f"{text}not started again after {limit} restarts that got it no further",
                critical=True,
                step=end.step,
                restarts=limit,
                **about,
            )
            return False
        self.condition.health = Health.STARTING
        self._teller.alert(
            self.run_id,
            "worker_died",
            f"{text}started again in {wait:.3g} s ({count} of {limit})",
            step=end.step,
            restart=count,
            **about,
        )
        with anyio.move_on_after(wait):
            await self._stop.wait()
        return not self._stop.is_set()
