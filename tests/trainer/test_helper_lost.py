"""The process that writes a run's checkpoints is killed: the run does without, and says so."""

from __future__ import annotations

from typing import Any

import psutil
from torch import nn

from tests.trainer.conftest import Moons, Run
from tolaria_bus.leyline import MessagePriority, TelemetryLevel
from tolaria_bus.tolaria.control.mailbox import RecordingOutbound
from tolaria_bus.tolaria.recovery.checkpoints import CheckpointStore

LOST = "checkpoint_helper_lost"


class Large(Moons):
    """With Adam's moments, more than the 16 MB from which on the process writes."""

    name = "large"

    def model(self) -> nn.Module:
        return nn.Sequential(
            nn.Linear(2, 1300), nn.ReLU(), nn.Linear(1300, 1300), nn.ReLU(), nn.Linear(1300, 2)
        )


def helpers() -> list[psutil.Process]:
    """The processes that write checkpoints for this one."""
    return [
        child
        for child in psutil.Process().children()
        if any(word.endswith("disk_process") for word in child.cmdline())
    ]


class Kills(RecordingOutbound):
    """Kills the process that writes, once a checkpoint is durable that it has written."""

    def __init__(self) -> None:
        super().__init__()
        self.killed: list[int] = []

    def telemetry(self, packet: Any, priority: Any) -> None:
        super().telemetry(packet, priority)
        if not self.killed and any(event.event_id == "checkpoint" for event in packet.events):
            for process in helpers():
                process.kill()
                self.killed.append(process.pid)


def checkpoints(run: Run) -> list[str]:
    """Those that were said to be durable."""
    return [
        event.description.split()[0]
        for packet, _ in run.outbound.packets
        for event in packet.events
        if event.event_id == "checkpoint"
    ]


def test_a_killed_helper_is_a_warning_on_telemetry_and_every_checkpoint_is_written(
    make_run,
) -> None:
    run = make_run(job=Large(), epochs=4, checkpoint_writer="process", checkpoint_keep=9)
    run.outbound = Kills()
    assert run.train().stopped_by == "finished"
    assert run.outbound.killed
    ((packet, priority),) = [
        item
        for item in run.outbound.packets
        if LOST in {event.event_id for event in item[0].events}
    ]
    assert priority == MessagePriority.MESSAGE_PRIORITY_NORMAL
    assert packet.level == TelemetryLevel.TELEMETRY_LEVEL_WARNING
    assert packet.events[0].level == TelemetryLevel.TELEMETRY_LEVEL_WARNING
    assert "the trainer writes" in packet.events[0].description
    written = checkpoints(run)
    store = CheckpointStore(run.path / "checkpoints")
    assert [item.name for item in store.list()] == written
    for name in written:
        store.load(name)
    assert not helpers()
