"""Puts a scene on the stage: the worker's bus side, and everybody around it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any, Final

import anyio
from redis.asyncio import Redis

from tests.oona.bus import CONTROL, GROUP, UNSIGNED, Events, new_outbox
from tests.oona.faults.scene import Scene
from tests.oona.faults.sender import Sender, number_of
from tests.oona.faults.training import Training
from tolaria_bus.leyline import BusMessageType
from tolaria_bus.oona.connection import connect
from tolaria_bus.oona.consumer import Consumer, Received
from tolaria_bus.oona.opening import Opener
from tolaria_bus.oona.publisher import Publisher
from tolaria_bus.oona.spool import Spool

_BLOCK: Final = timedelta(milliseconds=200)


@asynccontextmanager
async def acting(
    folder: Path,
    server: str,
    *,
    url: str | None = None,
    reply: timedelta | None = None,
    on_command: Callable[[str], Awaitable[None]] | None = None,
    **options: Any,
) -> AsyncIterator[Scene]:
    """A scene that plays until the block ends.

    Args:
        folder: For the spool.
        server: URL of the server, for the operator and the sender.
        url: How the worker reaches it, if otherwise.
        reply: How long the worker waits for an answer, if not as long as usual.
        on_command: What the handler does first, if anything.
        options: Of the consumer.
    """
    events, handled, redelivered = Events(), list[str](), list[str]()
    loop = asyncio.get_running_loop()

    def forget(received: Received) -> None:
        loop.call_soon_threadsafe(received.forget)

    async with AsyncExitStack() as stack:

        async def client(name: str, at: str, **how: Any) -> Redis:
            return await stack.enter_async_context(connect(at, name=name, **how))

        worker = url or server
        spool = stack.enter_context(Spool(folder / "spool"))
        outbox = new_outbox(spool)
        training = Training(outbox, forget)
        publisher = Publisher(
            await client("bulk", worker, reply=reply),
            await client("emergency", worker, reply=reply),
            outbox,
            UNSIGNED,
            on_event=events,
        )

        async def handler(received: Received) -> None:
            command_id: str = received.opened.message.command_id  # type: ignore[attr-defined]
            handled.append(command_id)
            if received.redelivered:
                redelivered.append(command_id)
            if on_command is not None:
                await on_command(command_id)
            if number_of(command_id) % 2:
                received.ack_soon()
            else:
                training.mailbox.put(received)

        consumer = Consumer(
            await client("reader", worker, reply=reply, block=_BLOCK),
            await client("acks", worker, reply=reply),
            stream=CONTROL,
            group=GROUP,
            name="me",
            opener=Opener(UNSIGNED, None),
            ring=UNSIGNED,
            accept={BusMessageType.BUS_MESSAGE_TYPE_ADAPTATION_COMMAND},
            delete=True,
            block=_BLOCK,
            on_event=events,
            **options,
        )
        sender = Sender(await client("sender", server))
        operator = await client("operator", server)
        await consumer.prepare()
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(publisher.run)
            tasks.start_soon(consumer.run, handler)
            tasks.start_soon(sender.run)
            training.start()
            try:
                yield Scene(
                    outbox=outbox,
                    spool=spool,
                    publisher=publisher,
                    training=training,
                    sender=sender,
                    operator=operator,
                    consumer=consumer,
                    events=events,
                    handled=handled,
                    redelivered=redelivered,
                )
            finally:
                training.stop()
                tasks.cancel_scope.cancel()
