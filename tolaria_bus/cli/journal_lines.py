"""Journal records, and what happened to a run, as lines and as JSON."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any, Final

import orjson

from tolaria_bus.cli.describe import describe
from tolaria_bus.cli.render import local_time
from tolaria_bus.cli.style import Part, Style
from tolaria_bus.leyline import (
    AdaptationCommand,
    CommandOutcome,
    CommandStatus,
    Decision,
    JournalRecord,
    RunStarted,
    TimelineCut,
)
from tolaria_bus.leyline.codec import short_name
from tolaria_bus.leyline.json_form import plain
from tolaria_bus.tolaria.recovery.history import Happening

Parts = list[Part]

UNDONE: Final = "✗"
"""Before what a later rollback undid."""
_STATUS_STYLES: Final[dict[int, Style]] = {
    CommandStatus.COMMAND_STATUS_APPLIED: "good",
    CommandStatus.COMMAND_STATUS_REJECTED: "bad",
    CommandStatus.COMMAND_STATUS_EXPIRED: "bad",
}
_KIND_STYLES: Final[dict[str, Style]] = {
    "cut": "warn",
    "decision": "warn",
    "started": "name",
    "stopped": "name",
    "intent": "note",
}
_KIND_WIDTH: Final = len("checkpoint")


def record_line(record: JournalRecord, *, undone: bool) -> Parts:
    """Sequence, time, place, kind, what it says."""
    kind = record.WhichOneof("record") or "unknown"
    return [
        (UNDONE if undone else "·", "bad" if undone else "dim"),
        (f"{record.sequence:>6}", "dim"),
        (local_time(record.written_at_ns / 1e9), "dim"),
        (_place(record.timeline, record.step), "name"),
        (f"{kind:<{_KIND_WIDTH}}", _KIND_STYLES.get(kind, "dim")),
        *_says(record),
    ]


def record_json(record: JournalRecord, *, undone: bool) -> str:
    """One JSON object: the record with its command decoded, and ``undone``."""
    written = plain(record)
    for kind in ("intent", "deferred"):
        if record.WhichOneof("record") == kind:
            written[kind]["command"] = plain(_command(getattr(record, kind).command))
    return orjson.dumps({**written, "undone": undone}).decode()


def command_id(record: JournalRecord) -> str:
    """Of the command that a record is about; empty if of none."""
    match record.WhichOneof("record"):
        case "intent" | "attempt" | "result" | "deferred" | "cut" as kind:
            return str(getattr(record, kind).command_id)
        case _:
            return ""


def happening_line(happening: Happening) -> Parts:
    """Time, place, what happened."""
    return [
        (UNDONE if happening.undone else "·", "bad" if happening.undone else "dim"),
        (local_time(happening.at_ns / 1e9), "dim"),
        (_place(happening.timeline, happening.step), "name"),
        *_TELLERS[happening.kind](happening),
    ]


def happening_json(happening: Happening) -> str:
    """One JSON object: ``kind``, place and time, and what else there is to it."""
    written: dict[str, Any] = {
        "kind": happening.kind,
        "at": happening.at_ns / 1e9,
        "timeline": happening.timeline,
        "step": happening.step,
        "epoch": happening.epoch,
        "undone": happening.undone,
    }
    if happening.told is not None:
        written["told"] = plain(happening.told)
    if happening.command is not None:
        written["command"] = plain(happening.command)
    if happening.name:
        written["name"] = happening.name
    if happening.kind == "rollback":
        written["undid"] = list(happening.commands)
    if happening.kind == "resumed":
        written["steps_again"] = happening.again
        if any(happening.planned_before):
            steps, epochs = happening.planned_before
            written["planned_before"] = {"steps": steps, "epochs": epochs}
    return orjson.dumps(written).decode()


def _place(timeline: int, step: int) -> str:
    return f"t{timeline} step {step:<6}"


def _command(data: bytes) -> AdaptationCommand:
    return AdaptationCommand.FromString(data)


# What a record says


def _says(record: JournalRecord) -> Parts:
    match record.WhichOneof("record"):
        case "started":
            return _started(record.started)
        case "intent":
            return describe(_command(record.intent.command))
        case "attempt":
            return [(f"number {record.attempt.number}", "plain"), _id(record.attempt.command_id)]
        case "result":
            return describe(record.result.outcome)
        case "deferred":
            later = record.deferred
            fence = f"epoch {later.at_epoch}" if later.at_epoch else f"step {later.at_step}"
            return [(f"to {fence}:", "note"), *describe(_command(later.command))]
        case "decision":
            return _decision(record.decision)
        case "cut":
            return _cut(record.cut)
        case "checkpoint":
            return [(record.checkpoint.name, "plain")]
        case "stopped":
            return [(f"by {record.stopped.stopped_by}", "plain")]
        case _:
            return [("(of a newer version)", "warn")]


def _started(started: RunStarted) -> Parts:
    return [*_start(started), (_environment(sorted(started.environment.items())), "dim")]


def _start(started: RunStarted) -> Parts:
    options = [f"job.{name}={value}" for name, value in sorted(started.job_options.items())]
    return [
        (f"job {started.job}", "plain"),
        (" ".join(options), "plain"),
        (f"seed {started.seed}", "plain"),
        (_length((started.planned_steps, started.planned_epochs)), "plain"),
        (f"from {started.resumed_from}" if started.resumed_from else "", "note"),
    ]


def _length(planned: tuple[int, int]) -> str:
    steps, epochs = planned
    return f"{_count(steps, 'step')} ({_count(epochs, 'epoch')})" if steps else ""


def _environment(items: Iterable[tuple[str, str]]) -> str:
    return ", ".join(f"{name} {value}" for name, value in items)


def _decision(decision: Decision) -> Parts:
    values = " ".join(f"{name}={value}" for name, value in sorted(decision.values.items()))
    return [(f"{decision.kind}:", "warn"), (decision.reason, "plain"), (values, "dim")]


def _cut(cut: TimelineCut) -> Parts:
    from_there = f"from {cut.checkpoint}" if cut.checkpoint else "from memory"
    rates = f"rates times {cut.lr_factor:g}" if cut.lr_factor != 1.0 else ""
    return [
        (f"back from step {cut.from_step} to step {cut.target_step}", "warn"),
        (f"({cut.cause})", "plain"),
        (from_there, "plain"),
        (rates, "plain"),
        (f"data goes on at batch {cut.data_position}", "dim"),
        _id(cut.command_id),
    ]


def _id(command: str) -> Part:
    return (f"id {command}" if command else "", "dim")


# What happened


def _tell_start(happening: Happening) -> Parts:
    assert isinstance(happening.told, RunStarted)
    again = happening.again
    resumed = happening.kind == "resumed"
    longer = f"it had {_length(happening.planned_before)}" if any(happening.planned_before) else ""
    other = f"under another environment: {_environment(happening.changed)}"
    return [
        (happening.kind, "name"),
        *_start(happening.told),
        (longer, "warn"),
        (f"({_count(again, 'step')} made again)" if again else "", "note"),
        (other, "warn") if resumed and happening.changed else ("", "plain"),
        ("" if resumed else _environment(happening.changed), "dim"),
    ]


def _tell_died(happening: Happening) -> Parts:
    del happening
    return [("the process ended without a word (killed, or out of power)", "bad")]


def _tell_unended(happening: Happening) -> Parts:
    if happening.name:
        return [(f"goes on: process {happening.name} works on it", "good")]
    return [("no end: it was killed, or goes on on another machine", "warn")]


def _tell_stop(happening: Happening) -> Parts:
    why = {"finished": "its end", "command": "a command", "signal": "a signal"}
    return [("stopped", "name"), (f"by {why.get(happening.name, happening.name)}", "plain")]


def _tell_command(happening: Happening) -> Parts:
    outcome = happening.told
    assert isinstance(outcome, CommandOutcome)
    status = short_name(CommandStatus, outcome.status)
    if happening.command is None:
        return describe(outcome)
    code = outcome.code if outcome.code not in ("", "ok") else ""
    return [
        (status, _STATUS_STYLES.get(outcome.status, "warn")),
        *describe(happening.command),
        (f"{code}: {outcome.reason}" if code else "", "warn"),
    ]


def _tell_unfinished(happening: Happening) -> Parts:
    assert happening.command is not None
    return [("begun, without a result yet:", "warn"), *describe(happening.command)]


def _tell_waiting(happening: Happening) -> Parts:
    assert happening.command is not None
    return [(f"waits for {happening.name}:", "note"), *describe(happening.command)]


def _tell_rollback(happening: Happening) -> Parts:
    assert isinstance(happening.told, TimelineCut)
    undid = ", ".join(happening.commands)
    return [("rollback", "warn"), *_cut(happening.told), (f"undid {undid}" if undid else "", "bad")]


def _tell_decision(happening: Happening) -> Parts:
    assert isinstance(happening.told, Decision)
    return _decision(happening.told)


def _tell_checkpoint(happening: Happening) -> Parts:
    return [("checkpoint", "dim"), (happening.name, "plain")]


_TELLERS: Final = {
    "started": _tell_start,
    "resumed": _tell_start,
    "died": _tell_died,
    "unended": _tell_unended,
    "stopped": _tell_stop,
    "command": _tell_command,
    "unfinished": _tell_unfinished,
    "waiting": _tell_waiting,
    "rollback": _tell_rollback,
    "decision": _tell_decision,
    "checkpoint": _tell_checkpoint,
}


def heading(happenings: list[Happening], run: str) -> Iterator[Part]:
    """What to know before reading a history: the run, and how much of it."""
    applied = sum(
        item.kind == "command"
        and isinstance(item.told, CommandOutcome)
        and item.told.status == CommandStatus.COMMAND_STATUS_APPLIED
        for item in happenings
    )
    rollbacks = sum(item.kind == "rollback" for item in happenings)
    starts = sum(item.kind in ("started", "resumed") for item in happenings)
    yield (f"run {run}:", "name")
    yield (f"{_count(starts, 'start')}, {_count(applied, 'command')} applied,", "plain")
    yield (f"{_count(rollbacks, 'rollback')}", "plain")
    if any(item.undone for item in happenings):
        yield (f"({UNDONE}: undone by a later one)", "bad")


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}{'' if number == 1 else 's'}"
