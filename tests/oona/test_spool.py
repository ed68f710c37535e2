"""The spool keeps what it took, whatever happens to the process or to its files."""

import errno
import os
import signal
import subprocess
import sys
import tempfile
import threading
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from tolaria_bus.oona.spool import Spool, SpoolFull, SpoolLocked
from tolaria_bus.oona.spool_segment import HEADER, Segment

SMALL = 4096


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "spool"


def records(spool: Spool) -> list[bytes]:
    return [record for _, record in spool.pending()]


def segments(folder: Path) -> list[Path]:
    return sorted(folder.glob("*.segment"))


def test_records_are_there_in_order_after_reopening(folder: Path):
    with Spool(folder) as spool:
        numbers = [spool.append(b"%d" % n) for n in range(100)]
        assert numbers == sorted(set(numbers))
        assert spool.read(numbers[7]) == b"7"
    with Spool(folder) as spool:
        assert records(spool) == [b"%d" % n for n in range(100)]
        assert spool.damaged == 0


def test_dropped_records_stay_dropped(folder: Path):
    with Spool(folder) as spool:
        first, second = spool.append(b"first"), spool.append(b"second")
        assert spool.drop(first)
        assert not spool.drop(first)
        with pytest.raises(KeyError):
            spool.read(first)
        assert spool.pending() == [(second, b"second")]
    with Spool(folder) as spool:
        assert records(spool) == [b"second"]
        assert spool.append(b"third") > second


def test_an_empty_record_is_a_record(folder: Path):
    with Spool(folder) as spool:
        spool.append(b"")
    with Spool(folder) as spool:
        assert records(spool) == [b""]


def test_what_a_killed_process_appended_is_there(folder: Path):
    script = (
        "import os, signal, sys; from pathlib import Path\n"
        "from tolaria_bus.oona.spool import Spool\n"
        "spool = Spool(Path(sys.argv[1]), 4096)\n"
        "for n in range(300): spool.append(b'%d' % n * 9)\n"
        "spool.drop(1); os.kill(os.getpid(), signal.SIGKILL)"
    )
    killed = subprocess.run([sys.executable, "-c", script, str(folder)], check=False)
    assert killed.returncode == -signal.SIGKILL
    with Spool(folder, SMALL) as spool:
        assert records(spool) == [b"%d" % n * 9 for n in range(1, 300)]


def test_two_processes_cannot_have_one_folder(folder: Path):
    with Spool(folder), pytest.raises(SpoolLocked, match="in use by another process"):
        Spool(folder)
    Spool(folder).close()


def test_a_record_that_fits_no_segment_is_refused(folder: Path):
    with Spool(folder, SMALL) as spool:
        spool.append(bytes(SMALL - HEADER.size))
        with pytest.raises(SpoolFull, match="at most 4064 fit"):
            spool.append(bytes(SMALL - HEADER.size + 1))


def test_a_closed_spool_refuses(folder: Path):
    spool = Spool(folder)
    spool.close()
    spool.close()
    with pytest.raises(SpoolFull, match="closed"):
        spool.append(b"late")


def test_disk_use_follows_what_is_pending(folder: Path):
    with Spool(folder, SMALL) as spool:
        numbers = [spool.append(bytes(1000)) for _ in range(60)]
        assert len(segments(folder)) == 20
        for number in numbers:
            spool.drop(number)
        spool.sync()
        assert len(segments(folder)) == 1
        assert sorted(path.name for path in folder.iterdir()) == [
            segments(folder)[0].name,
            "lock",
            "spare",
        ]


def test_a_full_disk_leaves_room_for_one_more_segment(
    folder: Path, monkeypatch: pytest.MonkeyPatch
):
    def disk_is_full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with Spool(folder, SMALL) as spool:
        spool.append(bytes(4000))
        monkeypatch.setattr(os, "posix_fallocate", disk_is_full)
        kept = spool.append(bytes(4000))
        with pytest.raises(SpoolFull, match="No space left"):
            spool.append(b"x" * 4000)
        assert len(spool) == 2
        # What is delivered makes room again, without asking the disk for any.
        spool.drop(1)
        spool.sync()
        assert spool.append(b"y" * 4000) > kept


def test_what_an_earlier_use_of_a_file_left_is_no_record(folder: Path):
    """A segment that was reused without reaching the disk zeroed shows its old frames."""
    path = folder.parent / "1"
    old = Segment.create(path, SMALL)
    old.begin(1)
    old.append(1, b"old")
    old.close()
    reused = Segment.open(path)
    assert reused.scan(2).records == []
    reused.close()


def test_sync_marks_what_was_appended_as_safe(folder: Path):
    with Spool(folder) as spool:
        seen = [spool.unsynced]
        number = spool.append(b"x")
        seen.append(spool.unsynced)
        spool.sync()
        seen.append(spool.unsynced)
        spool.append(b"y")
        spool.drop(number)
        seen.append(spool.unsynced)
    assert seen == [False, True, False, True]


def test_threads_append_while_another_syncs_and_drops(folder: Path):
    """Nothing is lost or mixed up between threads."""
    taken: list[list[int]] = [[], [], []]

    def work(own: int) -> None:
        for n in range(400):
            number = spool.append(b"%d %d" % (own, n))
            (spool.drop(number) if n % 2 else taken[own].append(n))

    with Spool(folder, SMALL) as spool:
        threads = [threading.Thread(target=work, args=(own,)) for own in range(3)]
        for thread in threads:
            thread.start()
        while any(thread.is_alive() for thread in threads):
            spool.sync()
        found = [tuple(map(int, record.split())) for record in records(spool)]
        for own in range(3):
            assert [n for who, n in found if who == own] == taken[own]


def frames(path: Path) -> list[tuple[int, int]]:
    """(offset, length of the record) of each frame in a segment file."""
    segment = Segment.open(path)
    found = segment.scan(int(path.stem)).records
    segment.close()
    return [(offset, length) for _, offset, length in found]


@given(
    sizes=st.lists(st.integers(0, 300), min_size=1, max_size=12),
    data=st.data(),
)
def test_damage_costs_only_the_records_it_hits(
    tmp_path_factory: pytest.TempPathFactory, sizes: list[int], data: st.DataObject
):
    folder = tmp_path_factory.mktemp("damage")
    originals = [bytes([n + 1]) * size for n, size in enumerate(sizes)]
    with Spool(folder, 2 * SMALL) as spool:
        for record in originals:
            spool.append(record)
    path = segments(folder)[-1]
    places = frames(path)
    start = data.draw(st.integers(0, places[-1][0] + HEADER.size + places[-1][1] - 1))
    length = data.draw(st.integers(1, 200))
    fill = data.draw(st.sampled_from([0x00, 0xFF, 0x5A]))
    content = bytearray(path.read_bytes())
    before = bytes(content)
    content[start : start + length] = bytes([fill]) * length
    path.write_bytes(content)

    with Spool(folder, 2 * SMALL) as spool:
        survivors = records(spool)
        damaged = spool.damaged

    def hit(offset: int, size: int) -> bool:
        # Padding and the state byte carry nothing that a record needs.
        parts = [(offset, offset + 24), (offset + HEADER.size, offset + HEADER.size + size)]
        return any(content[a:b] != before[a:b] for a, b in parts)

    untouched = [r for r, place in zip(originals, places, strict=True) if not hit(*place)]
    assert survivors == untouched
    # Zeros at the very end can't be told from the end.
    if len(untouched) < len(originals) and fill:
        assert damaged


class SpoolMachine(RuleBasedStateMachine):
    """A spool against a dictionary: through appends, drops, syncs, restarts and torn ends."""

    @initialize()
    def start(self) -> None:
        self.home = tempfile.TemporaryDirectory()
        self.folder = Path(self.home.name) / "spool"
        self.spool = Spool(self.folder, SMALL)
        self.expected: dict[int, bytes] = {}
        self.torn: set[Path] = set()

    @rule(record=st.binary(max_size=1500))
    def append(self, record: bytes) -> None:
        number = self.spool.append(record)
        assert number not in self.expected
        self.expected[number] = record

    @precondition(lambda self: self.expected)
    @rule(data=st.data())
    def drop(self, data: st.DataObject) -> None:
        number = data.draw(st.sampled_from(sorted(self.expected)))
        assert self.spool.drop(number)
        del self.expected[number]

    @rule()
    def sync(self) -> None:
        self.spool.sync()

    @rule()
    def restart(self) -> None:
        self.spool.close()
        self.reopen()

    @rule(garbage=st.binary(min_size=1, max_size=HEADER.size).filter(any))
    def torn_end(self, garbage: bytes) -> None:
        """The process died, and the disk kept a part of what was being written."""
        self.spool.close()
        path = segments(self.folder)[-1]
        segment = Segment.open(path)
        segment.scan(int(path.stem))
        end = segment.end
        segment.close()
        torn = garbage[: SMALL - end]
        with path.open("r+b") as file:
            file.seek(end)
            file.write(torn)
        if any(torn):
            self.torn.add(path)
        self.reopen()

    def reopen(self) -> None:
        self.torn = {path for path in self.torn if path.exists()}
        self.spool = Spool(self.folder, SMALL)
        assert self.spool.damaged == len(self.torn)
        # Numbers are the process's own: what counts is which records, in which order.
        numbers = [number for number, _ in self.spool.pending()]
        self.expected = dict(zip(numbers, self.expected.values(), strict=True))

    @invariant()
    def holds_what_was_not_dropped(self) -> None:
        assert self.spool.pending() == list(self.expected.items())
        assert len(self.spool) == len(self.expected)

    def teardown(self) -> None:
        if hasattr(self, "spool"):
            self.spool.close()
            self.home.cleanup()


SpoolMachine.TestCase.settings = settings(max_examples=40)
TestSpoolMachine = SpoolMachine.TestCase
