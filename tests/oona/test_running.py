"""Only servers that answer are found, by run or by folder."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.oona.embedding import Starter, apart, ended, said, starter
from tolaria_bus.oona.embedded import EmbeddedServer, find, running
from tolaria_bus.oona.running import NOTE, Note, registered

__all__ = ["apart", "starter"]  # fixtures


def test_another_terminal_finds_it_by_the_runs_id_alone(tmp_path: Path) -> None:
    program = "from tolaria_bus.oona.embedded import find; print(find('digits').url)"
    with EmbeddedServer.start(tmp_path / "run", "digits") as server:
        told = subprocess.run(
            [sys.executable, "-c", program], capture_output=True, text=True, check=True, cwd="/"
        )
        assert told.stdout.strip() == server.url


def test_finding_by_run_by_folder_or_the_only_one(tmp_path: Path) -> None:
    assert find() is None
    with EmbeddedServer.start(tmp_path / "a", "a") as a:
        found = find("a")
        assert found is not None
        assert (found.url, found.run, found.folder) == (a.url, "a", tmp_path / "a")
        assert found == find() == find(folder=tmp_path / "a") == find("a", tmp_path / "a")
        assert find("b") is None
        assert find("b", tmp_path / "a") is None
        assert find(folder=tmp_path / "b") is None
        with EmbeddedServer.start(tmp_path / "b", "b"):
            assert [one.run for one in running()] == ["a", "b"]
            assert find() is None, "which of the two?"


def test_only_live_servers_are_found_and_old_notes_go(tmp_path: Path, starter: Starter) -> None:
    child = starter(tmp_path / "run", "digits")
    server = int(said(child))
    assert registered("digits").exists()
    child.kill()
    assert ended(server)
    assert find("digits") is None
    assert running() == []
    assert not registered("digits").exists()
    assert not (tmp_path / "run" / NOTE).exists()


def test_a_process_that_got_the_old_number_is_no_server(tmp_path: Path) -> None:
    server = EmbeddedServer.start(tmp_path, "digits")
    note = Note.read(tmp_path / NOTE)
    assert note is not None
    server.stop()
    stale = Note(note.url, os.getpid(), "digits", note.folder, note.owner, note.owner_started)
    stale.write(registered("digits"))
    assert find("digits") is None
    assert not registered("digits").exists()


def test_a_stopping_server_leaves_the_notes_of_a_later_one(tmp_path: Path) -> None:
    first = EmbeddedServer.start(tmp_path / "a", "digits")
    with EmbeddedServer.start(tmp_path / "b", "digits") as second:
        first.stop()
        found = find("digits")
        assert found is not None
        assert found.url == second.url


@pytest.mark.parametrize("text", ["", "{", "[]", '{"url":"unix:///x"}', '{"url":1,"pid":"x"}'])
def test_a_note_that_cannot_be_read_is_none(tmp_path: Path, text: str) -> None:
    (tmp_path / NOTE).write_text(text)
    assert find(folder=tmp_path) is None
    with EmbeddedServer.start(tmp_path, "digits"):
        assert find(folder=tmp_path) is not None


def test_notes_are_their_owners_alone(tmp_path: Path) -> None:
    with EmbeddedServer.start(tmp_path, "digits"):
        for path in (tmp_path / NOTE, registered("digits")):
            assert path.stat().st_mode & 0o777 == 0o600


def test_a_state_folder_that_cannot_be_written_is_a_warning(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "file"))
    with EmbeddedServer.start(tmp_path, "digits"):
        assert "can't be found by its id alone" in caplog.text
        assert find(folder=tmp_path) is not None
