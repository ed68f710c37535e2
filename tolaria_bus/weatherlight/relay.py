"""Speaking for a worker that can't: deadlines that it overran, emergencies that it left.

A worker sends its emergency signals itself and leaves each in its signal block first. Weatherlight
sends what it finds there under the same message ids, and the server takes each once: a worker that
hangs, dies or holds its interpreter's lock right then has been heard all the same. With the server
away both keep it in their spools; the workers beside it that have to obey get it all the same, by a
file in their folders.

What was left long ago is not sent: a HALT of yesterday must not stop anybody today. It was left
while nobody watched, and is its worker's to send, from its own spool.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

from google.protobuf.message import DecodeError

from tolaria_bus.leyline import EmergencySignal
from tolaria_bus.safety import SignalView
from tolaria_bus.safety.passing import fresh
from tolaria_bus.safety.watching import ArmedDeadline, Identity, LeftSignal
from tolaria_bus.weatherlight.telling import Teller


class Relay:
    """Relays for one run.

    Args:
        run: Its id.
        teller: Tells.
        pass_on: Gives a signal to the other workers beside this one.
        monotonic_ns: The machine's clock, that of the block.
        wall_ns: The wall clock, that of messages.

    Attributes:
        overruns: Deadlines that were overrun, by name.
        relayed: Signals that were sent.
        next_due_ns: When the next deadline is overrun, by that clock; 0 if none is set.
    """

    def __init__(
        self,
        run: str,
        teller: Teller,
        *,
        pass_on: Callable[[EmergencySignal], None] = lambda signal: None,
        monotonic_ns: Callable[[], int] = time.monotonic_ns,
        wall_ns: Callable[[], int] = time.time_ns,
    ) -> None:
        self.overruns: dict[str, int] = {}
        self.relayed = 0
        self.next_due_ns = 0
        self._run = run
        self._teller = teller
        self._pass_on = pass_on
        self._monotonic_ns = monotonic_ns
        self._wall_ns = wall_ns
        self._overdue: dict[tuple[str, int], ArmedDeadline] = {}

    def look(self, view: SignalView, identity: Identity) -> None:
        """Tell what is new in the block of a worker that runs, or did until now."""
        self._deadlines(view, identity)
        self.signals(view)

    def signals(self, view: SignalView) -> None:
        """The signals alone, as of a worker that is dead since we don't know when."""
        for left in view.unrelayed():
            self._signal(left)
            view.relayed(left.number)

    def _deadlines(self, view: SignalView, identity: Identity) -> None:
        now = self._monotonic_ns()
        armed = {(deadline.name, deadline.began_ns): deadline for deadline in view.deadlines()}
        for key, deadline in armed.items():
            if now > deadline.due_ns and key not in self._overdue:
                self._overdue[key] = deadline
                self._tell_overrun(deadline, view, identity)
        waits = (deadline.due_ns for key, deadline in armed.items() if key not in self._overdue)
        self.next_due_ns = min(waits, default=0)
        for key in self._overdue.keys() - armed.keys():
            late = (now - self._overdue.pop(key).due_ns) / 1e9
            self._teller.event(
                self._run,
                "deadline_met_late",
                f"{key[0]} was over {late:.3g} s after its deadline",
                step=view.step,
                warning=True,
                deadline=key[0],
                late_seconds=f"{late:.3f}",
            )

    def _tell_overrun(self, deadline: ArmedDeadline, view: SignalView, identity: Identity) -> None:
        name, allowed = deadline.name, (deadline.due_ns - deadline.began_ns) / 1e9
        self.overruns[name] = self.overruns.get(name, 0) + 1
        text = f"{name} had to be over within {allowed:g} s, and isn't"
        # The next Weatherlight would tell it again; under the same id it is told once.
        message_id = f"{self._run}.{identity.start}.{name}.{deadline.began_ns:x}"
        about: dict[str, Any] = {
            "deadline": name,
            "allowed_seconds": f"{allowed:g}",
            "pid": identity.pid,
            "state": view.state.name.lower(),
            "phase": view.phase.name.lower(),
        }
        step = view.step
        self._teller.alert(
            self._run,
            "deadline_overrun",
            text,
            critical=True,
            step=step,
            message_id=message_id,
            **about,
        )
        self._teller.event(
            self._run,
            "deadline_overrun",
            text,
            step=step,
            warning=True,
            message_id=message_id,
            **about,
        )

    def _signal(self, left: LeftSignal) -> None:
        try:
            signal = EmergencySignal.FromString(left.payload)
        except DecodeError as error:
            self._teller.alert(self._run, "signal_unreadable", f"left in the block: {error}")
            return
        now, wall = self._monotonic_ns(), self._wall_ns()
        if not fresh(left, signal, monotonic_ns=now, wall_ns=wall):
            return
        if not signal.attributes.get("signal_id"):
            self._teller.alert(self._run, "signal_unreadable", "left in the block without an id")
            return
        self.relayed += 1
        # First: it waits for no server.
        self._pass_on(signal)
        self._teller.relay(signal)
