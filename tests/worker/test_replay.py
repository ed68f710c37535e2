"""A run that was steered and killed is done again from its journal by the real command."""

from __future__ import annotations

import signal
from pathlib import Path

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
        terminal.run("send", "pause", "--run", "r", "--wait", "120")
        worker.signal(signal.SIGKILL)
    with terminal.start(*words, "--epochs", "4000") as worker:
        worker.says("embedded server")
        terminal.run("send", "lr", "0.003", "--run", "r", "--wait", "120")
        seed = ("seed", "germinate", "--seed-id", "s1", "--blueprint", "residual_mlp")
        terminal.run("send", *seed, "--run", "r", "--wait", "120")
        assert f"goes on: process {worker.popen.pid}" in terminal.run("history", "r")
        assert "good:" in terminal.run("checkpoints", "verify", "r")
        terminal.run("send", "resume", "--run", "r", "--wait", "120")
        worker.signal(signal.SIGKILL)
    with terminal.start(*words, "--epochs", "4000") as worker:
        worker.says("embedded server")
        terminal.run("send", "rollback", "--run", "r", "--lr-factor", "0.5", "--wait", "120")
        terminal.run("send", "stop", "--run", "r", "--wait", "120")
        worker.ends(0)
    return terminal


@pytest.mark.slow
def test_it_ends_with_the_recorded_bits_and_leaves_the_run_alone(steered: Terminal) -> None:
    run = steered.folder / "runs" / "r"
    before = contents(run)
    said = steered.run("run", "tiny.py:Tiny", "--replay", "r", "--summary", "again.json")
    found = summary(steered.folder / "again.json")
    recorded = summary(steered.folder / "r.json")
    assert found["weights_sha256"] == found["recorded_sha256"] == recorded["weights_sha256"]
    assert found["same_bits"] is True
    assert (found["steps"], found["timeline"]) == (recorded["steps"], recorded["timeline"])
    assert found["source"] == str(run)
    assert "the same bits" in said
    assert contents(run) == before
    assert not list(steered.folder.glob("runs/*replay*"))


@pytest.mark.slow
def test_its_history_tells_of_the_kills_the_commands_and_the_rollback(steered: Terminal) -> None:
    before = contents(steered.folder / "runs" / "r")
    lines = steered.run("history", "r").splitlines()
    assert contents(steered.folder / "runs" / "r") == before
    told = [
        "started job tiny",
        "APPLIED pause",
        "ended without a word",
        "resumed job tiny",
        "APPLIED learning rate",
        "APPLIED seed germinate s1",
        "APPLIED resume",
        "ended without a word",
        "resumed job tiny",
        "rollback back from step",
        "APPLIED stop",
        "stopped by a command",
    ]
    rest = iter(lines)
    for text in told:
        assert any(text in line for line in rest), (text, lines)
