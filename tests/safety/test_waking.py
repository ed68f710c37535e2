"""The bell at a signal block: rung by whoever leaves something there, heard by who looks at it."""

from __future__ import annotations

import resource
import select
import socket
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tolaria_bus.safety import Signals, SignalView, layout, waking

pytestmark = pytest.mark.skipif(
    not sys.platform.startswith("linux"), reason="abstract sockets are Linux's"
)


def here(folder: Path) -> bytes:
    return waking.address(folder, "block")


@pytest.fixture
def bell(tmp_path: Path) -> Iterator[socket.socket]:
    with waking.listening(here(tmp_path)) as listening:
        assert listening is not None
        yield listening


def rung(bell: socket.socket) -> bool:
    return bool(select.select([bell], [], [], 0)[0])


def test_a_ring_is_heard_once(tmp_path: Path, bell: socket.socket) -> None:
    assert not rung(bell)
    waking.ring(here(tmp_path))
    assert rung(bell)
    waking.heard(bell)
    assert not rung(bell)


def test_the_same_folder_by_another_path_has_the_same_bell(
    tmp_path: Path, bell: socket.socket
) -> None:
    (tmp_path / "below").mkdir()
    waking.ring(here(tmp_path / "below"))
    assert not rung(bell)
    waking.ring(here(tmp_path / "below" / ".."))
    assert rung(bell)


def test_whoever_rings_never_waits_however_often_nobody_hears(
    tmp_path: Path, bell: socket.socket
) -> None:
    for _ in range(10_000):
        waking.ring(here(tmp_path))
    waking.heard(bell)
    while rung(bell):
        waking.heard(bell)
    waking.ring(here(tmp_path))
    assert rung(bell)


def test_a_folder_has_one_bell_and_the_next_worker_gets_it(tmp_path: Path) -> None:
    with waking.listening(here(tmp_path)) as first, waking.listening(here(tmp_path)) as other:
        assert first is not None
        assert other is None
    waking.ring(here(tmp_path))
    with waking.listening(here(tmp_path)) as second:
        assert second is not None


def test_a_process_with_no_room_for_a_file_leaves_its_emergency_and_does_without_a_bell(
    tmp_path: Path,
) -> None:
    signals = Signals.create(tmp_path)
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (0, hard))
    try:
        with waking.listening(b"\0tolaria-bus/test/full") as bell:
            assert bell is None
        assert signals.emergency(b"too many files")
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    with SignalView(tmp_path) as view:
        assert view.refresh()
        assert [left.payload for left in view.unrelayed()] == [b"too many files"]


def test_a_deadline_and_an_emergency_ring_and_a_step_does_not(tmp_path: Path) -> None:
    signals = Signals.create(tmp_path)
    with waking.listening(waking.address(tmp_path, layout.NAME)) as bell:
        assert bell is not None
        signals.begin(0)
        signals.step(1)
        signals.beat()
        assert not rung(bell)
        for leave in (lambda: signals.deadline("rollback", 1.0), lambda: signals.emergency(b"!")):
            leave()
            assert rung(bell)
            waking.heard(bell)
            assert not rung(bell)


def test_it_leaves_nothing_in_the_folder(tmp_path: Path, bell: socket.socket) -> None:
    waking.ring(here(tmp_path))
    assert list(tmp_path.iterdir()) == []
