"""Dead letters of a real server are listed, shown, replayed and purged by the real command."""

from __future__ import annotations

import base64
import os
import pty
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import anyio
import orjson
import pytest
from redis.asyncio import Redis

from tests.cli.conftest import Call, Ended
from tests.cli.processes import SECONDS, started
from tests.oona.bus import CONTROL, STREAMS, UNSIGNED, command, entries, messages, metric
from tests.oona.dead import DEAD, an_hour_ago, dead_entry, everything, sealed
from tolaria_bus.leyline import AdaptationCommand
from tolaria_bus.oona.trust import KeyRing

SECRET = base64.b64encode(b"s" * 32).decode()
RING = KeyRing.parse(f"k1:{SECRET}")
FLEET = STREAMS.fleet_control
PAUSE = '{"commandType": "PAUSE", "commandId": "mine"}'


@pytest.fixture
def dlq(cli: Call, redis_url: str) -> Call:
    """Call ``tolaria-bus dlq WORD ...`` on the test's server."""

    async def call(word: str, *words: str) -> Ended:
        return await cli("dlq", word, *words, "--redis", redis_url, "--run", "r")

    return call


async def ids(redis: Redis, dead: str = DEAD) -> list[str]:
    return [entry_id for entry_id, _ in await entries(redis, dead)]


async def test_nothing_dead_is_said(dlq: Call):
    ended = await dlq("ls")
    assert (ended.code, ended.out) == (0, "no dead letters in oona:{r}:dead\n")


async def test_ls_shows_the_newest_last_with_counts_by_reason(dlq: Call, redis: Redis):
    entry_id = await dead_entry(redis, sealed(command("mine"), UNSIGNED), "fatal")
    await dead_entry(redis, {"payload": b"\xff"}, "malformed")
    await dead_entry(redis, sealed(metric(), UNSIGNED), "type")
    await dead_entry(redis, {"payload": b"\xfe"}, "malformed")
    ended = await dlq("ls")
    assert (ended.code, ended.err) == (0, "")
    *lines, total = ended.lines
    assert [line.split()[0] for line in lines] == await ids(redis)
    assert "fatal oona:{r}:control pause id mine — it is" in lines[0]
    assert total == "4 dead letters: malformed 2, fatal 1, type 1"
    short = await dlq("ls", "--count", "1", "--where", "reason=malformed")
    assert short.lines[0].startswith((await ids(redis))[3])
    assert short.lines[1] == "2 dead letters: malformed 2 (the newest 1 are shown)"
    as_json = [orjson.loads(line) for line in (await dlq("ls", "--json")).lines]
    assert as_json[0]["entryId"] == entry_id
    assert as_json[0]["message"]["commandType"] == "PAUSE"
    assert as_json[0]["source"] == "operator/bob"
    assert as_json[1]["message"] is None


async def test_since_an_id_or_an_age(dlq: Call, redis: Redis):
    for name in "abc":
        await dead_entry(redis, sealed(command(name), UNSIGNED), "fatal")
    first, _, last = await ids(redis)
    assert len((await dlq("ls", "--json", "--since", first)).lines) == 2
    assert (await dlq("ls", "--json", "--since", last)).lines == []
    assert len((await dlq("ls", "--json", "--since", "5m")).lines) == 3


async def test_shared_letters_and_those_of_every_run(cli: Call, redis: Redis, redis_url: str):
    await redis.hset(STREAMS.runs, mapping={"r": "{}", "other": "{}"})
    await dead_entry(redis, {"payload": b"\xff"}, "malformed")
    await dead_entry(redis, {"payload": b"\xff"}, "malformed", stream="oona:{other}:control")
    await dead_entry(redis, {"payload": b"\xff"}, "malformed", stream=FLEET)
    shared = await cli("dlq", "ls", "--shared", "--json", "--redis", redis_url)
    assert [orjson.loads(line)["stream"] for line in shared.lines] == [FLEET]
    everyone = await cli("dlq", "ls", "--all", "--json", "--redis", redis_url)
    # By time, and letters of the same millisecond by their boxes: which that is nobody knows.
    assert {orjson.loads(line)["stream"] for line in everyone.lines} == {
        CONTROL,
        "oona:{other}:control",
        FLEET,
    }
    assert len(everyone.lines) == 3
    unclear = await cli("dlq", "ls", "--redis", redis_url)
    assert (unclear.code, unclear.err.count("\n")) == (2, 1)


async def test_show_tells_everything(dlq: Call, redis: Redis):
    entry_id = await dead_entry(redis, {"payload": b"\xff\x00\x1b[2J", "note": "hello"})
    (letter,) = await ids(redis)
    ended = await dlq("show", letter)
    assert ended.code == 0
    assert f"entry       {entry_id} of oona:{{r}}:control" in ended.out
    assert "field payload, 6 bytes" in ended.out
    assert "0000  ff 00 1b 5b 32 4a" in ended.out
    assert "  hello" in ended.lines
    assert "\x1b" not in ended.out
    whole = orjson.loads((await dlq("show", letter, "--json")).out)
    assert whole["fields"] == [
        {"name": "payload", "hex": "ff001b5b324a"},
        {"name": "note", "text": "hello"},
    ]
    assert whole["reason"] == "malformed"


async def test_show_gives_the_message_to_be_mended(dlq: Call, redis: Redis):
    await dead_entry(redis, sealed(command("mine"), UNSIGNED), "fatal")
    (letter,) = await ids(redis)
    assert '  "commandType": "PAUSE"' in (await dlq("show", letter)).out
    message = orjson.loads((await dlq("show", letter, "--json")).out)["message"]
    text = orjson.dumps({**message, "commandType": "STOP"}).decode()
    assert (await dlq("replay", letter, "--json", text)).code == 0
    (sent,) = await messages(redis, CONTROL, AdaptationCommand)
    assert sent.command_id == "mine"


@pytest.mark.parametrize("way", ["text", "file", "stdin"])
async def test_a_message_is_mended_from_text_a_file_or_stdin(
    way: str, dlq: Call, redis: Redis, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    await dead_entry(redis, {"json": "{"})
    (letter,) = await ids(redis)
    (tmp_path / "m.json").write_text(PAUSE)
    word = {"text": PAUSE, "file": "m.json", "stdin": "-"}[way]
    with (tmp_path / "m.json").open() as stdin:
        monkeypatch.setattr(sys, "stdin", stdin)
        ended = await dlq("replay", letter, "--json", word)
    assert (ended.code, ended.err) == (0, "")
    (sent,) = await messages(redis, CONTROL, AdaptationCommand)
    assert sent.command_id == "mine"


async def test_replay_tells_what_became_of_each(dlq: Call, redis: Redis):
    await dead_entry(redis, sealed(command("mine"), UNSIGNED), "fatal")
    await dead_entry(redis, {"payload": bytes(1 << 20)}, "oversize")
    before = await everything(redis)
    dry = await dlq("replay", "--all", "--dry-run")
    assert await everything(redis) == before
    assert [line.split()[0] for line in dry.lines[:2]] == ["WOULD", "REFUSED"]
    ended = await dlq("replay", "--all", "--json-output")
    assert ended.code == 1
    good, bad = (orjson.loads(line) for line in ended.lines)
    ((entry_id, _),) = await entries(redis, CONTROL)
    assert (good["fate"], good["entryId"], good["commandId"]) == ("REPLAYED", entry_id, "mine")
    assert (bad["fate"], bad["code"]) == ("REFUSED", "truncated")
    again = await dlq("replay", "--where", "reason=fatal")
    assert (again.code, again.out) == (0, "no such letters\n")


async def test_a_limit_bounds_what_is_done_and_says_how_to_go_on(dlq: Call, redis: Redis):
    for number in range(5):
        await dead_entry(redis, sealed(command(str(number)), UNSIGNED), "fatal")
    letters = await ids(redis)
    ended = await dlq("replay", "--all", "--limit", "2")
    assert ended.lines[-1] == f"replayed 2 there are more: --limit N, or --since {letters[1]}"
    assert await ids(redis) == letters[2:]
    ended = await dlq("replay", "--all", "--since", letters[1], "--limit", "2")
    assert await ids(redis) == letters[4:]


async def test_a_forged_entry_is_not_laundered(
    dlq: Call, redis: Redis, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("TOLARIA_SIGNING_KEYS", f"k1:{SECRET}")
    await dead_entry(redis, sealed(command("forged"), UNSIGNED), "signature", ring=RING)
    await dead_entry(redis, sealed(command("late"), RING, clock=an_hour_ago), "stale", ring=RING)
    ended = await dlq("replay", "--all")
    assert ended.code == 1
    assert "unbelieved: the entry isn't signed → look at it (dlq show)" in ended.lines[0]
    (sent,) = await messages(redis, CONTROL, AdaptationCommand)
    assert sent.command_id == "late"
    (letter,) = await ids(redis)
    assert "distrust    the entry isn't signed" in (await dlq("show", letter)).out
    assert (await dlq("replay", letter, "--resign")).code == 0
    assert await ids(redis) == []


@pytest.mark.parametrize(
    "words",
    [("dlq", "ls"), ("tail", "--no-follow"), ("send", "pause")],
    ids=["dlq", "tail", "send"],
)
async def test_old_envelopes_without_their_secret_are_refused_in_one_line(
    words: tuple[str, ...],
    cli: Call,
    redis_url: str,
    monkeypatch: pytest.MonkeyPatch,
):
    monkeypatch.setenv("TOLARIA_COMPAT_ENVELOPES", "1")
    monkeypatch.delenv("ESPER_LEYLINE_SECRET", raising=False)
    ended = await cli(*words, "--redis", redis_url, "--run", "r")
    assert (ended.code, ended.err.count("\n")) == (2, 1)
    assert "compat_envelopes" in ended.err
    assert "ESPER_LEYLINE_SECRET" in ended.err


async def test_resigning_needs_a_key(dlq: Call, redis: Redis):
    await dead_entry(redis, sealed(command("forged"), UNSIGNED), "signature")
    ended = await dlq("replay", "--all", "--resign")
    assert (ended.code, ended.err.count("\n")) == (2, 1)
    assert "TOLARIA_SIGNING_KEYS" in ended.err


async def test_purge_wants_a_yes(dlq: Call, redis: Redis):
    await dead_entry(redis, {"payload": b"\xff"})
    ended = await dlq("purge", "--all")
    assert (ended.code, ended.err.count("\n")) == (2, 1)
    assert "--yes" in ended.err
    assert (await dlq("purge", "--all", "--dry-run")).lines[-1] == "would be purged 1"
    assert len(await ids(redis)) == 1
    assert (await dlq("purge", "--all", "--yes")).lines[-1] == "purged 1"
    assert await ids(redis) == []


@pytest.mark.parametrize(("answer", "left"), [("n", 1), ("y", 0)])
async def test_purge_asks_on_a_terminal(
    answer: str, left: int, clean_place: Path, redis: Redis, redis_url: str
):
    await dead_entry(redis, {"payload": b"\xff"})
    words = ["dlq", "purge", "--all", "--redis", redis_url, "--run", "r"]

    def talk() -> tuple[int, str]:
        main, side = pty.openpty()
        with subprocess.Popen(
            [sys.executable, "-m", "tolaria_bus", *words], stdin=side, stdout=side, stderr=side
        ) as process:
            os.close(side)
            os.write(main, f"{answer}\n".encode())
            said = b""
            try:
                while chunk := os.read(main, 4096):
                    said += chunk
            except OSError:
                pass  # How Linux tells that nobody has the other side any more.
            os.close(main)
            return process.wait(SECONDS), said.decode()

    code, said = await anyio.to_thread.run_sync(talk)
    assert "purge 1 dead letters (malformed 1)? [y/N]" in said
    assert code == left
    assert len(await ids(redis)) == left


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["show", "yesterday"], "yesterday"),
        (["show", "1-1"], "no letter 1-1 in oona:{r}:dead"),
        (["replay"], "--where"),
        (["replay", "1-1", "--all"], "--where"),
        (["replay", "1-1"], "no letter 1-1"),
        (["replay", "--all", "--json", "{}"], "--json"),
        (["replay", "1-1", "--json", "nowhere.json"], "nowhere.json"),
        (["replay", "--all", "--deadline", "-1"], "--deadline"),
        (["replay", "--all", "--deadline", "1e99"], "--deadline"),
        (["replay", "--where", "colour=red"], "colour=red"),
        (["ls", "--since", "yesterday"], "yesterday"),
        (["ls", "--where", "reason"], "reason"),
        (["purge", "1-1", "--since", "5m", "--yes"], "--since"),
        (["lst"], "did you mean ls?"),
    ],
)
async def test_a_wrong_word_is_one_line_and_exit_code_2(dlq: Call, words: list[str], says: str):
    ended = await dlq(*words)
    assert (ended.code, ended.out, ended.err.count("\n")) == (2, "", 1)
    assert says in ended.err


async def test_one_name_that_is_wrong_leaves_the_others_alone(dlq: Call, redis: Redis):
    await dead_entry(redis, sealed(command("mine"), UNSIGNED), "fatal")
    (letter,) = await ids(redis)
    assert (await dlq("replay", letter, "1-1")).code == 2
    assert await ids(redis) == [letter]


async def test_no_server_is_one_line(cli: Call, tmp_path: Path):
    ended = await cli("dlq", "ls", "--redis", f"unix://{tmp_path}/none", "--run", "r")
    assert (ended.code, ended.err.count("\n")) == (2, 1)


async def test_a_replay_that_is_killed_has_moved_each_letter_wholly_or_not_at_all(
    clean_place: Path, redis: Redis, redis_url: str
):
    count = 400
    for number in range(count):
        await dead_entry(redis, sealed(command(str(number)), UNSIGNED), "fatal")
    words = ["dlq", "replay", "--all", "--limit", "1000", "--redis", redis_url, "--run", "r"]
    with started(*words) as process:
        await anyio.to_thread.run_sync(process.line)
        process.popen.send_signal(signal.SIGKILL)
        await anyio.to_thread.run_sync(process.popen.wait)
    sent = [item.command_id for item in await messages(redis, CONTROL, AdaptationCommand)]
    assert sent
    assert len(sent) + len(await ids(redis)) == count
    with started(*words) as process:
        await anyio.to_thread.run_sync(process.rest)
        assert process.popen.returncode == 0
    sent = [item.command_id for item in await messages(redis, CONTROL, AdaptationCommand)]
    assert sorted(sent, key=int) == [str(number) for number in range(count)]


async def test_an_unbelieved_letter_is_marked(
    dlq: Call, redis: Redis, monkeypatch: pytest.MonkeyPatch
):
    await dead_entry(redis, sealed(command("mine"), UNSIGNED), "fatal")
    monkeypatch.setenv("TOLARIA_SIGNING_KEYS", f"k1:{SECRET}")
    ended = await dlq("ls")
    assert "UNVERIFIED" in ended.lines[0]
    line: Any = orjson.loads((await dlq("ls", "--json")).out)
    assert line["doubt"].startswith("signature:")
