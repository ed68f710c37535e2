"""What has to be on the emergency stream, by what was done; and what is."""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field

from infra.soak.moments import Moments


@dataclass
class Expected:
    """An alert that has a known cause.

    Attributes:
        name: The event's.
        run: Of which run.
        attributes: Those that it must have at least.
        since: When its cause was; monotonic seconds.
        looking_back: It may be so much older: one alert a minute is enough for a row of causes.
        excusable: If the run's worker dies first, what it had counted is lost, and nothing is owed.
        grace: Seconds that it may take beside the usual patience.
        seen: When it was read; 0: not yet.
        excused: Nothing is owed any more.
        late: It was told already that it is missing.
    """

    name: str
    run: str
    attributes: dict[str, str]
    since: float
    looking_back: float = 0.0
    excusable: bool = False
    grace: float = 0.0
    seen: float = 0.0
    excused: bool = False
    late: bool = False

    @property
    def owed(self) -> bool:
        """It is still waited for."""
        return not self.seen and not self.excused

    def fits(self, alert: Alert) -> bool:
        """Is this the alert?"""
        return (
            (alert.name, alert.run) == (self.name, self.run)
            and alert.at >= self.since - self.looking_back
            and all(alert.attributes.get(key) == text for key, text in self.attributes.items())
        )

    def __str__(self) -> str:
        about = "".join(f", {key} {text}" for key, text in self.attributes.items())
        return f"{self.name} of {self.run}{about}"


@dataclass(frozen=True)
class Alert:
    """An alert that was read."""

    name: str
    run: str
    attributes: Mapping[str, str]
    at: float
    folded: int


@dataclass
class Causes:
    """Both sides. For any thread."""

    moments: Moments
    expected: list[Expected] = field(default_factory=list)
    alerts: list[Alert] = field(default_factory=list)
    lock: threading.RLock = field(default_factory=threading.RLock)

    def expect(
        self,
        name: str,
        run: str,
        *,
        looking_back: float = 0.0,
        excusable: bool = False,
        grace: float = 0.0,
        **attributes: object,
    ) -> Expected:
        """From now on this alert is owed. Call it before its cause."""
        texts = {key: str(value) for key, value in attributes.items()}
        item = Expected(name, run, texts, time.monotonic(), looking_back, excusable, grace)
        with self.lock:
            self.expected.append(item)
            if any(item.fits(alert) for alert in self.alerts):
                item.seen = item.since
        return item

    def saw(self, alert: Alert) -> None:
        """An alert was read."""
        with self.lock:
            self.alerts.append(alert)
            for item in self.expected:
                if not item.seen and item.fits(alert):
                    item.seen = alert.at
                    self.moments.took(f"cause → alert {item.name}", item.since, alert.at)

    def died(self, run: str) -> None:
        """A run's worker dies: what it alone knew is gone."""
        with self.lock:
            for item in self.expected:
                if item.run == run and item.excusable and item.owed:
                    item.excused = True

    def owed(self) -> list[Expected]:
        """What is still waited for."""
        with self.lock:
            return [item for item in self.expected if item.owed]

    def counts(self) -> Counter[str]:
        """How many alerts of each name were read, those folded into others too."""
        found: Counter[str] = Counter()
        with self.lock:
            for alert in self.alerts:
                found[alert.name] += max(1, alert.folded)
        return found
