"""One worker, from its start to a graceful stop: the bus tasks and the training thread.

Start: the job and the settings are checked, the run's folder is locked, the server is found or
started, the run's lease is taken. Then the bus side and the training thread run until training
ends, by itself or because it is asked to. Stop: no new entries are read, what training said is
flushed, the lease is given back, the embedded server ends.
"""

from __future__ import annotations

import gc
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import NoReturn

import anyio
import structlog
from prometheus_client.registry import CollectorRegistry

from tolaria_bus.configured import check_trust, compat_secret, key_ring, metrics_endpoint
from tolaria_bus.logs import configure
from tolaria_bus.oona.connection import check
from tolaria_bus.oona.embedded import EmbeddedServer
from tolaria_bus.oona.events import reason_of
from tolaria_bus.safety import Signals, WorkerState
from tolaria_bus.safety.endpoint import Endpoint
from tolaria_bus.tolaria.control.mailbox import Mailbox
from tolaria_bus.tolaria.engine.job import Job, load_job
from tolaria_bus.tolaria.recovery.run_folder import RunFolder
from tolaria_bus.tolaria.summary import Progress, RunSummary
from tolaria_bus.tolaria.trainer import Trainer
from tolaria_bus.worker.bus import Bus
from tolaria_bus.worker.heartbeat import end, heartbeat, keep_beating
from tolaria_bus.worker.leaving import Deadline, exit_at_once, watch_signals
from tolaria_bus.worker.passed_on import obey_passed_on
from tolaria_bus.worker.spec import (
    WorkerSpec,
    new_run_id,
    run_path,
)
from tolaria_bus.worker.thread import TrainingThread

PROGRESS_SECONDS = 0.2
BEAT_SECONDS = 1.0
LAST_BEAT_SECONDS = 2.0
"""A server that is away doesn't hold up the end."""


@dataclass(frozen=True)
class _Prepared:
    spec: WorkerSpec
    job: Job
    run: str
    folder: RunFolder
    signals: Signals
    url: str
    endpoint: Endpoint | None
    registry: CollectorRegistry


def run_worker(spec: WorkerSpec) -> RunSummary:
    """Run one worker in this process until its training ends.

    Raises:
        JobError: The job can't be loaded, or its own code failed.
        SettingError: A setting is wrong.
        RunLocked: Another process works on the run.
        LeaseHeld: Another worker has the run, by what the server says.
        ServerUnreachable: There is no usable server.
    """
    configure(spec.log)
    log = structlog.get_logger()
    ring = key_ring(spec.settings)
    compat_secret(spec.settings)
    job = load_job(spec.job, spec.job_options)
    run = spec.settings.run or new_run_id(job.name)
    with ExitStack() as stack:
        path = run_path(spec.settings, run)
        folder = RunFolder.open(
            path,
            keep=spec.settings.checkpoint_keep,
            max_gb=spec.settings.checkpoint_max_gb,
            on_event=lambda name, detail: log.warning(name, **detail),
        )
        stack.callback(folder.close)
        signals = stack.enter_context(heartbeat(path))
        url = spec.settings.redis_url or _embedded(stack, path, run)
        if warning := check_trust(spec.settings, ring, url):
            log.warning(warning)
        registry = CollectorRegistry()
        endpoint = metrics_endpoint(stack, spec.settings, registry)
        prepared = _Prepared(spec, job, run, folder, signals, url, endpoint, registry)
        summary = anyio.run(
            _serve, prepared, backend="asyncio", backend_options={"use_uvloop": True}
        )
        end(signals, summary)
        return summary


def _embedded(stack: ExitStack, path: Path, run: str) -> str:
    server = stack.enter_context(EmbeddedServer.start(path, run))
    structlog.get_logger().info(
        "embedded server", run=run, address=server.url, by_hand=server.cli, folder=str(path)
    )
    return server.url


async def _serve(prepared: _Prepared) -> RunSummary:
    settings, mailbox = prepared.spec.settings, Mailbox()
    log = structlog.get_logger().bind(run=prepared.run)
    await check(prepared.url)
    bus = Bus(
        prepared.url,
        prepared.run,
        prepared.folder,
        settings,
        key_ring(settings),
        mailbox,
        signals=prepared.signals,
        new=prepared.spec.new,
        registry=prepared.registry if prepared.endpoint is not None else None,
        job=prepared.job.name,
    )
    async with bus:
        if prepared.endpoint is not None:
            prepared.endpoint.health = bus.stalled
        trainer: list[Trainer] = []

        def train() -> RunSummary:
            # Made on its own thread: building a model and restoring a state take a while.
            trainer.append(
                Trainer(
                    prepared.job,
                    settings,
                    prepared.run,
                    prepared.folder,
                    mailbox,
                    bus.outbound,
                    signals=prepared.signals,
                )
            )
            log.info("engine", features=trainer[0].features)
            # What is there now stays: torch's modules alone make every full collection stop the
            # process, alerts and all, for a tenth of a second.
            gc.collect()
            gc.freeze()
            return trainer[0].run()

        thread = TrainingThread(train)
        async with anyio.create_task_group() as tasks:
            leave = partial(exit_at_once, bus.sync)
            deadline = Deadline(settings.drain_seconds)

            def drain(reason: str) -> None:
                log.info("stopping", reason=reason, again="a second signal stops at once")
                mailbox.request_stop("signal")
                prepared.signals.state(WorkerState.STOPPING)
                deadline.begin()
                tasks.start_soon(_leave_late, deadline, thread, leave)

            await tasks.start(watch_signals, drain, leave)
            tasks.start_soon(keep_beating, prepared.signals, trainer)
            tasks.start_soon(obey_passed_on, prepared.folder.path, prepared.run, mailbox, bus.tell)
            if prepared.spec.progress is not None:
                tasks.start_soon(_show, prepared.spec.progress, trainer)
            tasks.start_soon(_beat, trainer, bus)
            thread.start()
            try:
                summary = await thread.result()
                bus.ended = {"how": summary.stopped_by, "reason": ""}
            except Exception as error:
                bus.ended = {"how": "failed", "reason": reason_of(error)}
                raise
            finally:
                # Also when training failed: what it said last must still go out.
                with anyio.CancelScope(shield=True):
                    with anyio.move_on_after(LAST_BEAT_SECONDS):
                        if trainer:
                            await bus.beat(trainer[0].progress, trainer[0].standing)
                    await bus.drain(deadline.left())
                tasks.cancel_scope.cancel()
        return summary


async def _leave_late(
    deadline: Deadline, thread: TrainingThread[RunSummary], leave: Callable[[], NoReturn]
) -> None:
    await deadline.passed()
    log = structlog.get_logger()
    if thread.ended:
        log.error(
            "the bus didn't close in time: leaving; the next start sends what is in the spool"
        )
    else:
        log.error("training didn't reach a fence in time: leaving; the journal has everything")
    leave()


async def _show(progress: Callable[[Progress], None], trainer: list[Trainer]) -> None:
    """Show the caller where the run is."""
    while True:
        if trainer:
            progress(trainer[0].progress)
        await anyio.sleep(PROGRESS_SECONDS)


async def _beat(trainer: list[Trainer], bus: Bus) -> None:
    """Show it to everybody on the bus. Apart from the caller's view: this waits for the server."""
    while True:
        if trainer:
            await bus.beat(trainer[0].progress, trainer[0].standing)
        await anyio.sleep(BEAT_SECONDS if trainer else PROGRESS_SECONDS)
