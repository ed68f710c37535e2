"""Tamiyo is asked at each epoch's end, and its answer is taken: once, in time, for this packet.

*Overlapped*: the state packet goes out and training goes on. The answer takes effect at the fence
at which it is there, and is awaited until the next packet goes out. *Blocking*: the training thread
waits for it, up to a cut-off. After two cut-offs a breaker lets the run do without waiting; so does
conservative mode, where waiting is optional like the rest.

An answer is a command with the annotation ``in_reply_to``, the id of the packet that it answers. It
is journaled like any other command, as INTENT and RESULT at its step, COMMAND_CONTINUE as well. No
answer is a decision too, to go on as before: it is in the journal where it was waited for, and
where Tamiyo falls silent. A run that is recovered or repeated asks nobody about steps that it has
in its journal.

Answers that can't be taken are refused and counted, and leave nothing in the journal. There may be
any number of them: a fence answers as many as fit into a moment, and the rest at the next ones.
"""

from __future__ import annotations

import re
import time
from collections import Counter
from collections.abc import Callable
from typing import Any, Final, NamedTuple

from tolaria_bus.leyline import AdaptationCommand, CommandType, Decision, JournalRecord
from tolaria_bus.leyline import SystemStatePacket as StatePacket
from tolaria_bus.leyline.annotations import IN_REPLY_TO
from tolaria_bus.leyline.annotations import TAMIYO as TAMIYO_NAME
from tolaria_bus.safety.breakers import TAMIYO
from tolaria_bus.settings import Settings
from tolaria_bus.tolaria.control.guards import Guards
from tolaria_bus.tolaria.control.mailbox import URGENT, Delivery, Mailbox, Outbound
from tolaria_bus.tolaria.control.telemetry import Telemetry
from tolaria_bus.tolaria.recovery.journal import JournalUnwritable
from tolaria_bus.tolaria.recovery.run_folder import RunFolder
from tolaria_bus.tolaria.recovery.sections import Section
from tolaria_bus.tolaria.recovery.state import TrainingState

NO_ANSWER: Final = "tamiyo"
"""The kind of the decision to go on without an answer."""

OFF: Final = "off"
BLOCKING: Final = "blocking"

_SECTION: Final = "tamiyo"
_PACKET: Final = re.compile(r"(.{1,64})\.t(\d{1,10})\.s(\d{1,20})")
_PROGRESS_SECONDS: Final = 0.25
"""While it waits, the thread says so often that it lives."""


class Refusal(NamedTuple):
    """Why an answer can't be taken: one word for programs, one sentence for people."""

    code: str
    reason: str


def packet_id(run: str, timeline: int, step: int) -> str:
    """The id of the state packet of a fence."""
    return f"{run}.t{timeline}.s{step}"


class Handshake:
    """Asks, waits where it is told to, and says which answers count. Training thread only.

    Args:
        run: The run's id.
        state: Of the run; gets a section that survives.
        settings: ``tamiyo``, ``tamiyo_seconds``.
        guards: Has Tamiyo's breaker.
        folder: Whose journal gets the decisions.
        telemetry: Gets the events.
        mailbox: Where answers come.
        outbound: Where packets go.
        behind: Are journaled steps being run again?
        progress: Called now and then while the thread waits.
        monotonic: Seconds.
    """

    def __init__(
        self,
        run: str,
        state: TrainingState,
        settings: Settings,
        guards: Guards,
        folder: RunFolder,
        telemetry: Telemetry,
        mailbox: Mailbox,
        outbound: Outbound,
        *,
        behind: Callable[[], bool],
        progress: Callable[[], None] = lambda: None,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self._run = run
        self._state = state
        self._mode = settings.tamiyo
        self._seconds = settings.tamiyo_seconds
        self._guards = guards
        self._folder = folder
        self._telemetry = telemetry
        self._mailbox = mailbox
        self._outbound = outbound
        self._behind = behind
        self._progress = progress
        self._monotonic = monotonic
        self._awaited = ""
        self._silent = True
        self._interventions = 0
        self._last: dict[str, int] = {}
        self._refused: Counter[str] = Counter()
        self._unanswered = 0
        state.sections[_SECTION] = Section(1, self._save, self._load)

    # At the end of an epoch

    def describe(self, packet: StatePacket) -> None:
        """Write into a packet what its reader's limits need: how often and when it intervened."""
        metrics = packet.training_metrics
        metrics["tamiyo.interventions"] = float(self._interventions)
        for what, epoch in self._last.items():
            metrics[f"tamiyo.epochs_since.{what}"] = float(max(0, packet.current_epoch - epoch))

    def ask(self, packet: StatePacket) -> bool:
        """Send a state packet; wait for the answer where that is wanted and allowed.

        What comes meanwhile stays in the mailbox, for the fence that is opened next.

        Returns:
            Whether it waited.
        """
        behind = self._behind()
        if not behind:
            self._close_last()
        if self._mode == OFF:
            self._awaited = ""
            if not behind:
                self._outbound.state(packet)
            return False
        self._awaited = packet.packet_id
        if behind:
            # It was sent the first time, and the journal has what came of it.
            return False
        waits = self._mode == BLOCKING and not self._state.mode.conservative
        waits = waits and self._guards.allows(TAMIYO)
        self._outbound.state(packet)
        if waits:
            self._wait()
        return waits

    def tell(self) -> dict[str, tuple[float, str]]:
        """What there is to count, by metric; each counts from the start of this process."""
        refused = self._refused
        return {
            "tolaria.tamiyo.unanswered": (float(self._unanswered), ""),
            "tolaria.tamiyo.late": (float(refused["late_answer"]), ""),
            "tolaria.tamiyo.refused": (float(sum(refused.values())), ""),
            "tolaria.tamiyo.interventions": (float(self._interventions), ""),
        }

    # Answers

    def judge(self, delivery: Delivery) -> Refusal | None:
        """Why a new command can't be taken as the answer that it says it is; None if it can."""
        answered = delivery.command.annotations.get(IN_REPLY_TO)
        if answered is None:
            return None
        refusal = self._judge(delivery, answered)
        if refusal is not None:
            self._refused[refusal.code] += 1
        return refusal

    def answered(self, command: AdaptationCommand) -> None:
        """A command is taken; it may be the answer that is awaited."""
        if not self._awaited or command.annotations.get(IN_REPLY_TO) != self._awaited:
            return
        self._awaited = ""
        self._guards.succeeded(TAMIYO)
        if self._silent:
            self._silent = False
            self._telemetry.event("tamiyo_answers", f"{command.issued_by} answers")

    def intervened(self, command: AdaptationCommand) -> None:
        """A command has been applied; if it was an answer and changed something, that counts."""
        changed = command.command_type != CommandType.COMMAND_CONTINUE
        if changed and IN_REPLY_TO in command.annotations:
            self._interventions += 1
            what = CommandType.Name(command.command_type).removeprefix("COMMAND_").lower()
            self._last[what] = self._last["any"] = self._state.epoch

    def apply(self, decision: Decision) -> None:
        """Be as a journaled absence left the run."""
        self._awaited = ""
        self._silent = True
        if decision.values["waited"] == "true":
            self._guards.failed(TAMIYO, decision.reason)

    def forget(self) -> None:
        """The run went back: what was asked on the way that is cut off has no answer any more."""
        self._awaited = ""

    # Inside

    def _judge(self, delivery: Delivery, answered: str) -> Refusal | None:
        if self._mode == OFF:
            return Refusal("tamiyo_off", "setting tamiyo = 'off': this run takes no answers")
        for issuer in (delivery.command.issued_by, delivery.source):
            if issuer.partition("/")[0] != TAMIYO_NAME:
                return Refusal(
                    "wrong_issuer",
                    f"issued by {issuer!r}: only {TAMIYO_NAME} answers packets",
                )
        if answered == self._awaited:
            return None
        found = _PACKET.fullmatch(answered)
        if found is None:
            return Refusal("unknown_packet", f"{IN_REPLY_TO} = {answered[:80]!r}: no packet's id")
        run, timeline, step = found[1], int(found[2]), int(found[3])
        if run != self._run:
            return Refusal("other_run", f"{IN_REPLY_TO} = {answered!r}: this is run {self._run}")
        if (timeline, step) > (self._state.timeline, self._state.step):
            return Refusal("unknown_packet", f"{IN_REPLY_TO} = {answered!r}: it wasn't sent yet")
        return Refusal(
            "late_answer",
            f"{IN_REPLY_TO} = {answered!r}: "
            + (f"awaited is {self._awaited!r}" if self._awaited else "none is awaited"),
        )

    def _wait(self) -> None:
        end = self._monotonic() + self._seconds
        while True:
            left = end - self._monotonic()
            found = self._mailbox.wait_for(self._ends_wait, min(max(left, 0.0), _PROGRESS_SECONDS))
            if found:
                return  # The answer; or what can't wait, and the answer may still come.
            if left <= 0:
                break
            self._progress()
        reason = f"no answer within {self._seconds:g} s"
        self._unanswered += 1
        # Told each time: after two of them nobody waits for a while.
        self._telemetry.event("tamiyo_silent", f"{reason}: the run goes on as before")
        self._decide(reason, waited=True)

    def _ends_wait(self, delivery: Delivery) -> bool:
        command = delivery.command
        if command.command_type in URGENT:
            return True
        answers = command.annotations.get(IN_REPLY_TO) == self._awaited
        return answers and self._judge(delivery, self._awaited) is None

    def _close_last(self) -> None:
        """The next packet goes out: that before isn't awaited any more."""
        if self._awaited:
            self._unanswered += 1
            # Once; and a run that never had a Tamiyo misses none.
            if not self._silent:
                reason = f"no answer to {self._awaited}"
                self._telemetry.event("tamiyo_silent", f"{reason}: the run goes on as before")
                self._decide(reason, waited=False)

    def _decide(self, reason: str, *, waited: bool) -> None:
        values = {"packet_id": self._awaited, "waited": "true" if waited else "false"}
        decision = Decision(kind=NO_ANSWER, reason=reason, values=values)
        try:
            self._folder.write(self._state.stamp(JournalRecord(decision=decision)))
        except JournalUnwritable as error:
            # It changes no weight: nothing was done.
            self._telemetry.event("not_journaled", f"{NO_ANSWER}: {error}")
        self.apply(decision)

    def _save(self) -> dict[str, Any]:
        return {
            "awaited": self._awaited,
            "silent": self._silent,
            "interventions": self._interventions,
            "last": {**self._last},
        }

    def _load(self, saved: dict[str, Any], version: int) -> None:
        del version
        self._awaited, self._silent = saved["awaited"], saved["silent"]
        self._interventions, self._last = saved["interventions"], {**saved["last"]}
