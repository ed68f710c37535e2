"""What is installed without a checkout: the wheel has the code, the scripts, the types."""

from __future__ import annotations

import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> zipfile.ZipFile:
    """Built from a copy of what git would have, so that nothing is left behind in the checkout."""
    copy = tmp_path_factory.mktemp("source")
    files = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    ).stdout.split("\0")
    for name in filter(None, files):
        if (ROOT / name).is_file():
            (copy / name).parent.mkdir(parents=True, exist_ok=True)
            (copy / name).write_bytes((ROOT / name).read_bytes())
    options = ["--no-deps", "--no-build-isolation", "--quiet", "--wheel-dir", str(copy / "out")]
    subprocess.run(
        [sys.executable, "-m", "pip", "wheel", *options, str(copy)],
        check=True,
        capture_output=True,
        text=True,
    )
    (built,) = (copy / "out").glob("tolaria_bus-*.whl")
    return zipfile.ZipFile(built)


@pytest.mark.slow
def test_every_module_script_and_stub_is_in_the_wheel(wheel: zipfile.ZipFile) -> None:
    wanted = {
        str(path.relative_to(ROOT))
        for suffix in ("*.py", "*.pyi", "*.lua", "py.typed")
        for path in (ROOT / "tolaria_bus").rglob(suffix)
    }
    assert wanted - set(wheel.namelist()) == set()


@pytest.mark.slow
def test_the_wheel_has_the_command_the_licence_and_no_tests(wheel: zipfile.ZipFile) -> None:
    names = wheel.namelist()
    tops = {name.split("/")[0] for name in names if ".dist-info" not in name}
    assert tops == {"tolaria_bus"}
    (entry_points,) = [name for name in names if name.endswith("entry_points.txt")]
    assert "tolaria-bus = tolaria_bus.cli:main" in wheel.read(entry_points).decode()
    assert any(name.endswith("/LICENSE") for name in names)
