"""The documents name what there is."""

from __future__ import annotations

import re
import textwrap
from pathlib import Path
from typing import Any

import anyio
import pytest
from redis.asyncio import Redis

from tests.oona.bus import CONTROL, UNSIGNED, command, messages, until
from tests.oona.dead import dead_entry, sealed
from tolaria_bus.leyline import AdaptationCommand
from tolaria_bus.oona.trust import KeyRing
from tolaria_bus.settings import describe

ROOT = Path(__file__).parents[2]


def test_every_setting_is_documented_with_its_default() -> None:
    text = (ROOT / "docs" / "settings.md").read_text()
    for name, (default, _) in describe().items():
        shown = "" if default is None else f"`{default}`"
        assert f"| `{name}` | {shown} |" in text


@pytest.mark.parametrize(
    "page",
    [
        "guarantees.md",
        "dead-letters.md",
        "emergency.md",
        "fault-matrix.md",
        "faults.md",
        "oona.md",
        "weatherlight.md",
    ],
)
def test_every_test_that_a_page_names_exists(page: str) -> None:
    file = ""
    for name in re.findall(r"`(tests/\S+|::\w+)`", (ROOT / "docs" / page).read_text()):
        path, _, function = name.partition("::")
        file = path or file
        assert (ROOT / file).is_file(), name
        if function:
            assert f"def {function}(" in (ROOT / file).read_text(), name


def test_the_matrix_of_faults_has_its_rows_and_each_names_a_test() -> None:
    lines = (ROOT / "docs" / "fault-matrix.md").read_text().splitlines()
    rows = [line for line in lines if line.startswith("|") and "---" not in line]
    rows = [line for line in rows if not line.startswith("| who, how")]
    assert len(rows) >= 30
    assert [line for line in rows if line.count("|") != 6 or "`tests/" not in line] == []


def test_every_link_of_the_readme_leads_somewhere() -> None:
    for target in re.findall(r"\]\(([^)#]+)\)", (ROOT / "README.md").read_text()):
        assert (ROOT / target).exists(), target


def _between(page: str, mark: str) -> str:
    text = (ROOT / "docs" / page).read_text()
    (code,) = re.findall(rf"<!-- {mark}:start -->\n```python\n(.*?)```", text, flags=re.DOTALL)
    return str(code)


async def test_the_publisher_and_the_consumer_of_the_page_on_the_bus_work(
    redis_url: str, tmp_path: Path
) -> None:
    publish, consume = _between("oona.md", "publish"), _between("oona.md", "consume")
    assert len(publish.split("async with")[1].splitlines()) + 2 <= 5
    lines = [line for line in consume.splitlines() if line.strip() and "import" not in line]
    assert len(lines) <= 15
    names: dict[str, Any] = {"done": [], "url": redis_url, "folder": tmp_path / "spool"}
    names["ring"] = KeyRing.parse("k:c2VjcmV0LXNlY3JldA==")
    imports, block = publish.split("\n\n")
    body = imports + "\nasync def publish():\n" + textwrap.indent(block, "    ")
    exec(compile(body, "oona.md", "exec"), names)
    exec(compile(consume, "oona.md", "exec"), names)
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(names["consume"], redis_url, names["ring"])
        await names["publish"]()
        await until(lambda: names["done"] == ["night-1"])
        tasks.cancel_scope.cancel()


async def test_the_code_of_the_page_on_dead_letters_works(redis: Redis) -> None:
    text = (ROOT / "docs" / "dead-letters.md").read_text()
    (code,) = re.findall(r"```python\n(.*?)```", text, flags=re.DOTALL)
    names: dict[str, Any] = {}
    exec(compile(code, "dead-letters.md", "exec"), names)
    await dead_entry(redis, sealed(command("mine"), UNSIGNED), "stale")
    await names["put_back"](redis, "r", UNSIGNED, "operator/ann")
    (message,) = await messages(redis, CONTROL, AdaptationCommand)
    assert message.command_id == "mine"
