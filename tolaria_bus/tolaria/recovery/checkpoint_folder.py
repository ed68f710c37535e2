"""One checkpoint's folder: writing it, checking it, setting it aside."""

from __future__ import annotations

import errno
import os
from collections.abc import Mapping
from pathlib import Path

from torch import Tensor

from tolaria_bus.tolaria.recovery.checkpoint_info import (
    CheckpointCorrupt,
    CheckpointInfo,
    is_checkpoint_name,
    parse_name,
)
from tolaria_bus.tolaria.recovery.disk_helper import Disk
from tolaria_bus.tolaria.recovery.manifest import Manifest, ManifestRefused, decode, encode
from tolaria_bus.tolaria.recovery.retention import Kept
from tolaria_bus.tolaria.recovery.sync_folder import sync_folder
from tolaria_bus.tolaria.recovery.tensor_file import (
    TensorFile,
    TensorsDamaged,
    check_size,
    check_tensors,
    map_tensors,
    write_tensors,
)

TENSORS, MANIFEST, PINNED, CUT = "tensors.safetensors", "manifest.json", "pinned", "cut"


def write_checkpoint(
    folder: Path,
    identity: tuple[int, int, int],
    tensors: Mapping[str, Tensor],
    meta: Mapping[str, object],
    *,
    written_at_ns: int,
    pin: bool,
    disk: Disk,
) -> None:
    """Make a folder with a checkpoint in it, durable, and read all of it back.

    Args:
        folder: Not there yet; its parent is.
        identity: Step, timeline, sequence.
        tensors: As for :func:`~.tensor_file.write_tensors`.
        meta: As for :func:`~.manifest.encode`.
        written_at_ns: Wall clock, for people.
        pin: Mark it as pinned.
        disk: Writes and reads the tensors.

    Raises:
        OSError: The disk is full, or fails.
        ValueError: Something can't be stored, or what was read isn't what was written.
    """
    folder.mkdir()
    step, timeline, sequence = identity
    file = write_tensors(folder / TENSORS, tensors, disk)
    data, _ = encode(Manifest(step, timeline, sequence, written_at_ns, file, dict(meta)))
    write_durably(folder / MANIFEST, data)
    if pin:
        write_durably(folder / PINNED, b"")
    check_tensors(folder / TENSORS, decode((folder / MANIFEST).read_bytes()).file, disk)
    sync_folder(folder)


def verify(folder: Path, *, deep: bool) -> Manifest:
    """The manifest of a checkpoint, once it and the tensors are found to be sound.

    Args:
        folder: With a checkpoint's name.
        deep: Read every byte of the tensors; else only their file's size is looked at.

    Raises:
        CheckpointCorrupt: They aren't.
        OSError: They can't be read for a reason that isn't theirs.
    """
    name = folder.name
    if not folder.is_dir():
        raise CheckpointCorrupt(name, "missing", "there is no such folder")
    try:
        manifest = decode((folder / MANIFEST).read_bytes())
        if parse_name(name) != (manifest.step, manifest.timeline, manifest.sequence):
            raise CheckpointCorrupt(name, "foreign", "its manifest is another checkpoint's")
        (check_tensors if deep else check_size)(folder / TENSORS, manifest.file)
    except (ManifestRefused, TensorsDamaged) as error:
        raise CheckpointCorrupt(name, error.reason, str(error)) from error
    except FileNotFoundError as error:
        raise CheckpointCorrupt(name, "torn", f"{MANIFEST} is missing") from error
    except OSError as error:
        if error.errno != errno.EIO:
            raise
        raise CheckpointCorrupt(name, "unreadable", str(error)) from error
    return manifest


def map_verified(folder: Path, file: TensorFile) -> dict[str, Tensor]:
    """The tensors of a checkpoint that :func:`verify` read deeply.

    Raises:
        CheckpointCorrupt: Its file's header says something else than its manifest.
    """
    try:
        return map_tensors(folder / TENSORS, file)
    except TensorsDamaged as error:
        raise CheckpointCorrupt(folder.name, error.reason, str(error)) from error


def describe(kept: Kept, manifest: Manifest) -> CheckpointInfo:
    """A checkpoint for those who want to know of it."""
    epoch, label = manifest.meta.get("epoch"), manifest.meta.get("label")
    return CheckpointInfo(
        name=kept.name,
        step=manifest.step,
        timeline=manifest.timeline,
        sequence=manifest.sequence,
        epoch=epoch if isinstance(epoch, int) else 0,
        label=label if isinstance(label, str) else "",
        bytes=manifest.file.bytes,
        pinned=kept.pinned,
        cut=kept.cut_at is not None,
        manifest_sha256=manifest.sha256,
    )


def kept_checkpoints(store: Path) -> tuple[Kept, ...]:
    """Everything with a checkpoint's name in a store's folder, oldest first, by names alone."""
    found = []
    for path in store.iterdir() if store.is_dir() else ():
        if is_checkpoint_name(path.name) and path.is_dir():
            step, timeline, sequence = parse_name(path.name)
            cut = path / CUT
            found.append(
                Kept(
                    name=path.name,
                    sequence=sequence,
                    step=step,
                    timeline=timeline,
                    bytes=sum(file.stat().st_size for file in path.iterdir()),
                    pinned=(path / PINNED).exists(),
                    cut_at=_cut_sequence(cut) if cut.exists() else None,
                )
            )
    return tuple(sorted(found, key=lambda kept: (kept.sequence, kept.step, kept.timeline)))


def set_aside(folder: Path, bad: CheckpointCorrupt) -> dict[str, str]:
    """Rename a bad checkpoint to ``NAME.bad-REASON`` and leave the reason in it.

    Returns:
        What there is to tell of it. A disk that allows no renaming isn't an error: whoever looks
        for a checkpoint passes this one over all the same.
    """
    details = {"checkpoint": bad.name, "reason": bad.reason, "detail": bad.detail}
    base = target = folder.with_name(f"{folder.name}.bad-{bad.reason}")
    number = 1
    while target.exists():
        number += 1
        target = base.with_name(f"{base.name}-{number}")
    try:
        folder.rename(target)
        (target / "reason.txt").write_text(f"{bad}\n")
        sync_folder(folder.parent)
    except OSError as error:
        details["not_renamed"] = str(error)
    return {**details, "now": target.name}


def write_durably(path: Path, data: bytes) -> None:
    """Write a small file and sync it. Raises OSError."""
    with path.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


def _cut_sequence(path: Path) -> int:
    text = path.read_text()
    return int(text) if text.isdigit() else 0  # Torn by a power cut: it was undone, that is all.
