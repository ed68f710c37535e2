"""A file system of a few megabytes, for a program that is to find it full."""

from __future__ import annotations

import errno
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

_MOUNT = 'mount -t tmpfs -o size="$1" none "$2" && shift 2 && exec "$@"'


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
    tried = [*spaces, "sh", "-ec", _MOUNT, "sh", size, str(folder), "true"]
    if subprocess.run(tried, capture_output=True, check=False).returncode:
        pytest.skip("this system allows no mount in a user name space")
    program = [sys.executable, "-c", code, str(folder)]
    done = subprocess.run(
        [*spaces, "sh", "-ec", _MOUNT, "sh", size, str(folder), *program],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
