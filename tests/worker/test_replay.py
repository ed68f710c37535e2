"""A run that was steered and killed is done again from its journal by the real command."""

from __future__ import annotations

import signal
from pathlib import Path
from typing import Any

import pytest

from tests.worker.processes import Terminal, summary


def contents(path: Path) -> dict[str, bytes]:
    return {str(file): file.read_bytes() for file in path.rglob("*") if file.is_file()}


@pytest.fixture(scope="module")
def steered(tmp_path_factory: pytest.TempPathFactory) -> Terminal:
    """A run ``r`` that was steered, killed while it was paused, and ended."""
    terminal = Terminal(tmp_path_factory.mktemp("terminal"))
    words = ("run", "tiny.py:Tiny", "--run", "r", "--seed", "3", "--summary", "r.json")
    with terminal.start(*words, "--epochs", "4000") as worker:
        worker.says("embedded server")
        terminal.run("send", "pause", "--run", "r", "--wait", "60")
        worker.signal(signal.SIGKILL)
    with terminal.start(*words, "--epochs", "4000") as worker:
        worker.says("embedded server")
        terminal.run("send", "lr", "0.003", "--run", "r", "--wait", "60")
        seed = ("seed", "germinate", "--seed-id", "s1", "--blueprint", "residual_mlp")
        terminal.run("send", *seed, "--run", "r", "--wait", "60")
        terminal.run("send", "resume", "--run", "r", "--wait", "60")
        terminal.run("send", "checkpoint", "--run", "r", "--wait", "60")
        worker.signal(signal.SIGKILL)
    with terminal.start(*words, "--epochs", "4000") as worker:
        worker.says("embedded server")
        terminal.run("send", "rollback", "--run", "r", "--lr-factor", "0.5", "--wait", "60")
        terminal.run("send", "stop", "--run", "r", "--wait", "60")
        worker.ends(0)
    return terminal


def repeated(terminal: Terminal, *words: str, check: int = 0) -> tuple[str, dict[str, Any]]:
    said = terminal.run(
        "run", "tiny.py:Tiny", "--replay", "r", "--summary", "again.json", *words, check=check
    )
    return said, summary(terminal.folder / "again.json")


@pytest.mark.slow
def test_it_ends_with_the_recorded_bits_and_leaves_the_run_alone(steered: Terminal) -> None:
    run = steered.folder / "runs" / "r"
    before = contents(run)
    said, found = repeated(steered)
    recorded = summary(steered.folder / "r.json")
    assert found["weights_sha256"] == found["recorded_sha256"] == recorded["weights_sha256"]
    assert found["same_bits"] is True
    assert (found["steps"], found["timeline"]) == (recorded["steps"], 2)
    assert found["source"] == str(run)
    assert "the same bits" in said
    assert contents(run) == before
    assert not list(steered.folder.glob("runs/*replay*"))


@pytest.mark.slow
def test_other_bits_are_exit_code_one(steered: Terminal) -> None:
    text = (steered.folder / "tiny.py").read_text()
    # Another half of the data is right: the model is the same, what it learns isn't.
    (steered.folder / "tiny.py").write_text(text.replace("x.sum(1) > 0", "x.sum(1) < 0"))
    try:
        said, found = repeated(steered, check=1)
    finally:
        (steered.folder / "tiny.py").write_text(text)
    assert found["same_bits"] is False
    assert "OTHER BITS" in said


@pytest.mark.slow
@pytest.mark.parametrize(
    ("words", "says"),
    [
        (("tiny.py:Tiny", "--replay", "nowhere"), "nowhere: no run of this id"),
        (("tiny.py:Tiny", "--replay", "runs"), "no journal of a run"),
        (("tiny.py:Tiny", "--replay", "r", "--seed", "4"), "seed = 4: the run was recorded with"),
        (("digits", "--replay", "r"), "job digits: the run in"),
        (("tiny.py:Tiny", "--replay", "r", "--redis", "redis://x"), "--redis: not with --replay"),
        (("tiny.py:Tiny", "--replay", "r", "--run-dir", "runs/r"), "name another"),
    ],
)
def test_what_differs_is_one_line_and_exit_code_two(
    steered: Terminal, words: tuple[str, ...], says: str
) -> None:
    [line] = steered.run("run", *words, check=2).strip().splitlines()
    assert says in line
