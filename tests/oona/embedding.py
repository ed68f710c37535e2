"""Processes that have an embedded server, and a registry apart from the session's."""

import os
import select
import subprocess
import sys
import textwrap
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

Starter = Callable[[Path, str], "subprocess.Popen[str]"]


@pytest.fixture(autouse=True)
def apart(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Keep this file's registry apart from the session's server."""
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))


@pytest.fixture
def starter(tmp_path: Path) -> Iterator[Starter]:
    """Start a process, in a group of its own, that has an embedded server; it says the URL."""
    children: list[subprocess.Popen[str]] = []

    def start(folder: Path, run: str) -> "subprocess.Popen[str]":
        program = f"""
            import sys
            from pathlib import Path
            from tolaria_bus.oona.embedded import EmbeddedServer
            server = EmbeddedServer.start(Path({str(folder)!r}), {run!r})
            try:
                print(server.pid, flush=True)
                sys.stdin.read()
            except KeyboardInterrupt:
                print("interrupted", flush=True)
                sys.stdin.read()
            server.stop()
        """
        child = subprocess.Popen(
            [sys.executable, "-c", textwrap.dedent(program)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        children.append(child)
        return child

    yield start
    for child in children:
        if child.poll() is None:
            child.kill()
        child.communicate()


def said(child: "subprocess.Popen[str]") -> str:
    assert child.stdout is not None
    return child.stdout.readline().strip()


def ended(pid: int) -> bool:
    """Wait for a process that isn't ours to end, be it buried or not."""
    try:
        process = os.pidfd_open(pid)
    except ProcessLookupError:
        return True
    try:
        return bool(select.select([process], [], [], 60)[0])
    finally:
        os.close(process)
