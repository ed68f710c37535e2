"""docker-compose.yml as an engine reads it: interpolated, with what each service is given.

Only what the file uses is understood; anything else fails loudly, so that the file can't grow
past its tests unnoticed.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).parents[2]
COMPOSE = ROOT / "docker-compose.yml"
DOCKERFILE = ROOT / "infra" / "Dockerfile"

_VARIABLE = re.compile(
    r"\$(?:(?P<escaped>\$)|\{(?P<name>\w+)(?:(?P<operator>:[-?])(?P<word>[^}]*))?\})"
)


class NotSet(ValueError):
    """A variable that the file demands is missing; the message is the file's own."""


@dataclass(frozen=True)
class Service:
    """One service, interpolated.

    Attributes:
        environment: What it gets beside the image's own variables.
        mounts: Path in the container to a path in the checkout, or to the name of a volume.
        configs: Path in the container to the text that compose writes there.
    """

    name: str
    definition: dict[str, Any]
    command: list[str]
    environment: dict[str, str]
    health: list[str]
    mounts: dict[str, Path | str]
    configs: dict[str, str]


def load(variables: Mapping[str, str]) -> dict[str, Service]:
    """The services, given the variables of ``.env``.

    Raises:
        NotSet: The file demands a variable that isn't there.
    """
    document = yaml.safe_load(COMPOSE.read_text())
    document = _interpolate(document, variables)
    texts = {name: item["content"] for name, item in document.get("configs", {}).items()}
    return {
        name: _service(name, definition, variables, texts)
        for name, definition in document["services"].items()
    }


def image() -> dict[str, list[str]]:
    """The last stage of the Dockerfile: instruction to its arguments, each as written."""
    text = re.sub(r"\\\n", " ", DOCKERFILE.read_text())
    lines = [line for line in text.splitlines() if line.strip() and not line.startswith("#")]
    found: dict[str, list[str]] = {}
    for line in lines:
        instruction, _, rest = line.strip().partition(" ")
        if instruction == "FROM":
            found = {}
        found.setdefault(instruction, []).append(" ".join(rest.split()))
    return found


def image_environment() -> dict[str, str]:
    """Variables that the image sets, less PATH, which is the container's own affair."""
    words = [word for line in image()["ENV"] for word in shlex.split(line)]
    pairs = (word.partition("=") for word in words)
    return {name: value for name, _, value in pairs if name != "PATH"}


def image_files() -> dict[str, Path]:
    """Path in the container to the file of the checkout that is copied there."""
    copies = (line.split() for line in image()["COPY"] if not line.startswith("--from"))
    return {target: ROOT / source for source, target in copies}


def _service(
    name: str, definition: dict[str, Any], variables: Mapping[str, str], texts: Mapping[str, str]
) -> Service:
    health = definition["healthcheck"]["test"]
    assert health[0] == "CMD", "a health check in exec form: no shell between"
    return Service(
        name=name,
        definition=definition,
        command=list(definition["command"]),
        environment=_environment(definition.get("environment", {}), variables),
        health=health[1:],
        mounts=dict(_mount(text) for text in definition.get("volumes", [])),
        configs={item["target"]: texts[item["source"]] for item in definition.get("configs", [])},
    )


def _environment(given: Mapping[str, Any], variables: Mapping[str, str]) -> dict[str, str]:
    found: dict[str, str] = {}
    for name, value in given.items():
        if value is not None:
            assert isinstance(value, str), f"{name}: YAML makes {value!r} of it; quote it"
            found[name] = value
        elif name in variables:
            found[name] = variables[name]
    return found


def _mount(text: str) -> tuple[str, Path | str]:
    source, target, *_ = text.split(":")
    return target, (ROOT / source if source.startswith(".") else source)


def _interpolate(node: Any, variables: Mapping[str, str]) -> Any:
    if isinstance(node, dict):
        return {key: _interpolate(value, variables) for key, value in node.items()}
    if isinstance(node, list):
        return [_interpolate(item, variables) for item in node]
    if isinstance(node, str):
        return _VARIABLE.sub(lambda match: _value(match, variables), node)
    return node


def _value(match: re.Match[str], variables: Mapping[str, str]) -> str:
    if match["escaped"]:
        return "$"
    value = variables.get(match["name"], "")
    if value or match["operator"] is None:
        return value
    if match["operator"] == ":-":
        return match["word"]
    raise NotSet(f"{match['name']}: {match['word']}")
