"""Where the time goes, as tables of 80 columns, or as JSON."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Final

import orjson

from tolaria_bus.cli.amounts import duration, size
from tolaria_bus.cli.amounts import milliseconds as _ms
from tolaria_bus.cli.style import Part, paint
from tolaria_bus.leyline import Histogram, MetricPoint, ProfileEntry, ProfileReport, TelemetryPacket
from tolaria_bus.leyline.json_form import plain

METRIC: Final = "tolaria.phase_ms"
"""That has the phases' histograms."""
_HOST: Final = "host"
_NAME: Final = 11
_OPERATOR: Final = 33
_MOST_OPERATORS: Final = 20
"""That a table names; JSON has all that came."""


# What is told all the time


def phases_table(packet: TelemetryPacket, *, colour: bool) -> Iterator[str]:
    """Lines of the phases since the process began."""
    points = _phases(packet)
    whole = sum(point.histogram.sum for point in points if _clock(point) == _HOST)
    yield paint(
        [
            (f"{packet.training_run_id}", "name"),
            (f"phases of {duration(whole / 1e3)} up to step {packet.global_step}", "plain"),
        ],
        colour=colour,
    )
    yield _dim(
        f"{'phase':<{_NAME}} {'share':>7} {'total':>9} {'times':>9}"
        f" {'mean ms':>8} {'p50':>8} {'p99':>8} {'longest':>9}",
        colour,
    )
    for clock in (_HOST, "device"):
        rows = [point for point in points if _clock(point) == clock]
        if clock != _HOST and rows:
            yield _dim("on the device, of one step in 16:", colour)
        for point in sorted(rows, key=lambda point: -point.histogram.sum):
            yield _phase_line(point, whole if clock == _HOST else 0.0, colour=colour)


def phases_json(packet: TelemetryPacket) -> str:
    """One JSON object: run, step, and each phase with its numbers."""
    points = _phases(packet)
    whole = sum(point.histogram.sum for point in points if _clock(point) == _HOST)
    rows = [
        {
            "phase": point.attributes["phase"],
            "clock": _clock(point),
            "count": point.histogram.count,
            "total_ms": point.histogram.sum,
            "share": point.histogram.sum / whole if whole and _clock(point) == _HOST else None,
            "mean_ms": point.value,
            "p50_ms": percentile(point.histogram, 0.5),
            "p99_ms": percentile(point.histogram, 0.99),
            "max_ms": point.histogram.max,
        }
        for point in points
    ]
    told = {"run": packet.training_run_id, "step": packet.global_step, "phases": rows}
    return orjson.dumps(told).decode()


def percentile(histogram: Histogram, share: float) -> float:
    """The end of the bucket up to which there is that share of the values; at most the largest."""
    wanted, seen = share * sum(histogram.counts), 0
    for bound, count in zip(histogram.bounds, histogram.counts, strict=False):
        seen += count
        if seen >= wanted:
            return min(bound, histogram.max)
    return histogram.max


def _phases(packet: TelemetryPacket) -> list[MetricPoint]:
    return [point for point in packet.metrics if point.name == METRIC]


def _clock(point: MetricPoint) -> str:
    return point.attributes["clock"] or _HOST


def _phase_line(point: MetricPoint, whole: float, *, colour: bool) -> str:
    histogram = point.histogram
    return paint(
        [
            (f"{point.attributes['phase'][:_NAME]:<{_NAME}}", "name"),
            (f"{histogram.sum / whole:>7.1%}" if whole else " " * 7, "plain"),
            (f"{duration(histogram.sum / 1e3):>9}", "plain"),
            (f"{histogram.count:>9}", "dim"),
            (f"{_ms(point.value):>8}", "plain"),
            (f"{_ms(percentile(histogram, 0.5)):>8}", "plain"),
            (f"{_ms(percentile(histogram, 0.99)):>8}", "plain"),
            (f"{_ms(histogram.max):>9}", "plain"),
        ],
        colour=colour,
    )


# A trace


def report_table(report: ProfileReport, *, colour: bool) -> Iterator[str]:
    """Lines of what a trace says; times are milliseconds for each step."""
    steps = max(report.steps, 1)
    whole = report.milliseconds / steps
    told = f"{report.steps} steps from step {report.first_step} on, {_ms(whole)} ms each"
    head: list[Part] = [(told, "name"), (f"on {report.device} of {report.host}", "dim")]
    yield paint(head, colour=colour)
    if report.cut_short:
        yield paint([("not all that were asked for:", "warn"), (report.cut_short, "plain")],
                    colour=colour)  # fmt: skip
    if report.phases:
        yield _dim(f"{'phase':<{_NAME}} {'share':>7} {'ms/step':>9} {'no operator':>12}", colour)
    for entry in sorted(report.phases, key=lambda entry: -entry.total_ms):
        share = entry.total_ms / report.milliseconds if report.milliseconds else 0.0
        yield paint(
            [
                (f"{entry.name[:_NAME]:<{_NAME}}", "name"),
                (f"{share:>7.1%}", "plain"),
                (f"{_ms(entry.total_ms / steps):>9}", "plain"),
                (f"{_ms(entry.self_ms / steps):>12}", "dim"),
            ],
            colour=colour,
        )
    yield from _operators(report, steps, colour=colour)
    if report.peak_bytes:
        peak = f"at most {size(report.peak_bytes)} above the beginning"
        yield paint([("memory:", "name"), (peak, "plain")], colour=colour)
    yield paint(_where(report), colour=colour)


def report_json(run: str, report: ProfileReport) -> str:
    """One JSON object: the run, and the ``ProfileReport``."""
    told: dict[str, Any] = {"run": run, **plain(report)}
    return orjson.dumps(told).decode()


def _operators(report: ProfileReport, steps: int, *, colour: bool) -> Iterator[str]:
    if not report.operators:
        return
    device = any(entry.device_ms for entry in report.operators)
    head = f"{'operator':<{_OPERATOR}} {'calls':>8} {'self ms':>8}"
    yield _dim(head + (f" {'device':>8}" if device else "") + f" {'memory':>10}", colour)
    for entry in report.operators[:_MOST_OPERATORS]:
        yield paint(
            [
                (f"{_short(entry.name):<{_OPERATOR}}", "plain"),
                (f"{entry.calls / steps:>8.3g}", "dim"),
                (f"{_ms(entry.self_ms / steps):>8}", "plain"),
                (f"{_ms(entry.device_ms / steps):>8}" if device else "", "plain"),
                (f"{_bytes(entry, steps):>10}", "dim"),
            ],
            colour=colour,
        )
    rest = report.operators[_MOST_OPERATORS:]
    left = report.other_self_ms + sum(entry.self_ms for entry in rest)
    if left:
        more = "and others (--json has more)" if rest else "and others"
        yield _dim(f"{more:<{_OPERATOR}} {'':>8} {_ms(left / steps):>8}", colour)


def _where(report: ProfileReport) -> list[Part]:
    if not report.trace:
        return [("no trace:", "warn"), (report.trace_failed, "plain")]
    return [
        ("trace:", "name"),
        (f"{report.trace} ({size(report.trace_bytes)})", "plain"),
        ("for https://ui.perfetto.dev", "dim"),
    ]


def _short(name: str) -> str:
    name = name.replace("autograd::engine::evaluate_function:", "autograd:")
    return name if len(name) <= _OPERATOR else f"{name[: _OPERATOR - 1]}…"


def _bytes(entry: ProfileEntry, steps: int) -> str:
    each = entry.self_bytes // steps
    if not each:
        return ""
    return size(each) if each > 0 else f"-{size(-each)}"


def _dim(text: str, colour: bool) -> str:
    return paint([(text, "dim")], colour=colour)
