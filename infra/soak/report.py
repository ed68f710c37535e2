"""What a soak was and came to: Markdown for people, JSON for programs."""

from __future__ import annotations

import statistics
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from itertools import pairwise
from typing import Any

from infra.soak.watch import Life

SHOWN = 20
"""Complaints of one kind that are shown."""
AGES = (0, 30, 60, 120, 240, 480, 1000)
"""Seconds; between two of them memory is shown by its median."""


def markdown(report: Mapping[str, Any]) -> str:
    """The report as a page."""
    verdict = "every invariant holds" if report["passed"] else "FAILED"
    parts = [
        f"# Soak: {verdict}",
        _about(report),
        _table("Invariants", ("what must hold", "", "against it"), _invariants(report)),
        _table("Faults", ("fault", "times", "well again, s, median", "max"), _faults(report)),
        _table("Sent", ("kind", "times"), Counter(report["sent"]).most_common()),
        _table("Outcomes", ("status", "times"), Counter(report["outcomes"]).most_common()),
        _table("Alerts read", ("name", "times"), Counter(report["alerts"]).most_common()),
        _table("Runs", ("run", "steps", "longest stand, s", "telemetry"), report["runs"]),
        _table(
            "Latency, ms",
            ("what", "moments", "count", "p50", "p90", "p99", "max"),
            [list(row.values()) for row in report["latency"]],
        ),
        _table(
            "Memory in MiB / open files, by age of the process in s (medians)",
            ("process", "lives", *[f"{a} to {b}" for a, b in pairwise(AGES)]),
            report["memory"],
        ),
        _table("Longest lives", ("process", "age, s", "MiB", "files"), report["lives"]),
    ]
    return "\n\n".join(parts) + "\n"


def memory(lives: Iterable[Life]) -> list[list[object]]:
    """A row for each role: medians over all of its lives, by age."""
    by_role: dict[str, list[Life]] = {}
    for life in lives:
        by_role.setdefault(life.role, []).append(life)
    rows = []
    for role, found in sorted(by_role.items()):
        cells = []
        for begin, end in pairwise(AGES):
            samples = [s for life in found for s in life.samples if begin <= s[0] < end]
            mib = statistics.median(s[1] for s in samples) if samples else 0
            files = statistics.median(s[2] for s in samples) if samples else 0
            cells.append(f"{mib:.0f} / {files:.0f}" if samples else "")
        rows.append([role, len(found), *cells])
    return rows


def longest_lives(lives: Iterable[Life]) -> list[list[object]]:
    """A row for the longest life of each role that was judged: from what it grew to what."""
    best: dict[str, Life] = {}
    for life in lives:
        if life.growth() and life.age > (best[life.role].age if life.role in best else 0):
            best[life.role] = life
    rows: list[list[object]] = []
    for role, life in sorted(best.items()):
        mib, grown, files, opened = life.growth() or (0, 0, 0, 0)
        rows.append(
            [role, f"{life.age:.0f}", f"{mib:.0f} → {grown:.0f}", f"{files:.0f} → {opened:.0f}"]
        )
    return rows


def _about(report: Mapping[str, Any]) -> str:
    return (
        f"`{report['command']}`: {report['seconds']:.0f} s, of them {report['injecting']:.0f} with "
        f"faults; {report['cores']} cores, load {report['load']}. Alerts with a known cause: "
        f"{report['expected_alerts']}, {report['excused_alerts']} of them excused. "
        f"Started: {', '.join(f'{name} {count}' for name, count in report['starts'].items())}."
    )


def _invariants(report: Mapping[str, Any]) -> list[list[object]]:
    rows: list[list[object]] = []
    for name, lines in report["invariants"].items():
        rows.append([name, "FAILED" if lines else "ok", len(lines) or ""])
        rows += [["", "", line] for line in lines[:SHOWN]]
    return rows


def _faults(report: Mapping[str, Any]) -> list[list[object]]:
    took: dict[str, list[float]] = {}
    for _, name, _, well in report["faults"]:
        took.setdefault(name, []).append(well)
    return [
        [name, len(found), f"{statistics.median(found):.1f}", f"{max(found):.1f}"]
        for name, found in sorted(took.items(), key=lambda item: -len(item[1]))
    ]


def _table(title: str, heads: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    lines = [f"## {title}", "", _row(heads), _row(["---"] * len(heads)), *map(_row, rows)]
    return "\n".join(lines)


def _row(cells: Iterable[object]) -> str:
    return "| " + " | ".join(str(cell).replace("|", "\\|") for cell in cells) + " |"
