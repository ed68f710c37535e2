"""A service of ours from its start to a signal, with its metrics and its health."""

from __future__ import annotations

import signal
from contextlib import ExitStack

import anyio
import structlog

from tolaria_bus.configured import metrics_endpoint
from tolaria_bus.settings import Settings
from tolaria_bus.tamiyo.service import Service, serve


def serve_until_signalled(service: Service, settings: Settings) -> None:
    """Run a Tamiyo until SIGINT or SIGTERM.

    Raises:
        SettingError: Metrics can't be served where the settings say.
        BadUrl: The server's URL is none.
        ServerUnreachable: It doesn't answer at the start.
    """
    with ExitStack() as stack:
        endpoint = metrics_endpoint(stack, settings, service.registry)
        if endpoint is not None:
            endpoint.health = lambda: ""
        anyio.run(_until_signalled, service, backend_options={"use_uvloop": True})


async def _until_signalled(service: Service) -> None:
    stopped = anyio.Event()
    async with anyio.create_task_group() as tasks:
        with anyio.open_signal_receiver(signal.SIGINT, signal.SIGTERM) as signals:

            async def wait() -> None:
                async for number in signals:
                    structlog.get_logger().info("stopping", reason=signal.Signals(number).name)
                    stopped.set()

            tasks.start_soon(wait)
            await serve(service, stopped)
            tasks.cancel_scope.cancel()
