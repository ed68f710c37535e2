"""The README's second terminal, command by command, against a real run on the embedded server."""

from __future__ import annotations

import re
import shlex
import time
from pathlib import Path

import pytest

from tests.worker.processes import Terminal, summary

README = Path(__file__).parents[2] / "README.md"


def block(name: str) -> list[str]:
    """The shell and Python blocks between ``<!-- name:start -->`` and ``<!-- name:end -->``."""
    text = README.read_text().partition(f"<!-- {name}:start -->")[2]
    text = text.partition(f"<!-- {name}:end -->")[0]
    return re.findall(r"```\w+\n(.*?)```", text, flags=re.DOTALL)


def commands(text: str) -> list[list[str]]:
    """The words of each line, without comments and the program's name."""
    lines = [shlex.split(line, comments=True) for line in text.splitlines()]
    assert all(words[0] == "tolaria-bus" for words in lines if words)
    return [words[1:] for words in lines if words]


@pytest.mark.slow
def test_every_command_of_the_second_terminal_works(tmp_path: Path) -> None:
    first, second = block("steering")
    [run] = commands(first)
    one = Terminal(tmp_path, fresh=True)
    other = Terminal(tmp_path / "elsewhere", {"XDG_STATE_HOME": str(tmp_path / "state")})
    with one.start(*run, "--summary", "summary.json") as worker:
        # A command that is sent before the run listens waits for it; here its server must be there.
        worker.says("embedded server")
        # A look doesn't wait: nobody types one so soon that the run isn't known yet.
        end = time.monotonic() + 180
        while "no such run" in other.run("status", "first", check=None):
            assert time.monotonic() < end
        for words in commands(second):
            output = other.run(*words)
            if words[0] == "send":
                assert "applied" in output.lower(), (words, output)
        worker.ends(0)
    assert summary(tmp_path / "summary.json")["stopped_by"] == "command"


@pytest.mark.slow
def test_the_job_of_the_readme_trains(tmp_path: Path) -> None:
    [text] = block("job")
    assert len(text.splitlines()) <= 36
    (tmp_path / "moons.py").write_text(text)
    terminal = Terminal(tmp_path)
    terminal.run("run", "moons.py:Moons", "--epochs", "2", "--summary", "summary.json")
    found = summary(tmp_path / "summary.json")
    assert found["stopped_by"] == "finished"
    assert found["accuracy"] > 0.85
