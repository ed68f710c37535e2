"""The pins: every package exactly, torch before all, nothing that pyproject asks for left out."""

from __future__ import annotations

import re
import tomllib
from importlib.metadata import distribution, version
from pathlib import Path
from typing import Any

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[2]
PIN = re.compile(r"([a-z0-9][a-z0-9._-]*)==([0-9][^\s;+]*)")


def pins(name: str) -> dict[str, str]:
    """Package to version, of one file and those that it includes."""
    found: dict[str, str] = {}
    for line in (ROOT / "requirements" / name).read_text().splitlines():
        if line.startswith("-r "):
            found.update(pins(line.removeprefix("-r ")))
        elif line and not line.startswith("#"):
            match = PIN.fullmatch(line)
            assert match is not None, f"{name}: {line!r} is no exact pin"
            assert match[1] not in found, f"{name}: {match[1]} comes twice"
            found[canonicalize_name(match[1])] = match[2]
    return found


def project() -> dict[str, Any]:
    with (ROOT / "pyproject.toml").open("rb") as file:
        found: dict[str, Any] = tomllib.load(file)["project"]
    return found


def test_torch_is_pinned_exactly_and_alone_with_what_it_needs() -> None:
    assert pins("torch.txt")["torch"] == "2.13.0"
    foreign = [name for name in pins("dev.txt") if name.startswith(("nvidia-", "triton", "cuda-"))]
    assert foreign == []


@pytest.mark.parametrize(
    ("name", "extras"),
    [("runtime.txt", ("examples",)), ("dev.txt", ("examples", "aggregators", "dev"))],
)
def test_pins_satisfy_what_the_project_asks_for(name: str, extras: tuple[str, ...]) -> None:
    pinned = pins(name)
    asked = [*project()["dependencies"]]
    for extra in extras:
        asked += project()["optional-dependencies"][extra]
    for text in asked:
        requirement = Requirement(text)
        assert requirement.specifier.contains(pinned[canonicalize_name(requirement.name)]), text


def test_pins_are_closed_over_dependencies() -> None:
    """Otherwise pip would choose a version by itself, another one each month."""
    pinned = pins("dev.txt")
    for name in pinned:
        for text in distribution(name).requires or []:
            requirement = Requirement(text)
            if requirement.marker is None or requirement.marker.evaluate({"extra": ""}):
                needed = canonicalize_name(requirement.name)
                assert needed in pinned, f"{name} needs {text}"
                assert requirement.specifier.contains(pinned[needed]), f"{name} needs {text}"


def test_rivals_are_measured_on_the_same_client_and_without_torch() -> None:
    theirs, ours = pins("rivals.txt"), pins("runtime.txt")
    for name in ("redis", "hiredis", "uvloop"):
        assert theirs[name] == ours[name]
    assert not set(theirs) & set(pins("torch.txt")) - {"typing-extensions"}


def test_what_runs_here_is_what_is_pinned() -> None:
    found = {name: version(name).partition("+")[0] for name in pins("dev.txt")}
    assert found == pins("dev.txt")
