"""Tamiyo dead, hung, slow, flooding, lying, before a worker that trains on, seen from outside."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from google.protobuf.message import Message
from redis import Redis

from tests.worker.processes import Process, Terminal, summary
from tolaria_bus.leyline import (
    AdaptationCommand,
    CommandOutcome,
    CommandStatus,
    CommandType,
    SystemStatePacket,
    TelemetryPacket,
)
from tolaria_bus.leyline.codec import short_name
from tolaria_bus.oona.embedded import EmbeddedServer
from tolaria_bus.oona.opening import Opener
from tolaria_bus.oona.running import Note
from tolaria_bus.oona.sealing import seal
from tolaria_bus.oona.streams import Streams
from tolaria_bus.oona.trust import KeyRing

pytestmark = pytest.mark.slow

KEYS = "k1:c2VjcmV0LXNlY3JldC1zZWNyZXQtc2VjcmV0"
RING = KeyRing.parse(KEYS)
STREAMS = Streams()
PATIENCE = 180.0  # seconds
ENDLESS = "1000000"


@dataclass
class Run:
    """A worker at work, and what it says from a moment on."""

    terminal: Terminal
    redis: Redis
    mode: str
    marks: dict[str, str] = field(default_factory=dict)

    def messages(self, stream: str) -> list[Message]:
        """What was added since the mark."""
        opener = Opener(RING, None)
        found: Any = self.redis.xrange(stream, f"({self.marks.get(stream, '0-0')}")
        return [opener.open(stream, key, fields).message for key, fields in found]

    def mark(self) -> None:
        """From now on."""
        for stream in (STREAMS.state("r"), STREAMS.outcomes("r"), STREAMS.telemetry("r")):
            newest: Any = self.redis.xrevrange(stream, count=1)
            self.marks[stream] = newest[0][0].decode() if newest else "0-0"

    def packets(self) -> list[SystemStatePacket]:
        found = self.messages(STREAMS.state("r"))
        return [message for message in found if isinstance(message, SystemStatePacket)]

    def outcomes(self) -> list[CommandOutcome]:
        found = self.messages(STREAMS.outcomes("r"))
        return [message for message in found if isinstance(message, CommandOutcome)]

    def answered(self) -> bool:
        """Has an answer of Tamiyo's been applied?"""
        applied = CommandStatus.COMMAND_STATUS_APPLIED
        return any(
            outcome.status == applied and outcome.issued_by.startswith("tamiyo/")
            for outcome in self.outcomes()
        )

    def codes(self) -> dict[str, str]:
        """Code of the outcome by command id."""
        return {outcome.command_id: outcome.code for outcome in self.outcomes()}

    def told(self, name: str) -> bool:
        """Is there an event of this name?"""
        return any(
            event.event_id == name
            for message in self.messages(STREAMS.telemetry("r"))
            if isinstance(message, TelemetryPacket)
            for event in message.events
        )

    def wait(self, look: Callable[[], object]) -> None:
        end = time.monotonic() + PATIENCE
        while not look():
            assert time.monotonic() < end, look
            time.sleep(0.05)

    def epochs(self, count: int) -> None:
        """Wait until so many have ended."""
        self.wait(lambda: len(self.packets()) >= count)

    def goes_on(self) -> None:
        """Three epochs end from now on."""
        self.mark()
        self.epochs(3)

    def say(self, *commands: AdaptationCommand, ring: KeyRing = RING) -> None:
        """Be a Tamiyo, or somebody who says to be one."""
        stream = STREAMS.control("r")
        pipe = self.redis.pipeline(transaction=False)
        for command in commands:
            fields: Any = seal(command, stream=stream, source=command.issued_by, ring=ring)
            pipe.xadd(stream, fields)
        pipe.execute()

    def tamiyo(self, *words: str) -> Any:
        return self.terminal.start("tamiyo", "--run", "r", *words)


def answer(packet: str, name: str, *, by: str = "tamiyo/test") -> AdaptationCommand:
    command = AdaptationCommand(
        version=1, command_id=name, command_type=CommandType.COMMAND_STOP, issued_by=by
    )
    command.issued_at.GetCurrentTime()
    command.annotations["in_reply_to"] = packet
    return command


@pytest.fixture(scope="module", params=["overlapped", "blocking"])
def run(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Run]:
    """One worker for all of them: whatever its Tamiyos do, it goes on."""
    terminal = Terminal(tmp_path_factory.mktemp("tamiyo"), {"TOLARIA_SIGNING_KEYS": KEYS})
    words = ["run", "tiny.py:Tiny", "--run", "r", "--epochs", ENDLESS]
    for setting in (
        f"tamiyo={request.param}",
        "tamiyo_seconds=0.2",
        "boundary_ms=600000",
        f"checkpoint_every_epochs={ENDLESS}",
    ):
        words += ["--set", setting]
    with terminal.start(*words) as worker:
        worker.says("embedded server")
        note = Note.read(terminal.folder / "runs" / "r" / "server.json")
        assert note is not None
        with Redis.from_url(note.url) as redis:
            yield Run(terminal, redis, request.param)
            worker.signal(signal.SIGTERM)
            worker.ends(0)


def at_work(run: Run, tamiyo: Process) -> None:
    """Wait until it answers."""
    run.mark()
    tamiyo.says("watching")
    run.wait(run.answered)


def silent(run: Run) -> None:
    """Wait until the run has noticed that nobody answers, and has gone on."""
    run.mark()
    run.wait(lambda: run.told("tamiyo_silent"))
    run.goes_on()


def test_dead(run: Run) -> None:
    with run.tamiyo() as tamiyo:
        at_work(run, tamiyo)
        run.mark()
        os.killpg(tamiyo.popen.pid, signal.SIGKILL)
        run.wait(lambda: run.told("tamiyo_silent"))
    run.goes_on()
    # The next one takes over.
    with run.tamiyo() as tamiyo:
        at_work(run, tamiyo)


def test_hung(run: Run) -> None:
    with run.tamiyo() as tamiyo:
        at_work(run, tamiyo)
        run.mark()
        tamiyo.signal(signal.SIGSTOP)
        run.wait(lambda: run.told("tamiyo_silent"))
        run.goes_on()
        tamiyo.signal(signal.SIGCONT)
        run.mark()
        run.wait(run.answered)


def test_slow(run: Run) -> None:
    # As slow as can be: it answers a packet when the next one is there.
    run.mark()
    run.wait(lambda: len(run.packets()) >= 2)
    late = [answer(packet.packet_id, f"slow-{packet.global_step}") for packet in run.packets()[:-1]]
    run.say(*late)
    run.wait(lambda: len(run.codes()) >= len(late))
    codes = run.codes()
    assert {codes[command.command_id] for command in late} == {"late_answer"}
    run.goes_on()


def test_flooding(run: Run) -> None:
    run.mark()
    flood = [answer("r.t1.s0", f"flood-{run.mode}-{number}") for number in range(3000)]
    run.say(*flood)
    run.say(AdaptationCommand(
        version=1, command_id=f"op-{run.mode}", command_type=CommandType.COMMAND_CONTINUE,
        issued_by="operator/ann",
    ))  # fmt: skip
    run.wait(lambda: len(run.codes()) > len(flood))
    codes = run.codes()
    assert codes[f"op-{run.mode}"] == "ok"
    assert {codes[command.command_id] for command in flood} == {"late_answer"}
    run.wait(lambda: run.redis.xlen(STREAMS.control("r")) == 0)
    run.goes_on()


def test_lying(run: Run) -> None:
    run.mark()
    before: Any = run.redis.xlen(STREAMS.dead("r"))
    run.wait(run.packets)
    newest = run.packets()[-1].packet_id
    lies = {
        "wrong_issuer": answer(newest, "l1", by="operator/eve"),
        "other_run": answer("x.t1.s50", "l2"),
        "unknown_packet": answer("r.t1.s999999999", "l3"),
    }
    run.say(*lies.values())
    # Not of our key: nobody's word at all.
    run.say(answer(newest, "l4"), ring=KeyRing.parse("k1:Zm9yZ2VkLWZvcmdlZC1mb3JnZWQtZm9yZ2Vk"))
    run.wait(lambda: len(run.codes().keys() & {"l1", "l2", "l3"}) == 3)
    codes = run.codes()
    assert {codes[lie.command_id]: lie.command_id for lie in lies.values()} == {
        code: lie.command_id for code, lie in lies.items()
    }
    run.wait(lambda: run.redis.xlen(STREAMS.dead("r")) == before + 1)
    assert "l4" not in run.codes()
    run.goes_on()


def test_a_worker_that_is_killed_under_tamiyo_comes_to_the_bits_of_its_own_journal(
    tmp_path: Path,
) -> None:
    terminal = Terminal(tmp_path, {"TOLARIA_SIGNING_KEYS": KEYS})
    elsewhere = EmbeddedServer.start(tmp_path / "server", "elsewhere")
    with elsewhere as started, Redis.from_url(started.url) as redis:
        words = ["run", "tiny.py:Tiny", "--run", "r", "--epochs", "12", "--summary", "s.json"]
        words += ["--redis", started.url, "--set", "boundary_ms=600000", "--set"]
        run = Run(terminal, redis, "")
        # One that intervenes as often as it may.
        eager = ("--option", "patience=1", "--option", "gain=0.5", "--option", "lr_rest=1")
        with terminal.start("tamiyo", "--redis", started.url, *eager):
            for epochs, mode in ((4, "blocking"), (8, "overlapped")):
                with terminal.start(*words, f"tamiyo={mode}") as worker:
                    run.epochs(epochs)
                    os.killpg(worker.popen.pid, signal.SIGKILL)
            with terminal.start(*words, "tamiyo=blocking") as worker:
                worker.ends(0)
        applied = [
            short_name(CommandType, outcome.command_type)
            for outcome in run.outcomes()
            if outcome.status == CommandStatus.COMMAND_STATUS_APPLIED
        ]
        assert set(applied) - {"CONTINUE"}
    found = summary(tmp_path / "s.json")
    assert found["stopped_by"] == "finished"
    terminal.run("run", "tiny.py:Tiny", "--replay", "r", "--summary", "again.json")
    again = summary(tmp_path / "again.json")
    assert again["same_bits"] is True
    assert again["weights_sha256"] == found["weights_sha256"]
