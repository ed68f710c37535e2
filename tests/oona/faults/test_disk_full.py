"""The disk is full when the spool needs another segment, and the server takes nothing either."""

import sys
from pathlib import Path

import anyio
import orjson
from redis.asyncio import Redis

from tests.oona.bus import EMERGENCY, envelopes

COUNT = 300

# The limit on the size of files stands for the full disk: no further segment can be allocated. It
# is the process's, so a process of its own has it.
WORKER = """
import resource, sys
from datetime import timedelta
from pathlib import Path
import anyio
import orjson
from tests.oona.bus import *

unlimited = resource.getrlimit(resource.RLIMIT_FSIZE)
url, folder, count = sys.argv[1], Path(sys.argv[2]), int(sys.argv[3])
spool = Spool(folder, segment_bytes=8192)
outbox = new_outbox(spool)
events = Events()
put = []

def say(name):
    put.append(name)
    outbox.put(alert(name), stream=EMERGENCY, priority=HIGH, message_id=name)

def on_event(name, detail):
    events(name, detail)
    if name == "unspooled":
        # As a worker does: it is an alert of its own, and goes where the others went.
        say(f"unspooled {len(events.of(name))}")

async def main():
    async with connect(url, name="operator") as operator:
        await operator.config_set("maxmemory", "1")
        options = {"on_event": on_event, "tell_every": timedelta(milliseconds=50)}
        async with publishing(url, outbox, **options) as publisher:
            resource.setrlimit(resource.RLIMIT_FSIZE, (4096, unlimited[1]))
            for n in range(count):
                say(f"a{n}")
            await events.wait_for("unspooled")
            await events.wait_for("spool_failed")
            await anyio.sleep(0.5)
            told = len(events.of("unspooled"))
            in_memory = outbox.unspooled
            await operator.config_set("maxmemory", "0")
            await drained(publisher)
            resource.setrlimit(resource.RLIMIT_FSIZE, unlimited)
            say("after")
            await drained(publisher)
    report = {
        "put": put,
        "told": told,
        "in_memory": in_memory,
        "in_memory_after": outbox.unspooled,
        "left": len(spool),
        "errors": [told["error"] for told in events.of("spool_failed")],
    }
    sys.stdout.buffer.write(orjson.dumps(report))

anyio.run(main)
"""


async def test_alerts_that_the_disk_cannot_take_go_on_from_memory_and_it_is_told(
    redis: Redis, redis_url: str, tmp_path: Path
):
    words = [sys.executable, "-c", WORKER, redis_url, str(tmp_path / "spool"), str(COUNT)]
    try:
        done = await anyio.run_process(words, stderr=None)
    finally:
        await redis.config_set("maxmemory", "0")
    found = orjson.loads(done.stdout)
    arrived = [envelope.message_id for envelope in await envelopes(redis, EMERGENCY)]
    assert list(dict.fromkeys(arrived)) == found["put"]
    assert 0 < found["in_memory"] < COUNT
    assert found["told"] == 1
    assert "File too large" in found["errors"][0]
    assert found["in_memory_after"] == found["in_memory"]
    assert found["left"] == 0
