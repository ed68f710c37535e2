"""What a worker leaves in its signal block is there for others, whatever becomes of it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tolaria_bus.safety import Phase, Signals, SignalView, WorkerState, layout

WRITER = """
import sys, time
from pathlib import Path
from tolaria_bus.safety import Signals, WorkerState

signals = Signals.create(Path(sys.argv[1]))
signals.begin(10)
signals.step(11)
signals.state(WorkerState.RUNNING)
signals.deadline("rollback", 0.25)
signals.emergency(b"too hot")
print("written", flush=True)
time.sleep(600)
"""


class Clock:
    """Nanoseconds that pass when they are told to."""

    def __init__(self) -> None:
        self.now = 1_000

    def __call__(self) -> int:
        return self.now


@contextmanager
def writer(folder: Path) -> Iterator[subprocess.Popen[bytes]]:
    """A process that has written all that it will write, and waits."""
    command = [sys.executable, "-c", WRITER, str(folder)]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as process:
        try:
            assert process.stdout is not None
            assert process.stdout.readline() == b"written\n"
            yield process
        finally:
            process.kill()


def view_of(folder: Path) -> SignalView:
    view = SignalView(folder)
    assert view.refresh()
    return view


def test_what_a_process_wrote_is_there_after_it_was_killed(tmp_path: Path) -> None:
    with writer(tmp_path) as process, view_of(tmp_path) as view:
        identity = view.identity
        assert identity is not None
        assert identity.pid == process.pid
        assert identity.lives()
        process.send_signal(signal.SIGKILL)
        process.wait()
        assert not identity.lives()
        assert (view.step, view.made_a_step, view.phase) == (11, True, Phase.TRAINING)
        assert view.state is WorkerState.RUNNING
        (deadline,) = view.deadlines()
        assert deadline.name == "rollback"
        assert deadline.due_ns - deadline.began_ns == 250_000_000
        assert [left.payload for left in view.unrelayed()] == [b"too hot"]


def test_a_process_that_is_dead_but_not_reaped_does_not_live(tmp_path: Path) -> None:
    with writer(tmp_path) as process, view_of(tmp_path) as view:
        identity = view.identity
        assert identity is not None
        process.kill()
        os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
        assert not identity.lives()


def test_a_number_used_again_is_another_process(tmp_path: Path) -> None:
    Signals.create(tmp_path).close()
    with view_of(tmp_path) as view:
        identity = view.identity
        assert identity is not None
        assert identity.lives()
        later = type(identity)(identity.start, identity.pid, identity.began - 1, identity.boot)
        rebooted = type(identity)(identity.start, identity.pid, identity.began, b"another")
        assert not later.lives()
        assert not rebooted.lives()


def test_a_deadline_is_seen_until_it_is_cleared(tmp_path: Path) -> None:
    clock = Clock()
    signals = Signals.create(tmp_path, monotonic_ns=clock)
    with view_of(tmp_path) as view:
        with signals.deadline("rollback", 2.0):
            signals.deadline("checkpoint", 1.0)
            clock.now += 5
            signals.deadline("checkpoint", 3.0)
            seen = {deadline.name: deadline.due_ns for deadline in view.deadlines()}
            assert seen == {"rollback": 2_000_001_000, "checkpoint": 3_000_001_005}
        signals.clear("checkpoint")
        signals.clear("checkpoint")
        assert view.deadlines() == []
    signals.close()


def test_a_deadline_ends_with_an_exception_too(tmp_path: Path) -> None:
    signals = Signals.private()
    with pytest.raises(OSError, match="full"), signals.deadline("rollback", 1.0):
        raise OSError("full")
    for number in range(layout.DEADLINE_COUNT):
        signals.deadline(f"d{number}", 1.0)
    with pytest.raises(RuntimeError, match="'one more'"):
        signals.deadline("one more", 1.0)


@pytest.mark.parametrize("name", ["", "x" * 41])
def test_a_deadline_has_a_name_that_fits(name: str) -> None:
    with pytest.raises(ValueError, match="40 bytes"):
        Signals.private().deadline(name, 1.0)


def test_the_next_process_keeps_the_signals_and_nothing_else(tmp_path: Path) -> None:
    first = Signals.create(tmp_path)
    first.begin(5)
    first.deadline("rollback", 1.0)
    first.emergency(b"one")
    first.end(WorkerState.FAILED, "ValueError: no")
    with view_of(tmp_path) as view:
        assert (view.state, view.reason) == (WorkerState.FAILED, "ValueError: no")
        before = view.identity
        second = Signals.create(tmp_path)
        second.emergency(b"two")
        after = view.identity
        assert before is not None
        assert after is not None
        assert after.start == before.start + 1
        assert (view.step, view.phase, view.state) == (0, Phase.LOADING, WorkerState.STARTING)
        assert (view.reason, view.deadlines()) == ("", [])
        assert [left.payload for left in view.unrelayed()] == [b"one", b"two"]
        view.relayed(2)
        assert view.unrelayed() == []
    with view_of(tmp_path) as next_supervisor:
        assert next_supervisor.unrelayed() == []
    for signals in (first, second):
        signals.close()


def test_of_many_signals_the_newest_are_kept_in_order(tmp_path: Path) -> None:
    signals = Signals.create(tmp_path)
    with view_of(tmp_path) as view:
        for number in range(1, 21):
            assert signals.emergency(b"%d" % number)
        numbers = [left.number for left in view.unrelayed()]
        assert numbers == list(range(13, 21))
        assert not signals.emergency(b"x" * 4096)
        assert signals.emergency(b"x" * layout.SIGNAL_LARGEST)
        assert view.unrelayed()[-1].payload == b"x" * layout.SIGNAL_LARGEST
    signals.close()


def test_a_stopping_worker_only_ends() -> None:
    signals = Signals.private()
    signals.state(WorkerState.STOPPING)
    signals.state(WorkerState.RUNNING)
    states = [signals.last_state]
    signals.end(WorkerState.STOPPED)
    assert [*states, signals.last_state] == [WorkerState.STOPPING, WorkerState.STOPPED]


def test_a_block_of_another_version_is_replaced_and_readers_see_the_new_one(
    tmp_path: Path,
) -> None:
    (tmp_path / layout.NAME).write_bytes(b"of another version")
    with SignalView(tmp_path) as view:
        assert not view.refresh()
        assert view.identity is None
        signals = Signals.create(tmp_path)
        signals.begin(3)
        assert view.refresh()
        assert view.step == 3
        (tmp_path / layout.NAME).unlink()
        assert not view.refresh()
        assert view.step == 0
    signals.close()


def test_without_room_on_the_disk_it_is_an_error_and_no_crash_later(tmp_path: Path) -> None:
    limited = (
        "import resource, signal, sys; from pathlib import Path;"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN);"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096));"
        "from tolaria_bus.safety import Signals; Signals.create(Path(sys.argv[1]))"
    )
    done = subprocess.run(
        [sys.executable, "-c", limited, str(tmp_path)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 1
    assert "OSError: [Errno 27]" in done.stderr
    assert list(tmp_path.iterdir()) == []


@settings(max_examples=200, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    damage=st.lists(
        st.tuples(st.integers(24, layout.SIZE - 64), st.binary(min_size=1, max_size=64)),
        max_size=40,
    ),
    busy=st.integers(24, 0x1100),
)
def test_whatever_is_in_a_block_a_reader_gets_what_was_written_or_nothing(
    tmp_path: Path, damage: list[tuple[int, bytes]], busy: int
) -> None:
    signals = Signals.create(tmp_path)
    signals.deadline("rollback", 1.0)
    signals.emergency(b"payload")
    with view_of(tmp_path) as view:
        payloads = {left.payload for left in view.unrelayed()}
        path = tmp_path / layout.NAME
        content = bytearray(path.read_bytes())
        for start, patch in [*damage, (busy, b"\xff")]:
            content[start : start + len(patch)] = patch
        with path.open("r+b") as file:
            file.write(content)
        assert view.identity is None or view.identity.pid == os.getpid()
        assert {deadline.name for deadline in view.deadlines()} <= {"rollback"}
        assert {left.payload for left in view.unrelayed()} <= payloads
        assert isinstance(view.state, WorkerState)
        assert isinstance(view.phase, Phase)
        assert view.reason == ""
    signals.close()
    path.unlink()


def test_a_run_that_a_rollback_took_behind_its_first_step_has_made_steps(tmp_path: Path) -> None:
    signals = Signals.create(tmp_path)
    signals.begin(100)
    with SignalView(tmp_path) as view:
        view.refresh()
        assert (view.first_step, view.made_a_step, signals.training()[2]) == (100, False, False)
        signals.step(40)
        assert (view.first_step, view.made_a_step, signals.training()[2]) == (100, True, True)
    signals.close()
