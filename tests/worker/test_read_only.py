"""A run folder on a disk that takes nothing: said in one line, before anything is begun."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.recovery.small_disk import run_on_small_disk

READ_ONLY = """
import subprocess, sys
from pathlib import Path
from tests.worker.processes import Terminal

disk = Path(sys.argv[1])
(disk / "kept").touch()
subprocess.run(["mount", "-o", "remount,ro", str(disk)], check=True)
terminal = Terminal(disk.with_name("terminal"))
words = ("run", "tiny.py:Tiny", "--run", "r", "--run-dir", str(disk / "run"))
said = terminal.run(*words, check=2)
last = said.strip().splitlines()[-1]
assert last.startswith("tolaria-bus: ") and "Read-only file system" in last, said
assert "Traceback" not in said, said
"""


@pytest.mark.slow
def test_a_run_folder_on_a_read_only_disk_is_one_line_and_exit_code_two(tmp_path: Path) -> None:
    run_on_small_disk(READ_ONLY, tmp_path / "disk", size="8m")
