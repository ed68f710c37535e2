"""The house: imports point downwards only, and some rooms know less than they could."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[2] / "tolaria_bus"
HOUSE = (
    "__main__",
    "cli",
    "worker",
    "weatherlight",
    "tamiyo",
    "jobs",
    "tolaria",
    "kasmina",
    "configured",
    "oona",
    "safety",
    "logs",
    "settings",
    "leyline",
)
"""From the roof down."""
KNOWS_NOT = {
    "tolaria": {"oona", "redis", "anyio", "asyncio"},
    "weatherlight": {"torch", "tolaria", "kasmina", "jobs", "worker"},
    "tamiyo": {"torch", "tolaria", "kasmina", "jobs", "worker", "weatherlight"},
    "oona": {"torch", "safety", "logs", "settings"},
    "safety": {"torch", "redis", "logs", "settings"},
    "leyline": {"torch", "redis"},
}
"""What a room must not import, beside all that is above it."""


def imported(path: Path) -> Iterator[tuple[int, str]]:
    """Line and room (or other package) of everything that a file imports."""
    for node in ast.walk(ast.parse(path.read_text())):
        names = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module is not None:
            names = [node.module]
            if node.module == PACKAGE.name:
                names = [f"{node.module}.{alias.name}" for alias in node.names]
        for name in names:
            first, _, rest = name.partition(".")
            yield (
                getattr(node, "lineno", 0),
                rest.partition(".")[0] if first == PACKAGE.name else first,
            )


def files(room: str) -> list[Path]:
    single = PACKAGE / f"{room}.py"
    return [single] if single.exists() else sorted((PACKAGE / room).rglob("*.py"))


def test_every_room_is_known() -> None:
    there = {path.stem for path in PACKAGE.glob("[!_]*.py")}
    there |= {path.parent.name for path in PACKAGE.glob("*/__init__.py")}
    assert there <= set(HOUSE)


@pytest.mark.parametrize("room", HOUSE)
def test_imports_point_downwards_only(room: str) -> None:
    forbidden = set(HOUSE[: HOUSE.index(room)]) | KNOWS_NOT.get(room, set())
    wrong = [
        f"{path.relative_to(PACKAGE)}:{line} imports {name}"
        for path in files(room)
        for line, name in imported(path)
        if name in forbidden
    ]
    assert wrong == []


@pytest.mark.parametrize(
    "module", ["weatherlight", "cli.weatherlight", "tamiyo.service", "cli.tamiyo", "cli.send"]
)
def test_what_must_start_at_once_loads_no_torch(module: str) -> None:
    code = f"import sys, tolaria_bus.{module}; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
