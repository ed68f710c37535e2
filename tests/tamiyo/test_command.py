"""The commands ``tamiyo`` and ``policy``."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import orjson
import pytest
from redis.asyncio import Redis

from tests.worker.processes import Terminal
from tolaria_bus.leyline import PolicyUpdate
from tolaria_bus.oona.opening import Opener
from tolaria_bus.oona.streams import Streams
from tolaria_bus.oona.trust import KeyRing

KEYS = "k1:c2VjcmV0LXNlY3JldC1zZWNyZXQtc2VjcmV0"


@pytest.mark.parametrize(
    ("words", "why"),
    [
        (("--policy", "nobody"), "known: heuristic, continue"),
        (("--option", "patience=0"), "patience"),
        (("--option", "patience"), "name=value"),
        (("--limit", "seeds=-1"), "seeds = -1"),
        (("--limit", "colour=1"), "colour"),
        (("--redis", "redis://192.0.2.1"), "set TOLARIA_SIGNING_KEYS, or TOLARIA_ALLOW_UNSIGNED=1"),
        ((), "no server: --redis isn't given"),
    ],
)
def test_what_is_wrong_is_one_line(tmp_path: Path, words: tuple[str, ...], why: str) -> None:
    where = ("--redis", "unix:///nowhere.sock") if words else ()
    [line] = Terminal(tmp_path).run("tamiyo", *where, *words, check=2).splitlines()
    assert why in line


async def test_policy_writes_a_signed_update(tmp_path: Path, redis: Redis, redis_url: str) -> None:
    terminal = Terminal(tmp_path, {"TOLARIA_SIGNING_KEYS": KEYS})
    words = ("policy", "heuristic", "--redis", redis_url, "patience=8", "grow=false")
    assert "for every run" in terminal.run(*words, "--fleet")
    assert "for digits" in terminal.run(*words, "--run", "digits")
    stream = Streams().policies
    opener = Opener(KeyRing.parse(KEYS), None)
    found: Any = await redis.xrange(stream)
    updates = [opener.open(stream, key, fields).message for key, fields in found]
    assert all(isinstance(update, PolicyUpdate) for update in updates)
    assert [update.training_run_id for update in updates] == ["", "digits"]  # type: ignore[attr-defined]
    (options,) = {update.payload for update in updates}  # type: ignore[attr-defined]
    assert orjson.loads(options) == {"patience": 8, "grow": False}
