"""The bus on its own: a publisher or a consumer at a URL, with all that they need.

For programs that aren't a worker of tolaria-bus: a service that sends commands, one that reads
telemetry, an alerting bridge. The parts (``Outbox``, ``Publisher``, ``Consumer``) are there for
those who want them put together otherwise.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Collection
from contextlib import ExitStack, asynccontextmanager
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import Any, Final

import anyio
from google.protobuf.message import Message
from redis.asyncio import Redis
from redis.exceptions import RedisError

from tolaria_bus.leyline import BusMessageType, MessagePriority
from tolaria_bus.leyline.codec import message_type
from tolaria_bus.oona.connection import ServerClock, connect
from tolaria_bus.oona.consumer import BLOCK, Consumer
from tolaria_bus.oona.copies import Copies
from tolaria_bus.oona.events import OnEvent, log_event, reason_of
from tolaria_bus.oona.opening import Opener
from tolaria_bus.oona.outbox import Outbox
from tolaria_bus.oona.publisher import Publisher
from tolaria_bus.oona.spool import Spool
from tolaria_bus.oona.streams import Streams
from tolaria_bus.oona.trust import KeyRing, NonceWindow

CAPACITY: Final = 65_536
"""Packets that may wait, LOW and NORMAL ones; HIGH and above always may."""
DRAIN: Final = timedelta(seconds=10)

_CLOSING: Final = 2.0  # seconds
_NO_KEYS: Final = KeyRing()
_NORMAL: Final = MessagePriority.MESSAGE_PRIORITY_NORMAL


class OpenPublisher:
    """What :func:`open_publisher` gives: ``put`` and go on, from any thread."""

    def __init__(self, outbox: Outbox, publisher: Publisher) -> None:
        self.outbox = outbox
        self.publisher = publisher

    def put(
        self,
        message: Message,
        *,
        stream: str,
        priority: MessagePriority.ValueType = _NORMAL,
        **options: Any,
    ) -> bool:
        """Queue a message; microseconds, never blocks on the bus. See :meth:`Outbox.put`."""
        return self.outbox.put(message, stream=stream, priority=priority, **options)

    async def drain(self, within: timedelta = DRAIN) -> int:
        """Wait until the server has everything; how many packets are left."""
        return await self.publisher.drain(within)


@asynccontextmanager
async def open_publisher(
    url: str,
    *,
    source: str,
    ring: KeyRing = _NO_KEYS,
    spool: Path | None = None,
    streams: Streams | None = None,
    capacity: int = CAPACITY,
    drain: timedelta = DRAIN,
    copies: Copies | None = None,
    on_event: OnEvent = log_event,
) -> AsyncIterator[OpenPublisher]:
    """Publish at a URL. Leaving the block waits for what was put, at most ``drain``.

    Args:
        url: See ``connection.connect``.
        source: Who sends, as readers see it: ``service/scheduler``.
        ring: Signs, if it has a key.
        spool: A folder of this process's own, for what must outlive it: packets of priority HIGH
            and above, and durable ones. ``None``: they outlive an outage, not this process.
        streams: Which stream is the emergency stream; by default that of the prefix ``oona``.
        capacity: See ``CAPACITY``.
        drain: How long leaving waits; what is left then is in the spool.
        copies: How many replicas must have what may not be lost before it counts as delivered.
        on_event: Told what happens; by default the log is.

    Raises:
        BadUrl: The URL can't name a server. One that can't be reached is no error: what is put
            waits for it.
        SpoolLocked: Another process has the spool.
    """
    failure: Exception | None = None
    with ExitStack() as stack:
        kept = None if spool is None else stack.enter_context(Spool(spool))
        outbox = Outbox(capacity, kept, streams or Streams(), source=source)
        async with (
            _connected(url, "oona-publisher") as bulk,
            _connected(url, "oona-emergency") as emergency,
            anyio.create_task_group() as tasks,
        ):
            publisher = Publisher(bulk, emergency, outbox, ring, copies=copies, on_event=on_event)
            tasks.start_soon(publisher.run)
            try:
                yield OpenPublisher(outbox, publisher)
                left = await publisher.drain(drain)
                if left:
                    on_event("undelivered", {"packets": str(left)})
            except Exception as error:  # noqa: BLE001 - whatever the block raises
                # Out of here as it is: a task group would wrap it.
                failure = error
            finally:
                publisher.stop()
    if failure is not None:
        raise failure


@asynccontextmanager
async def open_consumer(
    url: str,
    *,
    stream: str,
    group: str,
    name: str,
    accept: type[Message] | Collection[type[Message]],
    ring: KeyRing = _NO_KEYS,
    nonces: Path | None = None,
    delete: bool = False,
    start: str = "0",
    block: timedelta = BLOCK,
    on_event: OnEvent = log_event,
    **options: Any,
) -> AsyncIterator[Consumer]:
    """Consume a stream at a URL: call the consumer's ``run`` with a handler.

    Args:
        url: See ``connection.connect``.
        stream: Key of the stream.
        group: The group; made if it isn't there.
        name: The consumer's, the same after a restart, so that it finds what it left unfinished.
        accept: What the handler takes, as message classes; all else becomes dead letters.
        ring: Verifies; without a key every entry is believed.
        nonces: A file in which nonces are remembered over restarts; ``None``: in memory.
        delete: Finished entries are deleted: only where the stream has this one group.
        start: Where a group that never was begins: ``0`` with what the stream holds, ``$`` after.
        block: How long a read waits in the server.
        on_event: Told what happens; by default the log is.
        options: More of :class:`Consumer`'s.

    Raises:
        BadUrl: The URL can't name a server. One that can't be reached is no error: ``run`` waits.
        CodecError: A class of ``accept`` doesn't travel on the bus.
    """
    clock, window = ServerClock(), NonceWindow(nonces)
    async with (
        _connected(url, "oona-reader", block) as reader,
        _connected(url, "oona-acks") as acks,
    ):
        try:
            await clock.sync(acks)
        except (RedisError, OSError) as error:
            # It is asked again before the first entry is judged.
            on_event("server_clock_unknown", {"error": reason_of(error)})
        try:
            yield Consumer(
                reader,
                acks,
                stream=stream,
                group=group,
                name=name,
                opener=Opener(ring, window, server_now_ms=clock.now_ms),
                ring=ring,
                accept=_types(accept),
                delete=delete,
                start=start,
                block=block,
                on_event=on_event,
                sync_clock=partial(clock.sync, acks),
                **options,
            )
        finally:
            window.close()


@asynccontextmanager
async def _connected(url: str, name: str, block: timedelta | None = None) -> AsyncIterator[Redis]:
    client = connect(url, name=name, block=block)
    try:
        yield client
    finally:
        # Also where the caller was cancelled.
        with anyio.move_on_after(_CLOSING, shield=True):
            await client.aclose()


def _types(accept: type[Message] | Collection[type[Message]]) -> set[BusMessageType.ValueType]:
    classes = [accept] if isinstance(accept, type) else accept
    return {message_type(cls()) for cls in classes}
