"""``run JOB --replay RUN``: what it prints, writes and returns."""

from __future__ import annotations

from pathlib import Path

import orjson
import pytest

from tests.cli.conftest import Call
from tests.cli.test_journal import contents
from tests.trainer.conftest import Moons, make_run  # noqa: F401 - a fixture
from tests.trainer.test_recovery import steer
from tolaria_bus.tolaria.recovery.journal import read_records

JOB = "tests.trainer.conftest:Moons"


class Faster(Moons):
    """It learns otherwise; the model is the same."""

    def __init__(self) -> None:
        super().__init__(lr=0.02)


class Wilder(Moons):
    """Its loss is not finite after a while."""

    def loss(self, model, batch):
        return super().loss(model, batch) * (float("nan") if model.training else 1.0)


@pytest.fixture
def recorded(make_run, clean_place: Path) -> Path:  # noqa: F811
    """A run that was steered, and ended at step 40."""
    run = make_run("runs/r", steps=40, seed=3)
    steer(run)
    run.train()
    return Path(run.path)


async def test_the_same_bits_are_said_and_written(cli: Call, recorded: Path) -> None:
    before = contents(recorded)
    ended = await cli("run", JOB, "--replay", "r", "--summary", "again.json")
    assert (ended.code, contents(recorded)) == (0, before)
    told = {line[:17].strip(): line[17:].strip() for line in ended.lines}
    assert told["recorded"] == "the same bits"
    assert told["stopped by"] == "the end of the journal"
    assert told["repeated"].startswith(str(recorded)[:40])
    assert "folder" not in told
    found = orjson.loads((recorded.parents[1] / "again.json").read_bytes())
    assert found["same_bits"] is True
    assert found["stopped_by"] == "replayed"
    assert found["weights_sha256"] == found["recorded_sha256"]


async def test_what_it_comes_to_is_kept_where_that_is_asked(cli: Call, recorded: Path) -> None:
    ended = await cli("run", JOB, "--replay", str(recorded), "--run-dir", "branch")
    assert ended.code == 0
    assert "folder" in ended.out
    branch = recorded.parents[1] / "branch"
    assert any(record.HasField("stopped") for record in read_records(branch))
    again = await cli("run", JOB, "--replay", str(recorded), "--run-dir", "branch")
    assert (again.code, "there is a run in this folder" in again.err) == (2, True)


async def test_other_bits_are_exit_code_one(cli: Call, recorded: Path) -> None:
    ended = await cli("run", "tests.cli.test_replaying:Faster", "--replay", "r")
    assert ended.code == 1
    assert "OTHER BITS: sha256" in ended.out
    del recorded


async def test_a_run_that_goes_another_way_is_one_line_and_exit_code_one(
    cli: Call, recorded: Path
) -> None:
    ended = await cli("run", "tests.cli.test_replaying:Wilder", "--replay", "r")
    assert (ended.code, ended.out) == (1, "")
    [line] = [line for line in ended.err.splitlines() if line.startswith("tolaria-bus: ")]
    assert "loss nan at step 1" in line
    del recorded


@pytest.mark.parametrize(
    ("words", "says"),
    [
        ((JOB, "--replay", "nowhere"), "nowhere: no run of this id"),
        ((JOB, "--replay", "runs"), "no journal of a run"),
        ((JOB, "--replay", "r", "--seed", "4"), "seed = 4: the run was recorded with seed = 3"),
        ((JOB, "--replay", "r", "--set", "job.lr=1"), "job.lr = 1: the run was recorded with no"),
        (("digits", "--replay", "r"), "job digits: the run in"),
        ((JOB, "--replay", "r", "--redis", "redis://x"), "--redis: not with --replay"),
        ((JOB, "--replay", "r", "--run-dir", "runs/r"), "name another"),
    ],
)
async def test_what_differs_is_one_line_and_exit_code_two(
    cli: Call, recorded: Path, words: tuple[str, ...], says: str
) -> None:
    ended = await cli("run", *words)
    assert (ended.code, ended.out, ended.err.count("\n")) == (2, "", 1)
    assert says in ended.err
    del recorded
