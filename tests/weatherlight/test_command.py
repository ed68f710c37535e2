"""What is wrong with a call is said in one line, and nothing is made."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.worker.processes import Terminal


@pytest.mark.parametrize(
    ("words", "names"),
    [
        ((), "JOB"),
        (("digits", "--redis", "http://x"), "http://x"),
        (("digits", "--set", "signing_keys=nonsense"), "signing_keys"),
    ],
)
def test_a_wrong_call_is_one_line_and_exit_code_two(
    tmp_path: Path, words: tuple[str, ...], names: str
) -> None:
    [line] = Terminal(tmp_path).run("weatherlight", *words, check=2).strip().splitlines()
    assert names in line
    assert not (tmp_path / "runs").exists()
