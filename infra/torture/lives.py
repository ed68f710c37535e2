"""One run from its first life to its end: started, disturbed, killed, started again."""

from __future__ import annotations

import contextlib
import random
import resource
import signal
import time
from collections import Counter
from dataclasses import dataclass, field
from typing import Any

from infra.torture.damage import spoil, tear
from infra.torture.nursery import Nursery
from infra.torture.operator import LAST, POLL, Operator
from infra.torture.orders import TRAPPED
from infra.torture.run import Run
from infra.torture.server import Server
from infra.torture.strikes import Eye, Strike, choose, wait_until
from infra.torture.worker import Worker
from tolaria_bus.cli.failures import USER_ERROR
from tolaria_bus.tolaria.control.outcomes import FATAL
from tolaria_bus.tolaria.recovery.ledger import CommandLedger
from tolaria_bus.worker.leaving import EXIT_AT_ONCE

LOOK = 0.0003
"""Seconds between two looks at what the worker does."""
ROOM_FOR_WORDS = 10_000
"""Bytes for a life's last words, such as a traceback."""
LIMIT = 900.0
"""Seconds that a run may take, kills and all; one that takes longer hangs."""
MOST_SPARED = 2
"""A command whose process was killed so often is let through: a third time it would be given up."""


class Failed(Exception):
    """The run did something that it must not do. One line."""


@dataclass
class Tally:
    """What was done to one run.

    Attributes:
        kills: By place.
        disturbances: What was done without killing, or to others than the worker.
        damage: What was done to files of the dead.
        recoveries: Lives that began where another had ended.
        cold: Lives started as new interpreters.
        trapped: Deaths by a command.
    """

    kills: Counter[str] = field(default_factory=Counter)
    disturbances: Counter[str] = field(default_factory=Counter)
    damage: Counter[str] = field(default_factory=Counter)
    recoveries: int = 0
    cold: int = 0
    trapped: int = 0


class Lives:
    """Lets a run live until it is finished.

    Args:
        run: Which.
        nursery: Starts its workers.
        operator: Steers it.
        server: Its server.
        kills: How often to kill it, 0 to leave it alone.
        freely: It is steered freely: then it may also be asked to leave, and the disk may be full
            at any time.
        chance: Decides everything.
    """

    def __init__(
        self,
        run: Run,
        nursery: Nursery,
        operator: Operator,
        server: Server,
        *,
        kills: int,
        chance: random.Random,
        freely: bool = False,
    ) -> None:
        self.tally = Tally()
        self._run = run
        self._nursery = nursery
        self._operator = operator
        self._server = server
        self._kills = kills
        self._freely = freely
        self._chance = chance
        self._server_down = False
        self._end = time.monotonic() + LIMIT

    def play(self) -> dict[str, Any]:
        """Live to the end; the last life's summary.

        Raises:
            Failed: A life ended as none may, or the run hangs.
        """
        killed = False
        while True:
            if killed:
                self._harm_files()
            if self._server_down:
                self._server.start()
                self._server_down = False
            code = self._live()
            killed = code == -signal.SIGKILL
            if code == 0:
                summary = self._run.summary()
                if self._freely and self._is_over():
                    return summary
                if not self._freely and summary["stopped_by"] == "finished":
                    return summary
                if summary["stopped_by"] not in self._may_stop_by:
                    raise Failed(f"a life was stopped by {summary['stopped_by']!r}")

    @property
    def _may_stop_by(self) -> set[str]:
        return {"command", "signal"} if self._freely else {"command"}

    def _is_over(self) -> bool:
        return self._operator.over and self._run.ledger().finished(LAST) is not None

    # One life

    def _live(self) -> int:
        run, chance = self._run, self._chance
        run.life += 1
        self.tally.recoveries += run.folder.exists()
        eye = Eye(run.folder)
        spared = self._spared()
        # It has stopped as it was told, and its process was killed before that had ended.
        stopped_in_start = self._run.ledger().starts if self._freely and self._is_over() else None
        cold = self._kills > 0 and chance.random() < 0.02
        worker = self._start(cold=cold)
        self.tally.cold += cold
        try:
            if self._kills > self._killed and not spared:
                self._torment(worker, eye)
            elif spared:
                self._let_through(worker, eye, spared)
            if stopped_in_start is not None:
                self._ask_to_stop(worker, stopped_in_start)
            self._wait(worker)
            code = worker.reap()
        except BaseException:
            worker.signal(signal.SIGKILL)
            worker.reap()
            raise
        finally:
            worker.close()
        return self._explained(code, worker)

    def _torment(self, worker: Worker, eye: Eye) -> None:
        """Disturb a worker, and in the end kill it; or it ends before."""
        chance = self._chance
        while not worker.ended:
            strike = choose(chance, eye)
            if not self._watch(worker, eye, strike):
                return
            if chance.random() < 0.25:
                self._disturb(worker)
                continue
            self._kill(worker, strike.place)
            return

    def _kill(self, worker: Worker, place: str) -> None:
        chance = self._chance
        if chance.random() < 0.08:
            worker.without_server = True
            self._server.kill()
            self._server_down = True
            self.tally.disturbances["server killed with the worker"] += 1
        if chance.random() < 0.1:
            worker.signal(signal.SIGSTOP)
            time.sleep(chance.uniform(0.0, 0.1))
        if worker.ended:
            return
        worker.struck = True
        worker.signal(signal.SIGKILL)
        self.tally.kills[place] += 1

    def _disturb(self, worker: Worker) -> None:
        """What a worker has to live through."""
        chance = self._chance
        what = chance.choice(
            ("server", "server", "freeze", "freeze server", "rival", "disk")
            + (("ask to leave", "disk") if self._freely else ())
        )
        if what == "server":
            worker.without_server = True
            self._server.kill()
            time.sleep(chance.choice((0.0, 0.05, 0.3)))
            self._server.start()
            self.tally.disturbances["server killed"] += 1
        elif what == "freeze":
            worker.signal(signal.SIGSTOP)
            # Now and then longer than its lease.
            time.sleep(2.2 if chance.random() < 0.1 else chance.uniform(0.0, 0.3))
            worker.signal(signal.SIGCONT)
            self.tally.disturbances["worker stopped and continued"] += 1
        elif what == "freeze server":
            self._server.freeze()
            time.sleep(chance.uniform(0.0, 0.3))
            self._server.thaw()
            self.tally.disturbances["server stopped and continued"] += 1
        elif what == "rival":
            self._rival(worker)
        elif what == "ask to leave":
            worker.asked_to_leave = True
            worker.signal(signal.SIGTERM)
            self.tally.disturbances["worker asked to leave"] += 1
        else:
            self._fill_disk(worker)

    def _rival(self, worker: Worker) -> None:
        """A second worker of the same run: it must leave, and tell why."""
        log = self._run.home / f"rival-{self._run.life:03d}.log"
        if not self._has_lock(worker):
            return
        pid = self._nursery.start(
            self._run.words(),
            cwd=self._run.home,
            log=log,
            environment=self._run.environment,
            said=self._run.said,
        )
        rival = Worker(pid, lambda: self._nursery.reap(pid))
        while not rival.ended_within(0.2):
            if worker.ended and self._is_over():
                # It has taken over a run that was told to stop: nobody will tell it again.
                rival.signal(signal.SIGKILL)
        rival.close()
        code = rival.reap()
        if worker.ended:
            worker.succeeded = True
            return
        said = log.read_text()
        if code != 2 or "in use" not in said:
            raise Failed(f"a second worker ended with {code}: {said[-300:]}")
        self.tally.disturbances["second worker turned away"] += 1

    def _has_lock(self, worker: Worker) -> bool:
        try:
            return (self._run.folder / "lock").read_text().strip() == str(worker.pid)
        except FileNotFoundError:
            return False

    def _fill_disk(self, worker: Worker) -> None:
        """While the run is held: no file may grow any more. Then there is room again, or a kill."""
        journal = self._run.folder / "journal-000001.log"
        with self._operator.gate:
            if not self._disk_may_fill(worker):
                return
            room = journal.stat().st_size + self._chance.randint(0, 400)
            if room < self._run.log.stat().st_size + ROOM_FOR_WORDS:
                return  # What it says goes into a file as well, and is to be read.
            with contextlib.suppress(ProcessLookupError):
                worker.limit_files(room)
                worker.without_disk = True
                self.tally.disturbances["disk full"] += 1
                time.sleep(self._chance.uniform(0.1, 0.6))
                if self._chance.random() < 0.4 and not worker.ended:
                    worker.struck = True
                    worker.signal(signal.SIGKILL)
                    self.tally.kills["on a full disk"] += 1
                else:
                    worker.limit_files(resource.RLIM_INFINITY)

    def _disk_may_fill(self, worker: Worker) -> bool:
        """Does nothing depend on it, but when things are done?"""
        if self._freely:
            return self._has_lock(worker)
        window = self._operator.held
        return window is not None and window.disk_may_fill and self._is_held(worker)

    def _is_held(self, worker: Worker) -> bool:
        """This very process says that it is held: no step and no checkpoint is under way."""
        end = time.monotonic() + 1.5
        while time.monotonic() < end and not worker.ended:
            status = self._operator.status()
            if status.get("pid") == worker.pid and status.get("mode") in {"paused", "halted"}:
                return not Eye(self._run.folder).saving()
            time.sleep(0.02)
        return False

    def _let_through(self, worker: Worker, eye: Eye, spared: set[str]) -> None:
        """Wait until commands that were struck twice have their RESULT."""
        while spared and not worker.ended:
            for record in eye.records():
                if record.HasField("result"):
                    spared.discard(record.result.command_id)
            self._check_time()
            time.sleep(LOOK)
        if self._kills > self._killed:
            self._torment(worker, eye)

    def _ask_to_stop(self, worker: Worker, start: int) -> None:
        """End a life that nobody sends anything any more, once it has done what was left."""
        operator = self._operator
        while not worker.ended_within(POLL):
            self._check_time()
            if self._run.ledger().starts > start and operator.all_finished():
                worker.asked_to_leave = True
                worker.signal(signal.SIGTERM)
                return

    def _watch(self, worker: Worker, eye: Eye, strike: Strike) -> bool:
        """Wait for the moment of a strike; false if the worker ends before."""
        end = time.monotonic() + strike.patience
        while not strike.due(eye.records()):
            if worker.ended:
                return False
            if time.monotonic() > end:
                break
            time.sleep(LOOK)
        wait_until(time.monotonic() + strike.delay)
        self._check_time()
        return not worker.ended

    def _wait(self, worker: Worker) -> None:
        while not worker.ended_within(0.5):
            self._check_time()

    def _check_time(self) -> None:
        if self._operator.failure:
            raise Failed(f"the operator: {self._operator.failure}")
        if time.monotonic() > self._end:
            raise Failed(f"not finished within {LIMIT:g} s: {self._operator.status()}")

    # Between two lives

    def _harm_files(self) -> None:
        chance = self._chance
        if chance.random() < 0.25 and (done := tear(self._run.folder, chance)):
            self.tally.damage[done] += 1
        if chance.random() < 0.1 and (done := spoil(self._run.folder, chance)):
            self.tally.damage[done] += 1

    def _spared(self) -> set[str]:
        """Commands that would be given up if the next life ended while they are executed."""
        ledger = self._run.ledger()
        return {
            intent.command_id
            for intent in ledger.unfinished()
            if ledger.attempts(intent.command_id) >= MOST_SPARED
            and not intent.command_id.startswith(TRAPPED)
        }

    def _explained(self, code: int, worker: Worker) -> int:
        """An exit code that may be. Raises Failed."""
        if code == 0 or (code == -signal.SIGKILL and worker.struck):
            return code
        # Before it listens for signals; and asked twice, it leaves at once.
        if code in {-signal.SIGTERM, EXIT_AT_ONCE} and worker.asked_to_leave:
            return code
        ledger = self._run.ledger()
        trapped = any(item.command_id.startswith(TRAPPED) for item in ledger.unfinished())
        if worker.succeeded:
            # The rival may have given it up meanwhile.
            trapped = trapped or self._gave_up_a_trap(ledger)
        if code == -signal.SIGKILL and trapped:
            self.tally.trapped += 1
            return code
        log = self._run.log.read_text() if self._run.log.exists() else ""
        last = log.strip().rpartition("\n")[2]
        if code == USER_ERROR and worker.without_server and last.startswith("tolaria-bus: server"):
            self.tally.disturbances["left for want of a server"] += 1
            return code
        if code == USER_ERROR and self._freely and worker.without_disk and "File too large" in last:
            self.tally.disturbances["left for want of room"] += 1
            return code
        raise Failed(f"a life ended with {code} by itself, see {self._run.log}: {last[-200:]}")

    def _gave_up_a_trap(self, ledger: CommandLedger) -> bool:
        results = (
            ledger.finished(name)
            for name in self._operator.entries_sent
            if name.startswith(TRAPPED)
        )
        return any(result is not None and result.outcome.code == FATAL for result in results)

    @property
    def _killed(self) -> int:
        return self.tally.kills.total()

    # Starting

    def _start(self, *, cold: bool) -> Worker:
        run = self._run
        pid = self._nursery.start(
            run.words(),
            cwd=run.home,
            log=run.log,
            environment=run.environment,
            said=run.said,
            cold=cold,
        )
        return Worker(pid, lambda: self._nursery.reap(pid))
