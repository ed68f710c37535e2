"""A file system of a few megabytes, for a program that is to find it full."""

from __future__ import annotations

import ctypes
import errno
import os
import shutil
import subprocess
from functools import partial
from pathlib import Path

import pytest

from tests.forks import run_program

_MOUNT = 'mount -t tmpfs -o size="$1" none "$2"'
_NEW_USERS, _NEW_MOUNTS = 0x1000_0000, 0x2_0000  # CLONE_NEWUSER, CLONE_NEWNS


def fill(folder: Path) -> None:
    """Leave no room on the file system of a folder; deleting ``ballast`` there makes some."""
    with (folder / "ballast").open("ab", buffering=0) as file:
        for size in (1 << 16, 1 << 12):
            try:
                while True:
                    file.write(b"x" * size)
            except OSError as error:
                if error.errno != errno.ENOSPC:
                    raise


def run_on_small_disk(code: str, folder: Path, *, size: str) -> None:
    """Run a Python program whose ``sys.argv[1]`` is a folder on a file system of ``size``.

    It has name spaces of its own for that; where the system allows none, the test is skipped.
    """
    unshare = shutil.which("unshare")
    if unshare is None:
        pytest.skip("needs unshare (util-linux)")
    spaces = [unshare, "--user", "--map-root-user", "--mount"]
    folder.mkdir()
    tried = [*spaces, "sh", "-ec", _MOUNT, "sh", size, str(folder)]
    if subprocess.run(tried, capture_output=True, check=False).returncode:
        pytest.skip("this system allows no mount in a user name space")
    exit_code, written = run_program(
        code, str(folder), beforehand=partial(_mount, str(folder), size)
    )
    assert exit_code == 0, written


def _mount(folder: str, size: str) -> None:
    """As unshare does it, in this process."""
    user, group = os.getuid(), os.getgid()
    unshare = ctypes.CDLL(None, use_errno=True).unshare
    if unshare(_NEW_USERS | _NEW_MOUNTS):
        raise OSError(ctypes.get_errno(), "unshare")
    Path("/proc/self/setgroups").write_text("deny")
    Path("/proc/self/uid_map").write_text(f"0 {user} 1")
    Path("/proc/self/gid_map").write_text(f"0 {group} 1")
    subprocess.run(["mount", "--make-rprivate", "/"], check=True)
    subprocess.run(["sh", "-ec", _MOUNT, "sh", size, folder], check=True)
