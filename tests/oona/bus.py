"""What tests of the bus need: messages, a publisher at work, and what arrived."""

from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from datetime import timedelta
from typing import Any

import anyio
from redis.asyncio import Redis

from tolaria_bus.leyline import (
    AdaptationCommand,
    BusEnvelope,
    BusMessageType,
    CommandOutcome,
    CommandType,
    DeadLetter,
    MessagePriority,
    MetricPoint,
    TelemetryEvent,
    TelemetryLevel,
    TelemetryPacket,
)
from tolaria_bus.oona.connection import connect
from tolaria_bus.oona.consumer import Consumer, Handler, Received
from tolaria_bus.oona.dead_letters import begun_key, read
from tolaria_bus.oona.opening import Opener
from tolaria_bus.oona.outbox import Outbox
from tolaria_bus.oona.publisher import Publisher
from tolaria_bus.oona.sealing import seal
from tolaria_bus.oona.spool import Spool
from tolaria_bus.oona.streams import Streams, dead_letters_of
from tolaria_bus.oona.trust import KeyRing

LOW = MessagePriority.MESSAGE_PRIORITY_LOW
NORMAL = MessagePriority.MESSAGE_PRIORITY_NORMAL
HIGH = MessagePriority.MESSAGE_PRIORITY_HIGH
CRITICAL = MessagePriority.MESSAGE_PRIORITY_CRITICAL

RUN = "r"
GROUP = "tolaria"
STREAMS = Streams()
CONTROL = STREAMS.control(RUN)
TELEMETRY = STREAMS.telemetry(RUN)
OUTCOMES = STREAMS.outcomes(RUN)
EMERGENCY = STREAMS.emergency
UNSIGNED = KeyRing()
SOON = 45.0
"""Seconds: much longer than anything takes that works, on a machine that is busy with others.

And less than the minute after which a consumer is taken for dead, where nothing else is said."""


class Events:
    """Everything that was told, and a way to wait for it."""

    def __init__(self) -> None:
        self.seen: list[tuple[str, dict[str, str]]] = []
        self._changed = anyio.Event()

    def __call__(self, name: str, detail: Mapping[str, str]) -> None:
        self.seen.append((name, dict(detail)))
        self._changed.set()

    def names(self) -> list[str]:
        return [name for name, _ in self.seen]

    def of(self, name: str) -> list[dict[str, str]]:
        return [detail for seen, detail in self.seen if seen == name]

    async def wait_for(self, name: str) -> dict[str, str]:
        with anyio.fail_after(SOON):
            while not self.of(name):
                self._changed = anyio.Event()
                await self._changed.wait()
        return self.of(name)[-1]


def metric(value: float = 1.0) -> TelemetryPacket:
    return TelemetryPacket(metrics=[MetricPoint(name="loss", value=value)])


def alert(name: str, step: int = 0) -> TelemetryPacket:
    level = TelemetryLevel.TELEMETRY_LEVEL_ERROR
    return TelemetryPacket(global_step=step, events=[TelemetryEvent(event_id=name, level=level)])


def outcome(command_id: str) -> CommandOutcome:
    return CommandOutcome(command_id=command_id)


def command(command_id: str = "c") -> AdaptationCommand:
    return AdaptationCommand(command_id=command_id, command_type=CommandType.COMMAND_PAUSE)


def new_outbox(spool: Spool | None = None, capacity: int = 100_000) -> Outbox:
    return Outbox(capacity, spool, STREAMS, RUN)


@asynccontextmanager
async def publishing(
    url: str, outbox: Outbox, ring: KeyRing = UNSIGNED, **options: Any
) -> AsyncIterator[Publisher]:
    """A publisher that runs until the block ends."""
    async with (
        connect(url, name="bulk") as bulk,
        connect(url, name="emergency") as emergency,
        anyio.create_task_group() as tasks,
    ):
        publisher = Publisher(bulk, emergency, outbox, ring, **options)
        tasks.start_soon(publisher.run)
        yield publisher
        publisher.stop()


class Inbox:
    """A handler that keeps what it gets, and a way to wait for it."""

    def __init__(self, *, ack: bool = False) -> None:
        self.received: list[Received] = []
        self._ack = ack
        self._changed = anyio.Event()

    async def __call__(self, received: Received) -> None:
        self.received.append(received)
        self._changed.set()
        if self._ack:
            await received.ack()

    def ids(self) -> list[str]:
        """Command ids, as they came."""
        return [received.opened.message.command_id for received in self.received]  # type: ignore[attr-defined]

    async def wait_for(self, count: int) -> list[Received]:
        with anyio.fail_after(SOON):
            while len(self.received) < count:
                self._changed = anyio.Event()
                await self._changed.wait()
        return self.received


@asynccontextmanager
async def consumer(
    url: str, name: str = "me", *, reply: timedelta | None = None, **options: Any
) -> AsyncIterator[Consumer]:
    """A consumer of the control stream that isn't running yet."""
    block = timedelta(milliseconds=200)
    settings: dict[str, Any] = {
        "stream": CONTROL,
        "group": GROUP,
        "name": name,
        "opener": Opener(options.get("ring", UNSIGNED), None),
        "ring": UNSIGNED,
        "accept": {BusMessageType.BUS_MESSAGE_TYPE_ADAPTATION_COMMAND},
        "delete": True,
        "block": block,
        "on_event": Events(),
    }
    async with (
        connect(url, name="reader", block=block, reply=reply) as reader,
        connect(url, name="acks", reply=reply) as acks,
    ):
        yield Consumer(reader, acks, **{**settings, **options})


@asynccontextmanager
async def consuming(
    url: str, handler: Handler, name: str = "me", **options: Any
) -> AsyncIterator[Consumer]:
    """A consumer that runs until the block ends; then it is cancelled."""
    async with consumer(url, name, **options) as made, anyio.create_task_group() as tasks:
        await made.prepare()
        tasks.start_soon(made.run, handler)
        yield made
        tasks.cancel_scope.cancel()


async def letters(
    redis: Redis, stream: str = CONTROL, ring: KeyRing = UNSIGNED
) -> list[DeadLetter]:
    """The dead letters of a stream's slot."""
    found = read(redis, dead_letters_of(stream), Opener(ring, None))
    return [item.letter async for item in found if item.letter is not None]


async def drained(publisher: Publisher) -> None:
    assert await publisher.drain(timedelta(seconds=SOON)) == 0


async def send(
    redis: Redis, stream: str, message: Any, ring: KeyRing = UNSIGNED, **fields: Any
) -> str:
    """Put a message into a stream as another program would; its entry's id."""
    sealed = seal(message, stream=stream, ring=ring, **{"source": "test", **fields})
    pairs = [part for pair in sealed.items() for part in pair]
    entry_id: bytes = await redis.execute_command("XADD", stream, "*", *pairs)  # type: ignore[no-untyped-call]
    return entry_id.decode()


async def entries(redis: Redis, stream: str) -> list[tuple[str, dict[bytes, bytes]]]:
    """(id, fields) of what a stream holds."""
    found: Any = await redis.xrange(stream)
    return [(entry_id.decode(), fields) for entry_id, fields in found]


async def envelopes(redis: Redis, stream: str) -> list[BusEnvelope]:
    """What a stream holds, as sent."""
    return [
        BusEnvelope.FromString(fields[b"payload"]) for _, fields in await entries(redis, stream)
    ]


async def pending(redis: Redis, stream: str, group: str) -> int:
    """How many entries of a group are neither new nor finished."""
    return int((await redis.xpending(stream, group))["pending"])


async def finished(redis: Redis, stream: str = CONTROL, group: str = GROUP) -> None:
    """Wait until nothing of a group is pending."""
    with anyio.fail_after(SOON):
        while await pending(redis, stream, group):  # noqa: ASYNC110
            await anyio.sleep(0.005)


async def unmarked(redis: Redis, stream: str = CONTROL, group: str = GROUP) -> None:
    """Wait until no entry is marked as begun: that is undone after the entry was finished."""
    with anyio.fail_after(SOON):
        while await redis.exists(begun_key(stream, group)):  # noqa: ASYNC110
            await anyio.sleep(0.005)


async def taken_entry(redis: Redis, stream: str, group: str) -> str:
    """The id of an entry that is in its stream and pending."""
    await redis.xgroup_create(stream, group, "0", mkstream=True)
    await redis.xadd(stream, {"payload": b"x"})
    await redis.xreadgroup(group, "me", {stream: ">"})
    return (await entries(redis, stream))[0][0]


async def messages(redis: Redis, stream: str, kind: type[Any] = TelemetryPacket) -> list[Any]:
    return [kind.FromString(envelope.payload) for envelope in await envelopes(redis, stream)]


async def until(condition: Callable[[], bool]) -> None:
    """Wait for something that tells nobody when it happens."""
    with anyio.fail_after(SOON):
        while not condition():  # noqa: ASYNC110
            await anyio.sleep(0.002)
