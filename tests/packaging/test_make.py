"""make and .ci/run: what a newcomer and a build machine type."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


def make(*words: str, cwd: Path = ROOT, **environment: str) -> subprocess.CompletedProcess[str]:
    # As in a shell of its own: this test may itself be running under make.
    inherited = {key: text for key, text in os.environ.items() if not key.startswith("MAKE")}
    return subprocess.run(
        ["make", *words],
        cwd=cwd,
        env={**inherited, **environment},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """The files that make looks at, alone."""
    for name in ("Makefile", "requirements", "pyproject.toml", ".ci", ".env.example"):
        source = ROOT / name
        if source.is_dir():
            shutil.copytree(source, tmp_path / name)
        else:
            shutil.copy(source, tmp_path / name)
    return tmp_path


def test_help_names_every_target_that_people_use() -> None:
    said = make("help").stdout
    for target in (
        "demo",
        "test",
        "quick",
        "lint",
        "types",
        "bench",
        "torture",
        "rivals",
        "proto",
        "clean",
    ):
        assert f"make {target}\t" in said


def test_test_is_lint_types_and_all_tests() -> None:
    said = make("--dry-run", "test", "VENV=").stdout
    assert "ruff check ." in said
    assert "ruff format --check ." in said
    assert "mypy" in said
    pytest, _, options = make("--dry-run", "pytest", "VENV=").stdout.strip().partition(" --")
    assert pytest == "python -m pytest"
    # Nothing that leaves tests out.
    assert options == "numprocesses 0 --dist worksteal"


def test_an_active_environment_is_used_only_when_told() -> None:
    told = make("--dry-run", "lint", "VENV=")
    assert told.stdout.splitlines() == ["ruff check .", "ruff format --check ."]
    untold = make("--dry-run", "lint", VIRTUAL_ENV="/elsewhere")
    assert "/elsewhere" not in untold.stdout
    assert ".venv/bin/ruff check ." in untold.stdout


def test_torch_is_installed_first_and_by_itself(checkout: Path) -> None:
    lines = make("--dry-run", "demo", cwd=checkout).stdout.splitlines()
    installs = [line.split(" install ")[1] for line in lines if " -m pip " in line]
    assert [line.strip() for line in installs] == [
        "-r requirements/torch.txt",
        "-r requirements/runtime.txt",
        "--no-deps --no-build-isolation --editable .",
    ]


def test_the_second_time_nothing_is_installed(checkout: Path) -> None:
    environment = checkout / ".venv"
    (environment / "bin").mkdir(parents=True)
    (environment / "bin" / "python").touch()
    for stamp in (".runtime-installed", ".dev-installed"):
        (environment / stamp).touch()
    assert " install " not in make("--dry-run", "demo", "test", cwd=checkout).stdout
    # A pin has changed.
    os.utime(checkout / "requirements" / "runtime.txt", (2**32, 2**32))
    assert " install " in make("--dry-run", "demo", cwd=checkout).stdout


@pytest.mark.parametrize(
    ("python", "reason"),
    [("/nonexistent/python", "Python 3.11 or newer is needed"), ("false", "is not (set PYTHON=")],
)
def test_a_python_that_will_not_do_is_named(checkout: Path, python: str, reason: str) -> None:
    failed = make("lint", f"PYTHON={python}", cwd=checkout)
    assert failed.returncode == 2
    assert reason in failed.stdout
    assert not (checkout / ".venv").exists()


def test_a_pin_that_cannot_be_had_says_so_and_is_tried_again(checkout: Path) -> None:
    (checkout / "requirements" / "torch.txt").write_text("no-such-package-of-ours==0.0.0\n")
    for _ in range(2):
        # Offline on purpose: the answer is pip's own, at once.
        failed = make(
            "demo", f"PYTHON={sys.executable}", cwd=checkout, PIP_NO_INDEX="1", PIP_FIND_LINKS=""
        )
        assert failed.returncode == 2
        assert "no-such-package-of-ours==0.0.0" in failed.stderr


def test_env_has_a_password_of_its_own_and_is_never_overwritten(checkout: Path) -> None:
    assert make("env", cwd=checkout).returncode == 0
    made = (checkout / ".env").read_text()
    assert "\nTOLARIA_REDIS_PASSWORD=" in made
    (line,) = [line for line in made.splitlines() if line.startswith("TOLARIA_REDIS_PASSWORD=")]
    assert len(line.partition("=")[2]) == 48
    assert (checkout / ".env").stat().st_mode & 0o777 == 0o600

    again = make("env", cwd=checkout)
    assert again.returncode == 2
    assert ".env is there already" in again.stdout
    assert (checkout / ".env").read_text() == made


@pytest.mark.parametrize("code", [0, 3])
def test_ci_runs_make_test_and_hands_on_its_result(checkout: Path, code: int) -> None:
    (checkout / "Makefile").write_text(
        "test:\n\t@echo tests of $(notdir $(CURDIR)), setting [$(TOLARIA_RUN)]\n"
        f"\t@if read line; then echo there is input; fi\n\t@exit {code}\n"
    )
    done = subprocess.run(
        ["bash", ".ci/run"],
        cwd=checkout,
        env={**os.environ, "CI": "true", "TOLARIA_RUN": "someone-elses", "MAKEFLAGS": ""},
        input="not for the tests\n",
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode == 0) == (code == 0)
    assert done.stdout == f"tests of {checkout.name}, setting []\n"
