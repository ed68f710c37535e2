"""What docker-compose.yml, the Dockerfile and .env.example promise on paper."""

from __future__ import annotations

import re

import pytest

from tests.compose.compose_file import (
    ROOT,
    NotSet,
    Service,
    image,
    image_environment,
    image_files,
    load,
)
from tolaria_bus.oona.trust import KeyRing
from tolaria_bus.settings import Settings

PASSWORD = {"TOLARIA_REDIS_PASSWORD": "s3cret"}
KEY = "key1:" + "A" * 43 + "="


@pytest.fixture
def services() -> dict[str, Service]:
    return load(PASSWORD)


def example() -> dict[str, str]:
    text = (ROOT / ".env.example").read_text()
    lines = (line.lstrip("#") for line in text.splitlines())
    return dict(re.findall(r"^(TOLARIA_\w+)=(.*)$", "\n".join(lines), re.MULTILINE))


@pytest.mark.parametrize("variables", [{}, {"TOLARIA_REDIS_PASSWORD": ""}])
def test_nothing_starts_without_a_password(variables: dict[str, str]) -> None:
    with pytest.raises(NotSet, match=r"TOLARIA_REDIS_PASSWORD: not set, see \.env\.example"):
        load(variables)


def test_the_example_has_no_password_to_forget() -> None:
    assert example()["TOLARIA_REDIS_PASSWORD"] == ""


def test_the_server_is_published_on_loopback_only(services: dict[str, Service]) -> None:
    published = {name: item.definition.get("ports", []) for name, item in services.items()}
    assert published == {"redis": ["127.0.0.1:6379:6379"], "worker": [], "tamiyo": [], "alerts": []}


def test_images_are_pinned(services: dict[str, Service]) -> None:
    assert re.fullmatch(r"valkey/valkey:\d+\.\d+\.\d+", services["redis"].definition["image"])
    assert re.match(r"python:3\.\d+-slim$", image()["FROM"][0])


def test_the_password_is_in_no_command(services: dict[str, Service]) -> None:
    for item in services.values():
        words = [*item.command, *item.health]
        assert not any(PASSWORD["TOLARIA_REDIS_PASSWORD"] in word for word in words), item.name


def test_signing_is_off_as_shipped_and_one_line_turns_it_on(services: dict[str, Service]) -> None:
    for name in ("worker", "tamiyo", "alerts"):
        assert services[name].environment["TOLARIA_ALLOW_UNSIGNED"] == "1"
        # Not even empty: an empty key ring is a wrong setting.
        assert "TOLARIA_SIGNING_KEYS" not in services[name].environment
        signed = load({**PASSWORD, "TOLARIA_SIGNING_KEYS": KEY})[name].environment
        assert KeyRing.parse(signed["TOLARIA_SIGNING_KEYS"]).enabled


def test_the_worker_is_given_longer_than_it_drains(services: dict[str, Service]) -> None:
    worker = services["worker"]
    grace = re.fullmatch(r"(\d+)s", worker.definition["stop_grace_period"])
    assert grace is not None
    assert float(grace[1]) > 2 * float(worker.environment["TOLARIA_DRAIN_SECONDS"])


def test_every_variable_is_a_setting_or_used(services: dict[str, Service]) -> None:
    known = {f"TOLARIA_{name.upper()}" for name in Settings.model_fields}
    given = {name for item in services.values() for name in item.environment}
    given |= {name for name in image_environment() if name.startswith("TOLARIA_")}
    in_file = {"TOLARIA_REDIS_PASSWORD", "TOLARIA_REDIS_PORT"}
    assert given - in_file <= known
    assert example().keys() - in_file <= known


def test_runs_are_on_a_volume_that_outlives_the_container(services: dict[str, Service]) -> None:
    runs = image_environment()["TOLARIA_RUNS_DIR"]
    assert services["worker"].mounts == {runs: "runs"}
    assert services["redis"].mounts["/data"] == "redis-data"


def test_what_has_ended_well_is_not_started_again(services: dict[str, Service]) -> None:
    # `send stop` ends a worker with 0: restarted, it would train on.
    assert services["worker"].definition["restart"] == "on-failure"


def test_the_image_runs_as_nobody_in_particular_and_gets_signals() -> None:
    final = image()
    assert final["USER"] == ["10001:10001"]
    assert final["ENTRYPOINT"] == ['["tini", "--"]']
    assert final["CMD"][-1].startswith("[")
    assert final["HEALTHCHECK"]


def test_what_the_image_copies_is_there_and_not_ignored() -> None:
    allowed = {
        line[1:].rstrip("/")
        for line in (ROOT / ".dockerignore").read_text().splitlines()
        if line.startswith("!")
    }
    sources = {str(path.relative_to(ROOT)) for path in image_files().values()}
    build = re.findall(
        r"^COPY (?!--from)(.+) \S+$", (ROOT / "infra/Dockerfile").read_text(), re.MULTILINE
    )
    sources |= {word for line in build for word in line.split()}
    for source in sources:
        assert (ROOT / source).exists(), source
        assert source in allowed or source.split("/", 1)[0] in allowed, f".dockerignore: {source}"


def test_files_that_are_mounted_are_there(services: dict[str, Service]) -> None:
    for item in services.values():
        for target, source in item.mounts.items():
            if not isinstance(source, str):
                assert source.is_file(), f"{item.name}: {source} at {target}"
