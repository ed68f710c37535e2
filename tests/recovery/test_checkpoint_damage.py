"""Damage is found, set aside with its reason, and the checkpoint before it is used."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import orjson
import pytest

from tests.forks import run_program
from tests.recovery.states import assert_same, flip, save, tensors
from tolaria_bus.tolaria.recovery.checkpoints import (
    CheckpointCorrupt,
    CheckpointFailed,
    CheckpointStore,
    checkpoint_name,
)

OLD, NEW = checkpoint_name(1, 1, 1), checkpoint_name(2, 1, 2)


@pytest.fixture
def events() -> list[tuple[str, dict[str, str]]]:
    return []


@pytest.fixture
def store(tmp_path: Path, events: list[tuple[str, dict[str, str]]]) -> CheckpointStore:
    """A store with two checkpoints."""
    made = CheckpointStore(tmp_path, on_event=lambda name, details: events.append((name, details)))
    save(made, 1)
    save(made, 2)
    return made


def truncate(path: Path) -> None:
    os.truncate(path / "tensors.safetensors", 1000)


def lengthen(path: Path) -> None:
    with (path / "tensors.safetensors").open("ab") as file:
        file.write(b"x")


def no_tensors(path: Path) -> None:
    (path / "tensors.safetensors").unlink()


def no_manifest(path: Path) -> None:
    (path / "manifest.json").unlink()


def half_a_manifest(path: Path) -> None:
    os.truncate(path / "manifest.json", 100)


def changed_manifest(path: Path) -> None:
    text = (path / "manifest.json").read_text()
    (path / "manifest.json").write_text(text.replace('"step": 2', '"step": 3'))


def newer(path: Path) -> None:
    body = orjson.loads((path / "manifest.json").read_bytes())
    (path / "manifest.json").write_bytes(orjson.dumps({**body, "version": 2}))


def other_format(path: Path) -> None:
    (path / "manifest.json").write_text('{"format": "something else"}')


def another_ones(path: Path) -> None:
    shutil.rmtree(path)
    shutil.copytree(path.with_name(OLD), path)


@pytest.mark.parametrize(
    ("harm", "reason"),
    [
        (truncate, "torn"),
        (no_tensors, "torn"),
        (no_manifest, "torn"),
        (half_a_manifest, "corrupt"),
        (changed_manifest, "corrupt"),
        (lengthen, "corrupt"),
        (newer, "too_new"),
        (other_format, "foreign"),
        (another_ones, "foreign"),
    ],
)
def test_a_bad_one_is_set_aside_and_the_one_before_is_used(
    store: CheckpointStore,
    events: list[tuple[str, dict[str, str]]],
    harm: Callable[[Path], None],
    reason: str,
) -> None:
    harm(store.folder / NEW)
    newest = store.newest()
    assert newest is not None
    assert newest.name == OLD
    assert_same(newest.tensors, tensors(1))
    aside = store.folder / f"{NEW}.bad-{reason}"
    assert aside.is_dir()
    assert (aside / "reason.txt").read_text().startswith(f"checkpoint {NEW} is {reason}: ")
    assert not store.has(NEW)
    ((name, details),) = events
    assert name == "checkpoint_set_aside"
    assert (details["checkpoint"], details["reason"], details["now"]) == (NEW, reason, aside.name)


def test_any_flipped_bit_of_the_tensors_is_found(tmp_path: Path) -> None:
    size = (save_one(tmp_path, 0) / "tensors.safetensors").stat().st_size
    for number, place in enumerate(range(0, size, 97), start=1):
        folder = save_one(tmp_path, number)
        flip(folder / "tensors.safetensors", place)
        with pytest.raises(CheckpointCorrupt) as caught:
            CheckpointStore(tmp_path).load(folder.name)
        assert caught.value.reason == "corrupt"


def save_one(folder: Path, step: int) -> Path:
    return folder / save(CheckpointStore(folder), step)


def test_any_flipped_bit_of_the_manifest_is_found_or_means_nothing(tmp_path: Path) -> None:
    store = CheckpointStore(tmp_path)
    path = tmp_path / save(store, 1) / "manifest.json"
    whole = path.read_bytes()
    for place in range(0, len(whole), 3):
        path.write_bytes(whole)
        flip(path, place)
        try:
            found, meta = store.load(OLD)
        except CheckpointCorrupt:
            (aside,) = tmp_path.glob("*.bad-*")
            aside.rename(tmp_path / OLD)
            (tmp_path / OLD / "reason.txt").unlink()
        else:
            assert whole[place : place + 1].isspace()
            assert meta == {"step": 1}
            assert_same(found, tensors(1))


def test_loading_a_bad_one_by_name_says_what_is_wrong(store: CheckpointStore) -> None:
    flip(store.folder / NEW / "tensors.safetensors", 2000)
    with pytest.raises(CheckpointCorrupt, match=r"tensor 'model\.weight': its CRC32C is wrong"):
        store.load(NEW)
    assert [item.name for item in store.list()] == [OLD]


def test_two_bad_ones_of_one_name_do_not_collide(store: CheckpointStore) -> None:
    for _ in range(2):
        truncate(store.folder / NEW)
        with pytest.raises(CheckpointCorrupt):
            store.load(NEW)
        save(store, 2)
    assert (store.folder / f"{NEW}.bad-torn-2" / "reason.txt").exists()
    assert_same(store.load(NEW)[0], tensors(2))


def test_saving_over_a_bad_one_replaces_it(store: CheckpointStore) -> None:
    truncate(store.folder / NEW)
    save(store, 2)
    assert_same(store.load(NEW)[0], tensors(2))
    assert (store.folder / f"{NEW}.bad-torn").is_dir()


def test_looking_changes_nothing(store: CheckpointStore) -> None:
    half_a_manifest(store.folder / NEW)
    assert [item.name for item in store.list()] == [OLD]
    assert (store.folder / NEW).is_dir()


def test_all_bad_is_none(store: CheckpointStore, events: list[tuple[str, dict[str, str]]]) -> None:
    for name in (OLD, NEW):
        no_manifest(store.folder / name)
    assert store.newest() is None
    assert len(events) == 2


def test_what_a_dead_process_left_is_swept_before_the_first_save(tmp_path: Path) -> None:
    left = [tmp_path / f"{OLD}.tmp", tmp_path / f"{NEW}.old"]
    for path in left:
        path.mkdir()
        (path / "tensors.safetensors").write_bytes(b"half")
    mine = tmp_path / "mine.tmp"
    mine.mkdir()
    store = CheckpointStore(tmp_path)
    assert store.newest() is None
    assert left[0].exists()  # Reading sweeps nothing: another process may be writing.
    save(store, 1)
    assert not any(path.exists() for path in left)
    assert mine.exists()


DISK_FULL = """
import pathlib, resource, sys
import torch
from tests.recovery.states import save
from tolaria_bus.tolaria.recovery.checkpoints import *

folder = pathlib.Path(sys.argv[1])
store = CheckpointStore(folder)
save(store, 1)
writer = CheckpointWriter(store)
resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[2]), resource.RLIM_INFINITY))
future = writer.submit(checkpoint_name(2, 1, 2), {"x": torch.ones(600_000)}, {"m": "y" * 9000})
error = future.exception(60)
assert isinstance(error, CheckpointFailed), repr(error)
assert "File too large" in str(error) and "\\n" not in str(error), error
assert [path.name for path in folder.iterdir()] == [checkpoint_name(1, 1, 1)]
store.load(checkpoint_name(1, 1, 1))
resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
assert writer.submit(checkpoint_name(2, 1, 2), {"x": torch.ones(9)}, {}).result(60)
assert writer.close(60)
"""


@pytest.mark.parametrize("limit", [0, 1000, 2_400_000])
def test_a_full_disk_fails_one_checkpoint_and_leaves_the_others(tmp_path: Path, limit: int) -> None:
    code, written = run_program(DISK_FULL, str(tmp_path), str(limit))
    assert code == 0, written


def test_a_folder_that_cannot_be_made_is_a_failure(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(CheckpointFailed, match=r"step-00000001-t1-s1"):
        save(CheckpointStore(tmp_path / "file"), 1)
