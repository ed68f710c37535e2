"""What may go wrong, each with what has to be told of it."""

from __future__ import annotations

import contextlib
import os
import random
import signal
import time
from collections.abc import Callable
from typing import Any

from infra.soak.book import Book
from infra.soak.causes import Causes
from infra.soak.house import HANG_SECONDS, RUNS, SPARED, STRANGE, House, wait_for
from infra.soak.jobs import HANG, RAISE, trip_of
from infra.soak.operator import SOURCE, Operator
from infra.soak.orders import Order
from infra.soak.post import AWAY, Fields, Post
from infra.soak.readers import STREAMS
from tolaria_bus.leyline import EmergencyLevel, EmergencySignal
from tolaria_bus.oona.sealing import PAYLOAD, seal

TEN_MEGABYTES = 10_000_000
BURST = 400
FORGERIES = 6
"""In a row: more than are taken for an accident."""
TRIPPED_WITHIN = 30.0
"""Seconds that a job may take to find that it is to fail: a held run makes no step."""
MANY_AT_ONCE = 70.0
"""Seconds in which one alert tells of all forgeries."""
KILLABLE = tuple(run for run in RUNS if run != SPARED)
REFUSED_SIGNATURE = "signature"


class Faults:
    """Each method is a fault; it returns a few words on what was done. Main thread only."""

    def __init__(
        self,
        house: House,
        post: Post,
        book: Book,
        causes: Causes,
        operator: Operator,
        chance: random.Random,
    ) -> None:
        self._house, self._post, self._book, self._causes = house, post, book, causes
        self._operator, self._chance = operator, chance
        self._numbers = 0

    def deck(self) -> list[Callable[[], str]]:
        """All of them, each as often as it shall come in a round."""
        return [
            self.kill_a_worker, self.kill_a_worker, self.kill_workers, self.stop_a_worker,
            self.hang_a_job, self.fail_a_job,
            self.kill_weatherlight, self.kill_weatherlight_and_a_worker,
            self.kill_tamiyo, self.stop_tamiyo,
            self.kill_the_server, self.kill_the_server, self.stop_the_server,
            self.kill_connections, self.pause_the_server,
            self.forge, self.replay, self.send_ten_megabytes, self.send_rubbish, self.repeat,
            self.forge_a_signal, self.rotate_the_keys,
        ]  # fmt: skip

    # Workers

    def kill_a_worker(self) -> str:
        """SIGKILL."""
        return self._kill(self._chance.choice(KILLABLE))

    def kill_workers(self) -> str:
        """Several at once."""
        return ", ".join([self._kill(run) for run in KILLABLE])

    def stop_a_worker(self) -> str:
        """SIGSTOP for a while."""
        run = self._chance.choice(KILLABLE)
        pid = self._house.worker(run)
        if not pid:
            return f"{run} has no worker"
        seconds = self._chance.uniform(1.0, 4.0)
        self._causes.expect("worker_frozen", run, pid=pid)
        os.kill(pid, signal.SIGSTOP)
        time.sleep(seconds)
        os.kill(pid, signal.SIGCONT)
        return f"{run}, process {pid}, for {seconds:.1f} s"

    def hang_a_job(self) -> str:
        """A deadlock in the user's loss."""
        run = self._chance.choice(KILLABLE)
        pid = self._house.worker(run)
        if not pid:
            return f"{run} has no worker"
        if not self._trip(run, HANG):
            return f"{run} doesn't get to it"
        self._causes.expect("worker_hung", run, grace=HANG_SECONDS, pid=pid, cause="training")
        self._causes.expect("worker_died", run, grace=HANG_SECONDS, pid=pid)
        self._causes.died(run)
        self._gone(run, pid, HANG_SECONDS * 4)
        return f"{run}, process {pid}"

    def fail_a_job(self) -> str:
        """The user's loss raises."""
        run = self._chance.choice(KILLABLE)
        pid = self._house.worker(run)
        if not pid:
            return f"{run} has no worker"
        expected = [
            self._causes.expect("training_failed", run),
            self._causes.expect("worker_died", run, pid=pid),
        ]
        if not self._trip(run, RAISE):
            for item in expected:
                item.excused = True
            return f"{run} doesn't get to it"
        self._causes.died(run)
        self._gone(run, pid)
        return f"{run}, process {pid}"

    # Those beside them

    def kill_weatherlight(self) -> str:
        """SIGKILL; a new one is started."""
        pid = self._house.pid("weatherlight")
        self._house.kill("weatherlight")
        time.sleep(self._chance.uniform(0.0, 3.0))
        self._house.start("weatherlight")
        return f"process {pid}"

    def kill_weatherlight_and_a_worker(self) -> str:
        """Nobody sees the worker die: no alert is owed, but it has to be started again."""
        run = self._chance.choice(KILLABLE)
        self._house.kill("weatherlight")
        pid = self._house.worker(run)
        if pid:
            self._causes.died(run)
            os.kill(pid, signal.SIGKILL)
        time.sleep(self._chance.uniform(0.0, 2.0))
        self._house.start("weatherlight")
        return f"and {run}, process {pid}"

    def kill_tamiyo(self) -> str:
        """SIGKILL; a new one is started."""
        self._house.kill("tamiyo")
        time.sleep(self._chance.uniform(0.0, 3.0))
        self._house.start("tamiyo")
        return "started again"

    def stop_tamiyo(self) -> str:
        """SIGSTOP for a while."""
        seconds = self._chance.uniform(1.0, 8.0)
        self._house.signal("tamiyo", signal.SIGSTOP)
        time.sleep(seconds)
        self._house.signal("tamiyo", signal.SIGCONT)
        return f"for {seconds:.1f} s"

    # The server

    def kill_the_server(self) -> str:
        """As by a power cut; it is started again on its data."""
        seconds = self._chance.choice([0.0, self._chance.uniform(0.0, 6.0)])
        self._house.server.kill()
        time.sleep(seconds)
        self._house.restart_server()
        return f"away for {seconds:.1f} s"

    def stop_the_server(self) -> str:
        """SIGSTOP for a while."""
        seconds = self._chance.uniform(1.0, 6.0)
        self._house.server.freeze()
        time.sleep(seconds)
        self._house.server.thaw()
        return f"for {seconds:.1f} s"

    def kill_connections(self) -> str:
        """CLIENT KILL, again and again."""
        times = self._chance.randint(1, 6)
        for _ in range(times):
            self._ask("CLIENT", "KILL", "TYPE", "NORMAL")
            time.sleep(self._chance.uniform(0.0, 0.5))
        return f"{times} times"

    def pause_the_server(self) -> str:
        """CLIENT PAUSE."""
        seconds = self._chance.uniform(0.5, 4.0)
        self._ask("CLIENT", "PAUSE", str(int(seconds * 1000)), "ALL")
        time.sleep(seconds)
        return f"for {seconds:.1f} s"

    # Those who send

    def forge(self) -> str:
        """Commands by somebody with a key of his own."""
        run = self._chance.choice(RUNS)
        stream = STREAMS.control(run)
        # Of a row in the last minute the first alert tells, and the next one comes at its end.
        back = {"looking_back": MANY_AT_ONCE, "grace": MANY_AT_ONCE}
        self._causes.expect("bad_signatures", run, excusable=True, stream=stream, **back)
        command = self._new(run).command
        sealed = [lambda: seal(command, stream=stream, source=SOURCE, ring=STRANGE)] * FORGERIES
        for entry in self._post.send_many(stream, sealed):
            self._book.refuse(stream, entry, "forged", REFUSED_SIGNATURE)
        return f"{FORGERIES} for {run}"

    def replay(self) -> str:
        """A genuine entry once more, byte by byte."""
        run = self._chance.choice(RUNS)
        stream, order = STREAMS.control(run), self._new(run)
        name = order.command.command_id
        fields = seal(order.command, stream=stream, source=SOURCE, ring=self._house.ring)
        self._book.about_to_send(run, name, order.kind)
        self._post.send(stream, lambda: fields)
        self._book.confirmed(run, name)
        self._book.refuse(stream, self._post.send(stream, lambda: fields), "replayed", "replay")
        return f"one for {run}"

    def send_ten_megabytes(self) -> str:
        """In one entry."""
        run = self._chance.choice(RUNS)
        stream = STREAMS.control(run)
        entry = self._post.send(stream, lambda: {PAYLOAD: b"\x0a" * TEN_MEGABYTES})
        self._book.refuse(stream, entry, "ten megabytes", "oversize")
        return f"for {run}"

    def send_rubbish(self) -> str:
        """Bytes that mean nothing, and fields that nobody knows."""
        run = self._chance.choice(RUNS)
        stream = STREAMS.control(run)
        found: list[Fields] = [
            {PAYLOAD: b"rubbish"}, {PAYLOAD: b""}, {b"what": b"ever"}, {b"json": b"{"},
            {b"json": b'{"commandType":"STOP"}'}, {PAYLOAD: self._chance.randbytes(300)},
        ]  # fmt: skip
        for fields in found:
            entry = self._post.send(stream, lambda fields=fields: fields)  # type: ignore[misc]
            self._book.refuse(stream, entry, "rubbish", "malformed", "signature", "type")
        return f"{len(found)} entries for {run}"

    def repeat(self) -> str:
        """A sender that goes mad: one command, again and again."""
        run = self._chance.choice(RUNS)
        self._operator.command(run, self._new(run), times=BURST)
        return f"{BURST} times for {run}"

    def forge_a_signal(self) -> str:
        """A HALT for all, by somebody with a key of his own."""
        for run in RUNS:
            self._causes.expect("signal_refused", run, excusable=True, looking_back=2.0)
        self._numbers += 1
        name, stream = f"forged-{self._numbers}", STREAMS.emergency
        level = EmergencyLevel.EMERGENCY_LEVEL_HALT
        halt = EmergencySignal(version=1, level=level, reason="forged", origin=SOURCE)
        halt.attributes.update(scope="all", signal_id=name)
        entry = self._post.send(
            stream,
            lambda: seal(halt, stream=stream, source=SOURCE, ring=STRANGE, message_id=name),
        )
        self._book.refuse(stream, entry, "forged signal", REFUSED_SIGNATURE)
        return "a HALT for all"

    def rotate_the_keys(self) -> str:
        """Who is started from now on signs with the other key, and so does the operator."""
        self._house.rotated = not self._house.rotated
        return f"{self._house.keys.split(':', 1)[0]} signs"

    # Beneath them

    def _kill(self, run: str) -> str:
        pid = self._house.worker(run)
        if not pid:
            return f"{run} has no worker"
        self._causes.died(run)
        self._causes.expect("worker_died", run, pid=pid)
        os.kill(pid, signal.SIGKILL)
        self._gone(run, pid)
        return f"{run}, process {pid}"

    def _gone(self, run: str, pid: int, seconds: float = 30.0) -> None:
        """Wait until a worker's process is gone, for whoever asks next whether all is well."""
        wait_for(lambda: self._house.worker(run) != pid, seconds)

    def _trip(self, run: str, what: str) -> bool:
        """Tell a job to fail; whether it got that far."""
        path = self._house.home / trip_of(run)
        scratch = path.with_suffix(".new")
        scratch.write_text(what)
        scratch.replace(path)
        if wait_for(lambda: not path.exists(), TRIPPED_WITHIN, 0.02):
            return True
        try:
            path.unlink()
        except FileNotFoundError:
            return True
        return False

    def _new(self, run: str) -> Order:
        return self._operator.writers[run].rate()

    def _ask(self, *words: str) -> Any:
        while True:
            with contextlib.suppress(*AWAY):
                return self._house.client.execute_command(*words)  # type: ignore[no-untyped-call]
            time.sleep(0.05)
