"""What a run's journal has, as ``journal show`` and ``history`` tell it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import orjson
import pytest

from tests.cli.conftest import Call
from tests.trainer.conftest import make_run  # noqa: F401 - a fixture
from tests.trainer.lives import Power
from tests.trainer.test_recovery import FailsAtOutcome, steer
from tolaria_bus.tolaria.recovery.run_folder import RunFolder


def contents(path: Path) -> dict[str, bytes]:
    return {str(file): file.read_bytes() for file in path.rglob("*") if file.is_file()}


@pytest.fixture
def steered(make_run, clean_place: Path) -> Path:  # noqa: F811
    """A run that was steered, rolled back, and ended."""
    run = make_run("runs/r")
    steer(run)
    run.send(
        """{"commandId": "gone", "commandType": "LEARNING_RATE", "issuedBy": "operator/bob",
        "learningRate": {"learningRate": 0.002}, "annotations": {"reason": "no\\u001b[2J"}}""",
        at_step=35,
    )
    run.train()
    return Path(run.path)


def parsed(lines: list[str]) -> list[Any]:
    return [orjson.loads(line) for line in lines]


async def test_every_record_is_shown_and_what_a_rollback_undid_is_marked(
    cli: Call, steered: Path
) -> None:
    before = contents(steered)
    ended = await cli("journal", "show", "r")
    assert (ended.code, ended.err) == (0, "")
    assert contents(steered) == before
    as_json = parsed((await cli("journal", "show", str(steered), "--json")).lines)
    assert [int(item["sequence"]) for item in as_json] == list(range(1, len(ended.lines) + 1))
    undone = [item for item in as_json if item["undone"]]
    assert {next(iter(item.keys() & {"intent", "attempt", "result"})) for item in undone} == {
        "intent",
        "attempt",
        "result",
    }
    ids = {next(iter(item.values()))["commandId"] for item in _bodies(undone)}
    assert ids == {"gone", "back"}
    marked = [line for line in ended.lines if line.startswith("✗")]
    assert len(marked) == len(undone)
    assert "\x1b" not in ended.out
    [shown] = [line for line in marked if "intent" in line and "gone" in line]
    assert "learning rate learningRate:0.002 “no\\x1b[2J” at_step=35" in shown


def _bodies(records: list[Any]) -> list[dict[str, Any]]:
    kinds = ("intent", "attempt", "result")
    return [{kind: item[kind] for kind in kinds if kind in item} for item in records]


@pytest.mark.parametrize(
    ("words", "kinds"),
    [
        (("--kind", "cut"), {"cut"}),
        (("--kind", "cut", "--kind", "started"), {"cut", "started"}),
        (("--command", "seed"), {"deferred", "intent", "attempt", "result"}),
        (("--steps", "19"), {"intent", "attempt", "result"}),
        (("--steps", "35:40"), {"intent", "attempt", "result"}),
        (("--steps", "33:40", "--live", "--kind", "intent"), set()),
        (("--steps", ":3"), {"started", "checkpoint", "deferred"}),
        (("--steps", "59:"), {"checkpoint", "stopped"}),
    ],
)
async def test_records_are_chosen(
    cli: Call, steered: Path, words: tuple[str, ...], kinds: set[str]
) -> None:
    del steered
    found = parsed((await cli("journal", "show", "r", "--json", *words)).lines)
    known = {"started", "intent", "attempt", "result", "deferred", "cut", "checkpoint", "stopped"}
    assert {kind for item in found for kind in item.keys() & known} == kinds


async def test_history_tells_what_happened_and_what_of_it_lasts(cli: Call, steered: Path) -> None:
    ended = await cli("history", "r")
    assert (ended.code, ended.err) == (0, "")
    assert ended.lines[0].startswith("run r: 1 start, 6 commands applied, 1 rollback (✗: undone")
    [started] = [line for line in ended.lines if " started " in line]
    assert "job moons" in started
    assert "torch " in started
    [undone] = [line for line in ended.lines if line.endswith(" id gone")]
    assert undone.startswith("✗")
    assert "APPLIED learning rate" in undone
    assert "by operator/bob" in undone
    [back] = [line for line in ended.lines if " rollback back from " in line]
    assert "back from step 37 to step 32 (command)" in back
    assert "rates times 0.5" in back
    assert back.endswith("undid gone")
    assert ended.lines[-1].endswith("stopped by its end")
    as_json = parsed((await cli("history", "r", "--json")).lines)
    assert len(as_json) == len(ended.lines) - 1
    [rollback] = [item for item in as_json if item["kind"] == "rollback"]
    assert rollback["undid"] == ["gone"]
    assert rollback["told"]["targetStep"] == "32"
    del steered


async def test_history_tells_of_a_process_that_was_killed_and_of_what_it_left(
    cli: Call,
    make_run,  # noqa: F811
    clean_place: Path,
) -> None:
    run = make_run("whole")
    run.outbound = FailsAtOutcome(Power(run.path, clean_place / "runs" / "r"), 7)
    steer(run)
    run.train()
    left = await cli("history", "r")
    assert left.lines[-1].endswith("no end: it was killed, or goes on on another machine")
    assert [line for line in left.lines if "waits for step 19: seed germinate s1" in line]
    resumed = make_run("runs/r")
    resumed.train()
    ended = await cli("history", "r")
    [died] = [line for line in ended.lines if "ended without a word" in line]
    [again] = [line for line in ended.lines if " resumed " in line]
    assert ended.lines.index(died) + 1 == ended.lines.index(again)
    assert "from step-00000000-t1-s0" in again
    assert "(11 steps made again)" in again
    assert "environment" not in again


async def test_another_length_than_before_is_told(
    cli: Call,
    make_run,  # noqa: F811
    clean_place: Path,
) -> None:
    del clean_place
    for length in ({"epochs": 1}, {"epochs": 1}, {"steps": 40}):
        make_run("runs/r", **length).train()
    started = (await cli("journal", "show", "r", "--kind", "started")).lines
    assert ["16 steps (1 epoch)" in line for line in started] == [True, True, False]
    assert "40 steps (3 epochs)" in started[2]
    resumed = [line for line in (await cli("history", "r")).lines if " resumed " in line]
    assert ["it had" in line for line in resumed] == [False, True]
    assert "40 steps (3 epochs)" in resumed[1]
    assert "it had 16 steps (1 epoch)" in resumed[1]
    as_json = parsed((await cli("history", "r", "--json")).lines)
    told = [item.get("planned_before") for item in as_json if item["kind"] == "resumed"]
    assert told == [None, {"steps": 16, "epochs": 1}]


async def test_a_run_that_somebody_works_on_is_said_to_go_on(
    cli: Call,
    make_run,  # noqa: F811
    clean_place: Path,
) -> None:
    run = make_run("whole")
    run.outbound = FailsAtOutcome(Power(run.path, clean_place / "runs" / "r"), 7)
    steer(run)
    run.train()
    folder = RunFolder.open(clean_place / "runs" / "r")
    try:
        assert "goes on: process" in (await cli("history", "r")).lines[-1]
        assert (await cli("journal", "show", "r")).code == 0
    finally:
        folder.close()


async def test_a_torn_tail_is_reported_and_left_where_it_is(cli: Call, steered: Path) -> None:
    path = steered / "journal-000001.log"
    sound = path.read_bytes()
    path.write_bytes(sound + b"TJR1 torn")
    for words in (("journal", "show", "r"), ("history", "r", "--json")):
        ended = await cli(*words)
        assert ended.code == 0
        assert (
            f"journal-000001.log: behind the last record, at byte {len(sound)}, are 9" in ended.err
        )
    assert path.read_bytes() == sound + b"TJR1 torn"


async def test_a_damaged_journal_is_one_line_that_says_where(cli: Call, steered: Path) -> None:
    path = steered / "journal-000001.log"
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    ended = await cli("history", "r")
    assert (ended.code, ended.out, ended.err.count("\n")) == (2, "", 1)
    assert "journal is damaged: journal-000001.log at byte" in ended.err


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (("history", "nowhere"), "nowhere: no run of this id"),
        (("history", "no/where"), "no/where: there is no such folder"),
        (("history", "."), "no journal of a run in it"),
        (("journal", "show", "r", "--kind", "cuts"), "--kind cuts"),
        (("journal", "show", "r", "--steps", "a:b"), "--steps a:b"),
        (("journal", "shew", "r"), "did you mean show?"),
    ],
)
async def test_a_wrong_word_is_one_line(
    cli: Call, clean_place: Path, words: tuple[str, ...], says: str
) -> None:
    del clean_place
    ended = await cli(*words)
    assert (ended.code, ended.out, ended.err.count("\n")) == (2, "", 1)
    assert says in ended.err
