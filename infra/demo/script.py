"""The demo's steps. Each says what it does, does it by a command line, and checks the effect."""

from __future__ import annotations

import json
import re
import secrets
import time
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from tolaria_bus.oona.running import find

from .screen import Screen
from .shell import Alerts, Background, DemoFailed, Shell
from .watch import Watch, event_of

ACCURACY = 0.97
"""Held-out digits named right, at the end."""
ALERTS = ("loss_spike", "loss_not_finite", "accuracy_collapsed")
APPLIED = re.compile(r"\bAPPLIED\b.* step (\d+)")
SLIP = 50.0
"""A learning rate that no training survives."""
START_SECONDS = 60
POLL_SECONDS = 0.05


@dataclass(frozen=True)
class Happened:
    """One row of the table at the end: what, at which step, and where it can be seen."""

    what: str
    step: int
    came_to: str
    stream: str
    seen_by: str


class Demo:
    """One run from its start to its end, steered.

    Args:
        runs: Folder in which the run's folder is made; the commands are typed there.
        screen: Where it is shown.
    """

    def __init__(self, runs: Path, screen: Screen) -> None:
        self.run = f"demo-{secrets.token_hex(2)}"
        self.folder = runs / self.run
        self._happened: list[Happened] = []
        self._screen = screen
        self._shell = Shell(runs, screen)

    def play(self) -> None:
        """All steps, then the table.

        Raises:
            DemoFailed: A step did not do what it says.
            NotSeen: What a step waits for did not come.
        """
        self.folder.mkdir(parents=True)
        self._screen.note(f"in {self._shell.folder}")
        with ExitStack() as stack:
            process = self._start(stack)
            alerts = self._listen(stack)
            self._grow()
            self._slow_down()
            self._pause()
            self._send_rubbish()
            self._slip(alerts)
            self._stop(process, alerts)
        self._screen.table(
            "What happened, and where it can be seen: while the run is on, by"
            f" tolaria-bus tail --… --since 0 --run {self.run}",
            ["what", "step", "came to", "stream", "seen by"],
            [
                [item.what, str(item.step), item.came_to, item.stream, item.seen_by]
                for item in self._happened
            ],
        )
        self._screen.note(
            f"Everything of the run is in {self.folder}. It was stopped, not finished: its first"
            " command, typed again, goes on where it was."
        )

    def _start(self, stack: ExitStack) -> Background:
        self._screen.heading("First terminal: train on real handwritten digits")
        # One thread: for a network this small a second one only waits for the first. Far more
        # epochs than it needs: the demo stops it.
        process = self._shell.background(
            f"tolaria-bus run digits --run {self.run} --run-dir {self.run} --epochs 5000"
            f" --set threads=1 --summary {self.run}/summary.json",
            self.folder / "run.log",
        )
        stack.callback(process.end)
        self._url = self._server(process)
        self._watch = stack.enter_context(Watch(self._url, self.run, process.alive))
        first = self._watch.state("the first epoch", lambda _: True)
        self._screen.note(
            f"it trains, and listens on {self._url}: epoch {first.current_epoch}, step"
            f" {first.global_step}, held-out accuracy {first.validation_accuracy:.1%}"
        )
        return process

    def _server(self, process: Background) -> str:
        deadline = time.monotonic() + START_SECONDS
        while time.monotonic() < deadline:
            process.alive()
            found = find(run=self.run)
            if found is not None:
                return found.url
            time.sleep(POLL_SECONDS)
        raise DemoFailed(f"the run's server didn't start within {START_SECONDS} s")

    def _listen(self, stack: ExitStack) -> Alerts:
        self._screen.heading("Second terminal: alerts, as they arrive on the emergency stream")
        alerts = self._shell.alerts(f"tolaria-bus tail --emergency --since 0 --run {self.run}")
        stack.callback(alerts.end)
        return alerts

    def _grow(self) -> None:
        self._screen.heading("Third terminal: grow a seed into the network while it trains")
        germinate = "seed germinate --seed-id s1 --blueprint residual_conv --slot slot"
        self._note("seed germinated", self._send(germinate), "s1, in the network's one slot")

    def _slow_down(self) -> None:
        self._screen.heading("Lower the learning rate")
        self._note("learning rate lowered", self._send("lr 0.001"), "0.003 to 0.001")

    def _pause(self) -> None:
        self._screen.heading("Pause, and resume: not one step is made in between")
        paused, resumed = self._send("pause"), self._send("resume")
        if paused != resumed:
            raise DemoFailed(f"paused at step {paused}, but resumed at {resumed}")
        self._note("paused", paused, "held between two steps")
        self._note("resumed", resumed, "at the same step")

    def _send_rubbish(self) -> None:
        self._screen.heading("A message that nobody can use is set aside, with its reason")
        names = self._watch.streams
        self._screen.note("redis-cli would do as well as these two lines of Python")
        self._shell.run(
            f"""python -c "import redis; redis.Redis.from_url('{self._url}')"""
            f""".xadd('{names.control(self.run)}', dict(payload='rubbish'))" """.strip()
        )
        told = self._shell.run(f"tolaria-bus tail --dead --since 0 --count 1 --run {self.run}")
        if "malformed" not in told:
            raise DemoFailed("the dead letter doesn't say that the message is malformed")
        step = self._watch.state("an epoch after the rubbish", lambda _: True).global_step
        self._happened.append(
            Happened(
                "rubbish received",
                step,
                "dead letter: malformed; training went on",
                names.dead(self.run),
                "tail --dead",
            )
        )

    def _slip(self, alerts: Alerts) -> None:
        self._screen.heading("A slip of the finger: the loss explodes, and the run helps itself")
        slipped = self._send(f"lr {SLIP:g}")
        self._note("learning rate mistyped", slipped, f"{SLIP:g} instead of {SLIP / 1e5:g}")
        alert = self._watch.alert(ALERTS)
        event = event_of(alert.message, ALERTS)
        assert event is not None
        if not alerts.wait(10):
            raise DemoFailed("the alert was not shown by tolaria-bus tail --emergency")
        milliseconds = (alert.taken_ns - alert.message.timestamp.ToNanoseconds()) / 1e6
        self._screen.note(
            f"CRITICAL {event.event_id}: on the stream {max(milliseconds, 0):.0f} ms after it was"
            " raised"
        )
        self._happened.append(
            Happened(
                "loss exploded",
                alert.message.global_step,
                f"CRITICAL alert {event.event_id}",
                self._watch.streams.emergency,
                "tail --emergency",
            )
        )
        self._see_rollback()

    def _see_rollback(self) -> None:
        packet = self._watch.event("rollback")
        self._happened.append(
            Happened(
                "rolled back by itself",
                packet.global_step,
                f"timeline {packet.timeline}, rates lowered",
                self._watch.streams.telemetry(self.run),
                "tail --telemetry",
            )
        )
        # Where the newest good state holds the mistyped rate already, it goes back once more.
        back = self._watch.state(
            "an epoch after the rollback", lambda state: state.timeline >= packet.timeline
        )
        self._screen.note(
            f"back to step {packet.global_step} on timeline {packet.timeline}, with a lower"
            f" rate; it trains on: epoch {back.current_epoch} on timeline {back.timeline},"
            f" {back.validation_accuracy:.1%}"
        )

    def _stop(self, process: Background, alerts: Alerts) -> None:
        self._screen.heading(f"Stop, once over {ACCURACY:.0%} of digits never seen are right")
        good = self._watch.state(
            f"held-out accuracy over {ACCURACY:.0%}",
            lambda state: state.validation_accuracy > ACCURACY,
        )
        self._screen.note(f"epoch {good.current_epoch}: {good.validation_accuracy:.1%}")
        # The server goes with its run.
        alerts.end()
        stopped = self._send("stop")
        code = process.wait(30)
        self._screen.output(process.tail())
        if code != 0:
            raise DemoFailed(f"the run ended with exit code {code}")
        summary = json.loads((self.folder / "summary.json").read_text())
        if summary["stopped_by"] != "command" or not summary["accuracy"] > ACCURACY:
            raise DemoFailed(
                f"the summary says stopped_by {summary['stopped_by']!r},"
                f" accuracy {summary['accuracy']}"
            )
        self._note("stopped", stopped, f"held-out accuracy {summary['accuracy']:.1%}")

    def _send(self, words: str) -> int:
        """Send a command and see to it that it took effect; the step at which it did."""
        line = f"tolaria-bus send {words} --run {self.run}"
        found = APPLIED.search(self._shell.run(line))
        if found is None:
            raise DemoFailed(f"'{line}' doesn't say at which step it was applied")
        return int(found[1])

    def _note(self, what: str, step: int, came_to: str) -> None:
        outcomes = self._watch.streams.outcomes(self.run)
        self._happened.append(Happened(what, step, came_to, outcomes, "tail --outcomes"))
