"""When something was wrong, and how long answers and alerts took then and otherwise."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

PERCENTILES = (50, 90, 99, 100)


@dataclass
class Moments:
    """Faults as spans of time, and what was timed. For any thread."""

    faults: list[list[float]] = field(default_factory=list)
    timed: dict[str, list[tuple[float, float]]] = field(default_factory=dict)
    lock: threading.Lock = field(default_factory=threading.Lock)

    @contextmanager
    def faulty(self) -> Iterator[None]:
        """Something is wrong meanwhile."""
        span = [time.monotonic(), float("inf")]
        with self.lock:
            self.faults.append(span)
        try:
            yield
        finally:
            span[1] = time.monotonic()

    def took(self, what: str, begun: float, ended: float) -> None:
        """Something was over; monotonic seconds."""
        with self.lock:
            self.timed.setdefault(what, []).append((begun, ended))

    def table(self) -> list[dict[str, object]]:
        """Percentiles in milliseconds, for quiet and for faulty moments."""
        rows: list[dict[str, object]] = []
        with self.lock:
            for what, spans in sorted(self.timed.items()):
                quiet: list[float] = []
                faulty: list[float] = []
                for begun, ended in spans:
                    met = any(a <= ended and b >= begun for a, b in self.faults)
                    (faulty if met else quiet).append((ended - begun) * 1000)
                for name, found in (("quiet", quiet), ("faulty", faulty)):
                    if found:
                        row: dict[str, object] = {
                            "what": what,
                            "moments": name,
                            "count": len(found),
                        }
                        rows.append(row | {f"p{p}_ms": percentile(found, p) for p in PERCENTILES})
        return rows


def percentile(values: list[float], share: float) -> float:
    """The nearest-rank percentile (NIST, 1.3.5.6), rounded to a tenth."""
    ordered = sorted(values)
    rank = max(1, -(-len(ordered) * share // 100))
    return round(ordered[int(rank) - 1], 1)
