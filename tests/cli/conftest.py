"""The command line called in this process, in a folder of its own, with nothing set."""

from __future__ import annotations

import os
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path

import anyio
import pytest

from tolaria_bus.cli import main


@dataclass(frozen=True)
class Ended:
    """What a command printed, and its exit code."""

    code: int
    out: str
    err: str

    @property
    def lines(self) -> list[str]:
        """Of standard output."""
        return self.out.splitlines()


Call = Callable[..., Awaitable[Ended]]


@pytest.fixture
def clean_place(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """An empty folder to be in, no setting in the environment, no run known."""
    for name in [name for name in os.environ if name.startswith("TOLARIA_")]:
        monkeypatch.delenv(name)
    for name in ("NO_COLOR", "FORCE_COLOR"):
        monkeypatch.delenv(name, raising=False)
    # As narrow as it gets; and help is drawn by rich, which asks for the width.
    monkeypatch.setenv("COLUMNS", "100")
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def cli(clean_place: Path, capsys: pytest.CaptureFixture[str]) -> Call:
    """Call ``tolaria-bus`` with words; on a thread, as it runs an event loop of its own."""

    def call(words: tuple[str, ...]) -> Ended:
        with pytest.raises(SystemExit) as exited:
            main(words)
        out, err = capsys.readouterr()
        assert isinstance(exited.value.code, int)
        return Ended(exited.value.code, out, err)

    async def cli(*words: str) -> Ended:
        return await anyio.to_thread.run_sync(call, words)

    return cli
