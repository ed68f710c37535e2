"""A command is published to a real server, a worker answers, and the answer is the exit code."""

from __future__ import annotations

import base64
from pathlib import Path
from typing import Any

import anyio
import orjson
import pytest
from redis.asyncio import Redis

from tests.cli.answering import STREAMS, outcome, worker
from tests.cli.conftest import Call
from tolaria_bus.leyline import (
    AdaptationCommand,
    CommandOutcome,
    CommandStatus,
    CommandType,
    MessagePriority,
)
from tolaria_bus.oona.opening import Opener
from tolaria_bus.oona.trust import KeyRing

SECRET = base64.b64encode(b"s" * 32).decode()
OTHER = base64.b64encode(b"o" * 32).decode()
RING = KeyRing.parse(f"k1:{SECRET}")


async def sent(redis: Redis, stream: str = STREAMS.control("first")) -> list[AdaptationCommand]:
    """Commands in a control stream."""
    found = []
    entries: Any = await redis.xrange(stream)
    for entry_id, fields in entries:
        message = Opener(KeyRing(), None).open(stream, entry_id, fields).message
        assert isinstance(message, AdaptationCommand)
        found.append(message)
    return found


async def test_an_applied_command_exits_0_and_says_at_which_step(cli: Call, redis_url: str):
    async with worker(redis_url) as answering:
        ended = await cli("send", "pause", "--redis", redis_url, "--run", "first")
    assert ended.code == 0, ended.err
    assert ended.err == ""
    assert ended.out.startswith("APPLIED pause at step 7 id ")
    (taken,) = answering.taken
    assert isinstance(taken.message, AdaptationCommand)
    assert taken.message.command_type == CommandType.COMMAND_PAUSE
    assert taken.message.issued_by.startswith("operator/")
    assert taken.source == taken.message.issued_by
    assert taken.message_id == taken.message.command_id
    assert taken.priority == MessagePriority.MESSAGE_PRIORITY_HIGH


async def test_options_may_stand_before_or_after_the_command_and_the_later_wins(
    cli: Call, redis: Redis, redis_url: str
):
    before = ["send", "--redis", redis_url, "--run", "first", "--wait", "0", "--reason", "a"]
    await cli(*before, "lr", "0.5")
    await cli(*before, "lr", "0.5", "--reason", "b", "--id", "mine")
    first, second = await sent(redis)
    assert first.annotations["reason"] == "a"
    assert second.annotations["reason"] == "b"
    assert second.command_id == "mine"
    assert second.learning_rate.learning_rate == 0.5


async def test_with_wait_0_the_entry_is_named_and_nobody_waited_for(
    cli: Call, redis: Redis, redis_url: str
):
    ended = await cli("send", "stop", "--redis", redis_url, "--run", "first", "--wait", "0")
    entries: Any = await redis.xrange(STREAMS.control("first"))
    ((entry_id, _),) = entries
    assert ended.code == 0
    assert f"SENT stop entry {entry_id.decode()} of oona:{{first}}:control id " in ended.out
    as_json = await cli(
        "send", "stop", "--redis", redis_url, "--run", "first", "--wait", "0", "--json-output"
    )
    assert orjson.loads(as_json.out)["stream"] == "oona:{first}:control"


async def test_nobody_there_exits_4_and_says_so(cli: Call, redis: Redis, redis_url: str):
    ended = await cli("send", "pause", "--redis", redis_url, "--run", "first", "--wait", "0.2")
    assert ended.code == 4
    assert ended.out == ""
    assert ended.err.count("\n") == 1
    assert "no answer from first within 0.2 s (no worker holds this run now)" in ended.err
    assert len(await sent(redis)) == 1


@pytest.mark.parametrize(
    ("status", "code"),
    [("APPLIED", 0), ("REJECTED", 3), ("EXPIRED", 3), ("DEFERRED", 0), ("ROLLED_BACK", 3)],
)
async def test_the_exit_code_is_the_answer(cli: Call, redis_url: str, status: str, code: int):
    async with worker(redis_url, answers=lambda command: [outcome(command, status)]):
        ended = await cli("send", "checkpoint", "--redis", redis_url, "--run", "first")
    assert ended.code == code
    assert ended.out.startswith(f"{status} checkpoint")


@pytest.mark.parametrize(("status", "code"), [("APPLIED", 0), ("DEFERRED", 0), ("REJECTED", 3)])
async def test_a_duplicate_has_the_exit_code_of_the_first_time(
    cli: Call, redis_url: str, status: str, code: int
):
    def again(command: AdaptationCommand) -> list[CommandOutcome]:
        return [outcome(command, "DUPLICATE", first_outcome=outcome(command, status))]

    async with worker(redis_url, answers=again):
        ended = await cli("send", "pause", "--redis", redis_url, "--run", "first")
    assert ended.code == code
    assert f"DUPLICATE pause first time {status} at step 7" in ended.out


async def test_a_refusal_gives_its_reason(cli: Call, redis_url: str):
    def refuse(command: AdaptationCommand) -> list[CommandOutcome]:
        return [outcome(command, "REJECTED", code="unknown_slot", reason="slot 'x': there is body")]

    async with worker(redis_url, answers=refuse):
        ended = await cli(
            "send", "seed", "germinate", "--slot", "x", "--redis", redis_url, "--run", "first"
        )
    assert ended.code == 3
    assert "REJECTED seed unknown_slot: slot 'x': there is body" in ended.out


async def test_a_deferred_command_is_waited_for_when_asked(cli: Call, redis_url: str):
    def later(command: AdaptationCommand) -> list[CommandOutcome]:
        assert command.annotations["at_step"] == "900"
        return [outcome(command, "DEFERRED"), outcome(command)]

    words = ["send", "pause", "--at-step", "900", "--redis", redis_url, "--run", "first"]
    async with worker(redis_url, answers=later):
        at_once = await cli(*words)
        waited = await cli(*words, "--until-applied")
    assert (at_once.code, waited.code) == (0, 0)
    assert [line.split()[0] for line in at_once.lines] == ["DEFERRED"]
    assert [line.split()[0] for line in waited.lines] == ["DEFERRED", "APPLIED"]


async def test_a_deferred_command_that_is_not_applied_in_time_exits_4(cli: Call, redis_url: str):
    async with worker(redis_url, answers=lambda command: [outcome(command, "DEFERRED")]):
        ended = await cli(
            "send", "pause", "--at-step", "9", "--until-applied", "--wait", "3",
            "--redis", redis_url, "--run", "first",
        )  # fmt: skip
    assert ended.code == 4
    assert ended.out.startswith("DEFERRED")


async def test_answers_to_other_commands_are_not_taken_for_ours(cli: Call, redis_url: str):
    def confused(command: AdaptationCommand) -> list[CommandOutcome]:
        other = AdaptationCommand(command_id="other", command_type=CommandType.COMMAND_STOP)
        return [outcome(other, "REJECTED"), outcome(command)]

    async with worker(redis_url, answers=confused):
        ended = await cli("send", "pause", "--redis", redis_url, "--run", "first")
    assert ended.code == 0
    assert len(ended.lines) == 1


async def test_an_answer_that_was_there_before_is_no_answer(
    cli: Call, redis: Redis, redis_url: str
):
    async with worker(redis_url) as answering:
        old = AdaptationCommand(command_id="mine", command_type=CommandType.COMMAND_PAUSE)
        await answering.put(STREAMS.outcomes("first"), outcome(old, "REJECTED"))
        ended = await cli("send", "pause", "--id", "mine", "--redis", redis_url, "--run", "first")
    assert ended.code == 0


async def test_json_output_is_the_outcome(cli: Call, redis_url: str):
    async with worker(redis_url):
        ended = await cli("send", "pause", "--json-output", "--redis", redis_url, "--run", "first")
    answer = orjson.loads(ended.out)
    assert (answer["status"], answer["commandType"], answer["step"]) == ("APPLIED", "PAUSE", "7")


async def test_a_whole_command_as_json(cli: Call, redis_url: str):
    async with worker(redis_url) as answering:
        written = '{"commandType":"LEARNING_RATE","learningRate":{"factor":0.5},"commandId":"j1"}'
        ended = await cli("send", "--json", written, "--redis", redis_url, "--run", "first")
    assert ended.code == 0
    (taken,) = answering.taken
    assert isinstance(taken.message, AdaptationCommand)
    assert taken.message.learning_rate.factor == 0.5
    assert taken.message.command_id == "j1"


async def test_without_a_run_the_only_live_one_is_meant(cli: Call, redis: Redis, redis_url: str):
    await redis.hset(STREAMS.runs, "gone", "{}")
    async with worker(redis_url, run="here"):
        ended = await cli("send", "pause", "--redis", redis_url)
        assert ended.code == 0
        async with worker(redis_url, run="there"):
            ended = await cli("send", "pause", "--redis", redis_url)
    assert ended.code == 2
    assert "2 runs are live" in ended.err
    assert "here, there" in ended.err


async def test_the_fleet_answers_one_by_one(cli: Call, redis_url: str):
    def refuse(command: AdaptationCommand) -> list[CommandOutcome]:
        return [outcome(command, "REJECTED")]

    async with worker(redis_url, run="here"), worker(redis_url, run="there", answers=refuse):
        ended = await cli("send", "pause", "--fleet", "--redis", redis_url)
    assert ended.code == 3
    assert sorted(line.split()[:2] for line in ended.lines) == [
        ["here:", "APPLIED"],
        ["there:", "REJECTED"],
    ]


async def test_a_fleet_of_nobody_exits_4(cli: Call, redis: Redis, redis_url: str):
    ended = await cli("send", "pause", "--fleet", "--redis", redis_url)
    assert ended.code == 4
    assert len(await sent(redis, STREAMS.fleet_control)) == 1


async def test_with_a_key_commands_are_signed_and_answers_verified(
    cli: Call, redis_url: str, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("TOLARIA_SIGNING_KEYS", f"k1:{SECRET}")
    async with worker(redis_url, ring=RING) as answering:
        ended = await cli("send", "pause", "--redis", redis_url, "--run", "first")
    assert ended.code == 0
    assert answering.taken[0].envelope.key_id == "k1"


@pytest.mark.parametrize("keys", [None, f"k1:{OTHER}"])
async def test_a_dead_lettered_command_exits_3_with_the_reason(
    cli: Call, redis_url: str, monkeypatch: pytest.MonkeyPatch, keys: str | None
):
    if keys:
        # The worker's letter is signed with a key that we don't have, so it isn't believed.
        monkeypatch.setenv("TOLARIA_SIGNING_KEYS", f"{keys},k2:{SECRET}")
    ring = KeyRing.parse(f"k2:{SECRET}")
    async with worker(redis_url, ring=ring):
        ended = await cli("send", "pause", "--redis", redis_url, "--run", "first")
    assert ended.code == 3
    assert ended.out.startswith("DEAD LETTER signature: ")


async def test_a_forged_answer_is_not_believed(
    cli: Call, redis_url: str, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("TOLARIA_SIGNING_KEYS", f"k1:{SECRET}")
    async with worker(redis_url, ring=RING, answers=lambda _: []) as answering:

        async def forge() -> None:
            await answering.took.wait()
            command = answering.taken[0].message
            assert isinstance(command, AdaptationCommand)
            forged = outcome(command, "REJECTED")
            await answering.put(STREAMS.outcomes("first"), forged, ring=KeyRing())
            # It is waited for the one that is to be believed.
            await answering.put(STREAMS.outcomes("first"), outcome(command))

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(forge)
            ended = await cli("send", "pause", "--redis", redis_url, "--run", "first")
    assert ended.code == 0
    assert [line.split()[0] for line in ended.lines] == ["APPLIED"]
    assert "an answer is not believed: signature: " in ended.err


async def test_nothing_is_sent_when_the_server_is_not_there(cli: Call, tmp_path: Path):
    ended = await cli("send", "pause", "--run", "x", "--redis", f"unix://{tmp_path}/none.sock")
    assert ended.code == 2
    assert ended.err.count("\n") == 1
    assert f"server unix://{tmp_path}/none.sock" in ended.err


async def test_the_password_is_not_shown(cli: Call):
    ended = await cli("send", "pause", "--run", "x", "--redis", "redis://u:secret@127.0.0.1:1")
    assert ended.code == 2
    assert "secret" not in ended.err


async def test_a_refusing_server_is_one_line(cli: Call, redis: Redis, redis_url: str):
    await redis.set(STREAMS.control("first"), "not a stream")
    ended = await cli("send", "pause", "--redis", redis_url, "--run", "first")
    assert ended.code == 2
    assert ended.err.count("\n") == 1
    assert "WRONGTYPE" in ended.err


def test_every_status_has_an_exit_code():
    from tolaria_bus.cli.verdict import exit_code

    for status in CommandStatus.values():
        assert exit_code(CommandOutcome(status=status)) in (0, 3)
