"""What a trace says, in a table: time of phases and operators, by themselves and in all.

Events of one thread nest. An operator's own time is its duration without what was called from
inside; on an accelerator a kernel belongs to the operator that launched it (kineto's correlation
id). What a phase has of its own is no operator's: Python, and what isn't torch's.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any, Final

from tolaria_bus.leyline import ProfileEntry
from tolaria_bus.tolaria.engine.tracing import PREFIX

MOST_OPERATORS: Final = 40
"""That a report names: it has to fit a message."""
_LONGEST_NAME: Final = 120
_MEMORY: Final = "[memory]"
_MS: Final = 1e6


@dataclass
class Table:
    """Sums over a trace.

    Attributes:
        phases: In the order in which they first came.
        operators: Those with the most time of their own first, on the device if there is one.
        other_self_ms: Of the operators that are left out.
        other_device_ms: Likewise.
        peak_bytes: The most memory allocated at a time, above what was at the beginning.
    """

    phases: list[ProfileEntry]
    operators: list[ProfileEntry]
    other_self_ms: float
    other_device_ms: float
    peak_bytes: int


@dataclass
class _Sum:
    calls: int = 0
    total_ns: int = 0
    self_ns: int = 0
    device_ns: int = 0
    self_bytes: int = 0


@dataclass
class _Open:
    """An event that has begun, and what of it is its own so far."""

    sum: _Sum
    end_ns: int


@dataclass
class _Sums:
    by_name: dict[str, _Sum] = field(default_factory=dict)

    def of(self, name: str) -> _Sum:
        found = self.by_name.get(name)
        if found is None:
            found = self.by_name[name] = _Sum()
        return found


def tabulate(events: Iterable[Any], device_type: str) -> Table:
    """Sum up a trace.

    Args:
        events: Kineto's, by start.
        device_type: Whose memory counts: ``cpu``, ``cuda``.
    """
    sums = _Sums()
    open_by_thread: dict[int, list[_Open]] = {}
    launched: dict[int, _Sum] = {}
    kernels: list[tuple[int, int]] = []
    allocated = peak = 0
    for event in events:
        name = event.name()
        on = event.device_type().name.lower()
        if name == _MEMORY:
            if on == device_type:
                allocated += event.nbytes()
                peak = max(peak, allocated)
            stack = open_by_thread.get(event.start_thread_id())
            _close(stack, event.start_ns())
            if stack:
                stack[-1].sum.self_bytes += event.nbytes()
            continue
        if on != "cpu":
            if not event.is_user_annotation():  # Our ranges come again as the device sees them.
                kernels.append((event.linked_correlation_id(), event.duration_ns()))
            continue
        if event.is_async():
            continue
        begin, duration = event.start_ns(), event.duration_ns()
        found = sums.of(name)
        found.calls += 1
        found.total_ns += duration
        found.self_ns += duration
        stack = open_by_thread.setdefault(event.start_thread_id(), [])
        _close(stack, begin)
        if stack:
            stack[-1].sum.self_ns -= duration
        stack.append(_Open(found, begin + duration))
        launched[event.correlation_id()] = found
    for correlation, duration in kernels:
        if correlation in launched:
            launched[correlation].device_ns += duration
    return _table(sums, max(peak, 0))


def _close(stack: list[_Open] | None, now_ns: int) -> None:
    while stack and stack[-1].end_ns <= now_ns:
        stack.pop()


def _table(sums: _Sums, peak: int) -> Table:
    ours = [(name, each) for name, each in sums.by_name.items() if name.startswith(PREFIX)]
    others = [(name, each) for name, each in sums.by_name.items() if not name.startswith(PREFIX)]
    others.sort(key=lambda item: (item[1].device_ns, item[1].self_ns), reverse=True)
    rest = [each for _, each in others[MOST_OPERATORS:]]
    return Table(
        phases=[_entry(name.removeprefix(PREFIX), each) for name, each in ours],
        operators=[_entry(name, each) for name, each in others[:MOST_OPERATORS]],
        other_self_ms=sum(each.self_ns for each in rest) / _MS,
        other_device_ms=sum(each.device_ns for each in rest) / _MS,
        peak_bytes=peak,
    )


def _entry(name: str, found: _Sum) -> ProfileEntry:
    return ProfileEntry(
        name=name[:_LONGEST_NAME],
        calls=found.calls,
        total_ms=found.total_ns / _MS,
        self_ms=max(found.self_ns, 0) / _MS,
        device_ms=found.device_ns / _MS,
        self_bytes=found.self_bytes,
    )
