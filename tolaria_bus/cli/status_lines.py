"""How a run is, as a page, and how all are, as a table; 80 columns where ids allow it."""

from __future__ import annotations

import textwrap
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final

from tolaria_bus.cli.amounts import duration
from tolaria_bus.cli.render import local_time
from tolaria_bus.cli.style import Part, Style, paint

if TYPE_CHECKING:
    from tolaria_bus.cli.status_asking import Seen

_WIDTH: Final = 80
_HEAD: Final = 13
_STYLES: Final[Mapping[str, Style]] = {
    "running": "good",
    "finished": "good",
    "conservative": "warn",
    "starting": "note",
    "paused": "note",
    "stopped": "note",
    "taken over": "note",
    "halted": "loud",
    "hung": "loud",
    "silent": "bad",
    "dead": "bad",
    "failed": "bad",
}
_BREAKER_STYLES: Final[Mapping[str, Style]] = {"open": "bad", "half_open": "warn"}


def page(seen: Seen, *, colour: bool) -> Iterator[str]:
    """Everything about one run, a line or a few for each thing."""
    told, state = seen.told, seen.state
    yield paint(
        [(seen.run, "name"), (state.name.upper(), _style(state.name)), (state.why, "plain")],
        colour=colour,
    )
    for head, style, texts in _things(seen):
        for number, text in enumerate(texts):
            for place, part in enumerate(textwrap.wrap(text, _WIDTH - _HEAD - 1) or [""]):
                first = head if not number and not place else ""
                yield paint([(f"{first:<{_HEAD}}", "dim"), (part, style)], colour=colour)
    if not told:
        yield paint([(f"{'':<{_HEAD}}", "dim"), ("nothing more is known", "dim")], colour=colour)


def table(seen: Sequence[Seen], *, colour: bool) -> Iterator[str]:
    """A line for each run."""
    if not seen:
        yield paint([("no runs", "warn"), ("are known there", "dim")], colour=colour)
        return
    width = max(3, *(len(run.run) for run in seen))
    head = f"{'run':<{width}} {'state':<12} {'step':>15} {'loss':>9} {'accuracy':>8}"
    yield paint([(f"{head} {'steps/s':>7} {'heard of':>9}", "dim")], colour=colour)
    for run in seen:
        told, state = run.told, run.state
        steps = f"{_whole(told.get('step'))}/{_whole(told.get('total_steps'))}" if told else ""
        age = "" if state.age is None else duration(state.age)
        parts: list[Part] = [
            (f"{run.run:<{width}}", "name"),
            (f"{state.name:<12}", _style(state.name)),
            (f"{steps:>15}", "plain"),
            (f"{_figure(told.get('loss')):>9}", "plain"),
            (f"{_percent(told.get('accuracy')):>8}", "plain"),
            (f"{_figure(told.get('steps_per_second'), 3):>7}", "plain"),
            (f"{age:>9}", "dim"),
        ]
        yield paint(parts, colour=colour)


def _style(name: str) -> Style:
    return _STYLES.get(name, "plain")


Thing = tuple[str, Style, Iterable[str]]


def _things(seen: Seen) -> Iterator[Thing]:
    told = seen.told
    if told:
        yield "where", "plain", _where(seen)
        yield "at", "plain", [_at(told)]
        yield "training", "plain", [_training(told)]
        yield from _emergency(told)
        yield from _modes(told)
        yield from _breakers(told)
        yield from _waiting(told)
        yield from _seeds(told)
        yield from _kept(told, seen.state.age)
    yield from _bus(seen)


def _where(seen: Seen) -> list[str]:
    told, age = seen.told, seen.state.age
    job = f"{told['job']} on" if told.get("job") else "on"
    heard = f", heard of {duration(age)} ago" if age is not None else ""
    return [
        f"{job} {told.get('host')}, pid {told.get('pid')}",
        f"since {_clock(told.get('started'))}{heard}",
    ]


def _at(told: Mapping[str, Any]) -> str:
    return (
        f"step {_whole(told.get('step'))}/{_whole(told.get('total_steps'))},"
        f" epoch {_whole(told.get('epoch'))}/{_whole(told.get('epochs'))},"
        f" timeline {_whole(told.get('timeline'))}"
    )


def _training(told: Mapping[str, Any]) -> str:
    words = [
        f"loss {_figure(told.get('loss'))}",
        f"accuracy {_percent(told.get('accuracy'))}" if _percent(told.get("accuracy")) else "",
        f"lr {_figure(told.get('learning_rate'))}",
        f"{_figure(told.get('steps_per_second'), 3)} steps/s",
        str(told.get("profiling") or ""),
    ]
    return ", ".join(filter(None, words))


def _emergency(told: Mapping[str, Any]) -> Iterator[Thing]:
    note = told.get("emergency")
    if not isinstance(note, Mapping):
        return
    by = f" by {note['by']}" if note.get("by") else ""
    falls = note.get("falls_at_step")
    level = str(note.get("level")).upper()
    what = f"{note.get('reason')} ({note.get('cause')})"
    ends = f"falls at step {_whole(falls)} if nothing happens" if falls else "ends: send resume"
    yield (
        "emergency",
        "bad",
        [f"{level} since step {_whole(note.get('since_step'))}{by}: {what}", ends],
    )


def _modes(told: Mapping[str, Any]) -> Iterator[Thing]:
    for name, head in (("held", "held"), ("conservative", "conservative")):
        note = told.get(name)
        if not isinstance(note, Mapping):
            continue
        texts = [_asked(note)]
        if isinstance(note.get("off"), list):
            texts.append("off: " + ", ".join(map(str, note["off"])))
        if note.get("ends"):
            texts.append(f"ends: {note['ends']}")
        yield head, "warn", texts


def _asked(note: Mapping[str, Any]) -> str:
    by = f" by {note['by']}" if note.get("by") else ""
    reason = f": {note['reason']}" if note.get("reason") else ""
    return f"since step {note.get('since_step')} ({_clock(note.get('since'))}){by}{reason}"


def _breakers(told: Mapping[str, Any]) -> Iterator[Thing]:
    found = _list(told, "breakers")
    if not found:
        return
    odd = [each for each in found if each.get("state") != "closed"]
    failing = [each for each in found if each.get("state") == "closed" and each.get("failures")]
    closed = [str(each.get("name")) for each in found if each not in odd and each not in failing]
    first = "breakers"
    for each in odd:
        state = str(each.get("state"))
        unit = "epoch" if each.get("unit") == "epochs" else "step"
        since = f"since {unit} {_figure(each.get('since'), 12)}"
        yield (
            first,
            _BREAKER_STYLES.get(state, "plain"),
            [
                f"{each.get('name')} {state.upper()} {since}: {each.get('reason')}",
                f"closes: {each.get('ends')}",
            ],
        )
        first = ""
    for each in failing:
        count = f"{each.get('failures')} of {each.get('threshold')} failures in a row"
        yield first, "warn", [f"{each.get('name')} closed, {count}"]
        first = ""
    if closed:
        yield first, "plain", [f"{', '.join(closed)} closed"]


def _waiting(told: Mapping[str, Any]) -> Iterator[Thing]:
    commands = _list(told, "deferred_commands")
    texts = []
    for each in commands:
        step, epoch = each.get("at_step"), each.get("at_epoch")
        fence = f"step {step}" if step else f"epoch {epoch}"
        by = f", by {each['by']}" if each.get("by") else ""
        reason = f": {each['reason']}" if each.get("reason") else ""
        name = str(each.get("command", "")).lower().replace("_", " ")
        texts.append(f"{name} at {fence}{by}, id {each.get('command_id')}{reason}")
    every = told.get("deferred")
    left = len(every) - len(commands) if isinstance(every, list) else 0
    if left > 0:
        texts.append(f"and {left} more")
    yield "deferred", "plain", texts or ["none"]


def _seeds(told: Mapping[str, Any]) -> Iterator[Thing]:
    texts = [
        f"{each.get('seed_id')} {each.get('stage')} in {each.get('slot')}"
        f" ({each.get('blueprint_id')}, {_whole(each.get('parameters'))} parameters),"
        f" grown at step {each.get('since_step')}"
        for each in _list(told, "seeds")
    ]
    yield "seeds", "plain", texts or ["none"]


def _kept(told: Mapping[str, Any], age: float | None) -> Iterator[Thing]:
    found = told.get("checkpoint")
    if not isinstance(found, Mapping):
        yield "checkpoint", "warn", ["none yet"]
        return
    beat, written = told.get("beat"), found.get("written")
    old = ""
    if isinstance(beat, int | float) and isinstance(written, int | float):
        # Both by the worker's clock.
        old = f", {duration(max(beat - written, 0.0) + (age or 0.0))} old"
    yield "checkpoint", "plain", [f"{found.get('name')}{old}"]


def _bus(seen: Seen) -> Iterator[Thing]:
    lag, pending = seen.control.get("lag"), seen.control.get("pending")
    unread = "unknown" if lag is None else str(lag)
    yield "control", "warn" if lag else "plain", [f"{unread} unread, {pending} in work"]
    letters = seen.dead_letters
    shown = f"{letters} (tolaria-bus dlq ls --run {seen.run})" if letters else "none"
    yield "dead letters", "warn" if letters else "plain", [shown]


def _list(told: Mapping[str, Any], name: str) -> list[Mapping[str, Any]]:
    found = told.get(name)
    return [each for each in found if isinstance(each, Mapping)] if isinstance(found, list) else []


def _clock(seconds: object) -> str:
    shown = local_time(float(seconds)) if isinstance(seconds, int | float) else "(no time)"
    return shown.partition(".")[0]


def _whole(value: object) -> str:
    return f"{value}" if isinstance(value, int) else "?"


def _figure(value: object, digits: int = 4) -> str:
    return f"{value:.{digits}g}" if isinstance(value, int | float) else "-"


def _percent(value: object) -> str:
    return f"{value:.2%}" if isinstance(value, int | float) else ""
