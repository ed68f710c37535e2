"""Old checkpoints go; never the only good one, never a pinned one."""

from __future__ import annotations

from pathlib import Path

from tests.recovery.states import save
from tolaria_bus.tolaria.recovery.checkpoints import CheckpointStore, checkpoint_name
from tolaria_bus.tolaria.recovery.retention import Kept, dropped


def steps(store: CheckpointStore) -> list[int]:
    return [item.step for item in store.list()]


def test_the_newest_are_kept(tmp_path: Path) -> None:
    store = CheckpointStore(tmp_path, keep=3)
    for step in range(1, 7):
        save(store, step)
    assert steps(store) == [4, 5, 6]
    assert len(list(tmp_path.iterdir())) == 3


def test_pinned_ones_stay_and_take_no_place(tmp_path: Path) -> None:
    store = CheckpointStore(tmp_path, keep=2)
    save(store, 1, pin=True)
    save(store, 2)
    store.pin(checkpoint_name(2, 1, 2))
    for step in range(3, 7):
        save(store, step)
    assert steps(store) == [1, 2, 5, 6]


def test_a_size_limit_removes_the_oldest_but_never_the_newest(tmp_path: Path) -> None:
    size = sum(path.stat().st_size for path in (tmp_path / "x" / save_in(tmp_path / "x")).iterdir())
    store = CheckpointStore(tmp_path, keep=9, max_bytes=int(size * 2.5))
    for step in range(1, 5):
        save(store, step)
    assert steps(store) == [3, 4]
    tight = CheckpointStore(tmp_path, keep=9, max_bytes=1)
    save(tight, 5)
    assert steps(tight) == [5]


def save_in(folder: Path) -> str:
    return save(CheckpointStore(folder), 1)


def test_undone_ones_stay_for_one_more_cycle(tmp_path: Path) -> None:
    store = CheckpointStore(tmp_path, keep=2)
    for step in (100, 200):
        save(store, step, 5)
    marked = store.mark_cut(lambda _sequence, step: step <= 100, cut_sequence=8)
    assert marked == (checkpoint_name(200, 1, 5),)
    assert store.mark_cut(lambda _sequence, step: step <= 100, cut_sequence=9) == ()
    assert [item.cut for item in store.list()] == [False, True]
    save(store, 150, 8)
    assert steps(store) == [100, 200, 150]
    save(store, 160, 9)
    assert steps(store) == [150, 160]


def test_what_was_just_saved_is_never_removed() -> None:
    def kept(sequence: int, size: int = 10) -> Kept:
        return Kept(f"s{sequence}", sequence, sequence, 1, size, False, None)

    old = kept(1)
    rest = [kept(sequence) for sequence in (5, 6, 7)]
    assert dropped([old, *rest], keep=1, max_bytes=None, protect="s1") == ("s5", "s6")
    assert dropped([old, *rest], keep=9, max_bytes=0, protect="s1") == ("s5", "s6")


def test_a_checkpoint_that_cannot_be_removed_is_reported_and_fails_nothing(tmp_path: Path) -> None:
    events: list[tuple[str, dict[str, str]]] = []
    store = CheckpointStore(tmp_path, keep=1, on_event=lambda *event: events.append(event))
    save(store, 1)
    blocker = tmp_path / f"{checkpoint_name(1, 1, 1)}.old"
    blocker.mkdir()
    (blocker / "x").touch()
    assert save(store, 2)
    assert [name for name, _ in events] == ["checkpoint_not_removed"]
    assert steps(store) == [1, 2]
