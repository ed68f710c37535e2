"""A real worker's metrics, its health, and the alert about forgeries, seen from outside."""

from __future__ import annotations

import re
import signal
import socket
import time
import urllib.error
import urllib.request
from pathlib import Path

import pytest
from prometheus_client.parser import text_string_to_metric_families
from redis.asyncio import Redis

from tests.oona.bus import command, envelopes, send
from tests.worker.processes import Process, Terminal
from tolaria_bus.leyline import BusMessageType, TelemetryEvent, TelemetryLevel, TelemetryPacket
from tolaria_bus.oona.streams import Streams
from tolaria_bus.oona.trust import KeyRing

STREAMS = Streams()
KEYS = "k1:c2VjcmV0LXNlY3JldC1zZWNyZXQtc2VjcmV0"
FORGER = KeyRing({"k1": b"not the secret"})


def address(worker: Process) -> str:
    """Where its metrics are, as it says itself."""
    worker.says("/metrics")
    plain = re.sub(r"\x1b\[[0-9;]*m", "", worker.log.read_text())
    found = re.search(r"http://127\.0\.0\.1:\d+", plain)
    assert found is not None, plain
    return found[0]


def get(url: str) -> tuple[int, str]:
    try:
        with urllib.request.urlopen(url, timeout=60) as answer:
            return answer.status, answer.read().decode()
    except urllib.error.HTTPError as error:
        return error.code, error.read().decode()


def value(page: str, name: str, **labels: str) -> float | None:
    for family in text_string_to_metric_families(page):
        for sample in family.samples:
            if sample.name == name and labels.items() <= sample.labels.items():
                return sample.value
    return None


async def alerts(redis: Redis) -> list[TelemetryEvent]:
    return [
        event
        for envelope in await envelopes(redis, STREAMS.emergency)
        if envelope.message_type == BusMessageType.BUS_MESSAGE_TYPE_TELEMETRY
        for event in TelemetryPacket.FromString(envelope.payload).events
    ]


@pytest.mark.slow
async def test_a_worker_shows_its_numbers_its_health_and_who_forges(
    tmp_path: Path, redis: Redis, redis_url: str
) -> None:
    terminal = Terminal(tmp_path, {"TOLARIA_SIGNING_KEYS": KEYS, "TOLARIA_METRICS_PORT": "0"})
    control = STREAMS.control("m")
    words = ("run", "tiny.py:Tiny", "--run", "m", "--redis", redis_url, "--epochs", "4000")
    with terminal.start(*words) as worker:
        url = address(worker)
        end = time.monotonic() + 300
        while get(f"{url}/healthz") != (200, "ok\n"):
            assert time.monotonic() < end, get(f"{url}/healthz")
        terminal.run("send", "checkpoint", "--run", "m", "--redis", redis_url, "--wait", "120")
        for number in range(9):
            await send(redis, control, command(str(number)), FORGER)
        page = ""
        while value(page, "oona_dead_letters_total", stream=control, reason="signature") != 9:
            assert time.monotonic() < end, page
            _, page = get(f"{url}/metrics")
        # Asked of the server now and then.
        pending = {"stream": control, "group": "tolaria"}
        while value(page, "oona_group_pending", **pending) is None:
            assert time.monotonic() < end, page
            _, page = get(f"{url}/metrics")
        assert value(page, "oona_handed_over_total", stream=control) == 1
        assert value(page, "oona_published_total", stream=STREAMS.outcomes("m")) == 1
        assert value(page, "oona_publish_seconds_count", stream=STREAMS.telemetry("m")) is not None
        assert value(page, "oona_connected", connection="emergency") == 1
        found = [event for event in await alerts(redis) if event.event_id == "bad_signatures"]
        while not found:
            assert time.monotonic() < end
            found = [event for event in await alerts(redis) if event.event_id == "bad_signatures"]
        assert len(found) == 1
        assert found[0].level == TelemetryLevel.TELEMETRY_LEVEL_WARNING
        assert (found[0].attributes["count"], found[0].attributes["keys"]) == ("5", "'k1'")
        worker.signal(signal.SIGTERM)
        worker.ends(0)


@pytest.mark.slow
def test_a_port_that_is_taken_is_one_line_and_exit_code_two(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        output = Terminal(tmp_path).run(
            "run", "tiny.py:Tiny", "--set", f"metrics_port={port}", check=2
        )
    assert f"setting metrics_port = {port}: can't listen at 127.0.0.1: " in output.splitlines()[-1]
