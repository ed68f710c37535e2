"""The services of docker-compose.yml, each started by its own command and driven together."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from redis import Redis
from redis.backoff import NoBackoff
from redis.exceptions import AuthenticationError, NoPermissionError
from redis.retry import Retry

from tests.compose.local_engine import PATIENCE, LocalEngine

PASSWORD = "an0ther-secret"
ONCE = Retry(NoBackoff(), 0)
KEY = "ops:" + "QUJDREVGR0hJSktMTU5PUFFSU1RVVldYWVoxMjM0NTY="


def healthy(engine: LocalEngine, name: str, seconds: float = PATIENCE) -> None:
    """Until the service's own health check says so, as the engine waits for it."""
    deadline = time.monotonic() + seconds
    while (checked := engine.check_health(name)).returncode != 0:
        if name in engine.running and engine.running[name].process.poll() is not None:
            pytest.fail(f"{name} has ended:\n{engine.running[name].output.all()}")
        said = engine.running[name].output.all() if name in engine.running else ""
        assert time.monotonic() < deadline, f"{checked.stdout}{checked.stderr}\n{said}"
        # What is waited for needs the processor too. The server is there at once, nearly.
        time.sleep(0.05 if name == "redis" else 1.0)


@pytest.fixture
def make_engine(tmp_path: Path) -> Iterator[Callable[..., LocalEngine]]:
    engines: list[LocalEngine] = []

    def make(**variables: str) -> LocalEngine:
        engines.append(LocalEngine(tmp_path, {"TOLARIA_REDIS_PASSWORD": PASSWORD, **variables}))
        return engines[-1]

    yield make
    for engine in engines:
        engine.stop_all()


@pytest.fixture
def server(make_engine: Callable[..., LocalEngine]) -> LocalEngine:
    engine = make_engine()
    engine.start("redis")
    healthy(engine, "redis")
    return engine


def client_of(engine: LocalEngine) -> Redis:
    return Redis(port=engine.port, username="tolaria", password=PASSWORD, retry=ONCE)


def up(engine: LocalEngine) -> LocalEngine:
    """``docker compose up``, in the order of ``depends_on``."""
    engine.start("redis")
    healthy(engine, "redis")
    engine.start("alerts")
    engine.start("worker")
    engine.start("tamiyo")
    healthy(engine, "alerts")
    healthy(engine, "worker")
    return engine


def in_worker(engine: LocalEngine, line: str) -> tuple[int, str]:
    """``docker compose exec worker LINE``: exit code and what it printed."""
    done = engine.run("worker", *line.split())
    return done.returncode, done.stdout + done.stderr


@pytest.mark.slow
def test_the_stack_is_steered_alerts_and_stops_in_good_order(
    make_engine: Callable[..., LocalEngine],
) -> None:
    engine = up(make_engine())

    for word in ("pause", "resume"):
        code, said = in_worker(engine, f"tolaria-bus send {word} --run digits --wait 120")
        assert code == 0, said
        assert "applied" in said.lower()

    alerts = engine.running["alerts"].output
    code, said = in_worker(
        engine, "tolaria-bus send emergency notice --run digits --reason compose-drill --wait 120"
    )
    assert code == 0, said
    assert alerts.wait_for("compose-drill", PATIENCE), alerts.all()

    tamiyo = engine.running["tamiyo"]
    assert tamiyo.output.wait_for("answered", PATIENCE), tamiyo.output.all()
    for name in ("redis", "worker", "tamiyo", "alerts"):
        healthy(engine, name)

    worker = engine.running["worker"]
    code = worker.stop(45)
    assert code == 0, worker.output.all()
    # Its last words are on the volume: the next container goes on from there.
    assert list((engine.folder / "runs" / "digits" / "checkpoints").iterdir())
    for line in worker.output.all().splitlines():
        json.loads(line)
    assert tamiyo.stop(PATIENCE) == 0
    assert engine.running["alerts"].stop(PATIENCE) == 0
    assert engine.running["redis"].stop(30) == 0


@pytest.mark.slow
def test_a_command_by_hand_works_with_the_password_and_no_tool_of_ours(
    make_engine: Callable[..., LocalEngine],
) -> None:
    engine = up(make_engine())
    url = engine.environment("worker")["TOLARIA_REDIS_URL"]
    with Redis.from_url(url, socket_timeout=PATIENCE) as client:
        client.xadd("oona:{digits}:control", {"json": '{"commandType":"PAUSE"}'})
        reply = client.xread({"oona:{digits}:outcomes": "0"}, block=int(PATIENCE * 1000) - 10_000)
    assert reply
    code, said = in_worker(engine, "tolaria-bus send stop --run digits --wait 120")
    assert code == 0, said
    assert engine.running["worker"].process.wait(PATIENCE) == 0


@pytest.mark.slow
def test_one_line_in_env_turns_signing_on(make_engine: Callable[..., LocalEngine]) -> None:
    engine = up(make_engine(TOLARIA_SIGNING_KEYS=KEY))

    code, said = in_worker(engine, "tolaria-bus send pause --run digits --wait 120")
    assert code == 0, said

    # Somebody who has the password, but no key.
    key = engine.services["worker"].environment.pop("TOLARIA_SIGNING_KEYS")
    code, said = in_worker(engine, "tolaria-bus send resume --run digits --wait 120")
    assert code == 3, said
    assert "signature" in said

    engine.services["worker"].environment["TOLARIA_SIGNING_KEYS"] = key
    code, said = in_worker(engine, "tolaria-bus tail --dead --run digits --since 0 --count 1")
    assert code == 0, said
    assert "not signed" in said
    assert "unverified" not in said.lower()


def test_the_server_lets_nobody_in_without_the_password(server: LocalEngine) -> None:
    for user, password in ((None, None), ("tolaria", "wrong")):
        with (
            Redis(port=server.port, retry=ONCE, username=user, password=password) as nobody,
            pytest.raises(AuthenticationError),
        ):
            nobody.ping()
    with client_of(server) as known:
        for forbidden in (("FLUSHALL",), ("CONFIG", "SET", "appendonly", "no"), ("SHUTDOWN",)):
            with pytest.raises(NoPermissionError):
                known.execute_command(*forbidden)
        with pytest.raises(NoPermissionError):
            known.set("not-ours", "1")


def test_the_server_writes_to_disk_before_it_answers(server: LocalEngine) -> None:
    with client_of(server) as user:
        found = user.config_get("append*", "maxmemory-policy")
        user.xadd("oona:emergency", {"json": "{}"})
    assert found["appendonly"] == "yes"
    assert found["appendfsync"] == "always"
    assert found["maxmemory-policy"] == "noeviction"
    # Killed, not asked: what was answered is there again.
    process = server.running["redis"].process
    process.kill()
    process.wait()
    server.running["redis"].output.close()
    server.start("redis")
    healthy(server, "redis")
    with client_of(server) as user:
        assert user.xlen("oona:emergency") == 1


def test_health_of_the_server_fails_where_it_should(server: LocalEngine) -> None:
    assert server.check_health("redis").returncode == 0

    server.services["redis"].environment["TOLARIA_REDIS_PASSWORD"] = "wrong"
    refused = server.check_health("redis")
    assert refused.returncode != 0
    assert "WRONGPASS" in refused.stdout
    server.services["redis"].environment["TOLARIA_REDIS_PASSWORD"] = PASSWORD

    assert server.running["redis"].stop(30) == 0
    for name in ("redis", "alerts", "worker"):
        assert server.check_health(name).returncode != 0, name


def test_health_of_a_worker_is_the_age_of_its_status(server: LocalEngine) -> None:
    assert server.check_health("alerts").returncode == 0
    nobody_yet = server.check_health("worker")
    assert nobody_yet.returncode == 1
    assert "no status yet" in nobody_yet.stdout

    with client_of(server) as user:
        status = {"beat": time.time(), "step": 7, "mode": "paused"}
        user.set("oona:{digits}:status", json.dumps(status))
        assert server.check_health("worker").returncode == 0
        status["beat"] = time.time() - 60
        user.set("oona:{digits}:status", json.dumps(status))
        hung = server.check_health("worker")
        # Its thread lives and writes, but a read loop stands still.
        status.update(beat=time.time(), read_age=44.0)
        user.set("oona:{digits}:status", json.dumps(status))
        deaf = server.check_health("worker")
    assert hung.returncode == 1
    assert re.search(r"step 7, paused, status [6-9]\d", hung.stdout)
    assert deaf.returncode == 1
    assert "no stream was read for 44 s" in deaf.stdout
