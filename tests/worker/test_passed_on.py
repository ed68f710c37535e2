"""What is left in a run's folder is with its trainer at once, with a bell or without."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import anyio
import pytest

from tolaria_bus.leyline import EmergencyLevel, EmergencySignal
from tolaria_bus.safety import waking
from tolaria_bus.safety.passing import NAME, pass_on
from tolaria_bus.tolaria.control.mailbox import Delivery, Mailbox
from tolaria_bus.worker import passed_on

RUN = "r"


class Told:
    """A mailbox, and an event for each thing that is put into it."""

    def __init__(self) -> None:
        self.mailbox = Mailbox()
        self.came = anyio.Event()
        post = self.mailbox.post

        def tell(delivery: Delivery) -> None:
            post(delivery)
            self.came.set()

        self.mailbox.post = tell  # type: ignore[method-assign]

    async def ids(self) -> list[str]:
        await self.came.wait()
        self.came = anyio.Event()
        return [delivery.command.command_id for delivery in self.mailbox.take()]


def halt(signal_id: str) -> EmergencySignal:
    signal = EmergencySignal(
        version=1,
        level=EmergencyLevel.EMERGENCY_LEVEL_HALT,
        reason="smoke",
        origin="operator/test",
        attributes={"signal_id": signal_id, "scope": "all"},
    )
    signal.triggered_at.GetCurrentTime()
    return signal


def nothing(event: str, detail: Mapping[str, str]) -> None:
    raise AssertionError(f"{event}: {detail}")


async def passes(folder: Path) -> None:
    """Leave two signals, the second once the worker surely sleeps again."""
    told = Told()
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(passed_on.obey_passed_on, folder, RUN, told.mailbox, nothing)
        await anyio.wait_all_tasks_blocked()
        for signal_id in ("one", "two"):
            pass_on(folder, halt(signal_id))
            assert await told.ids() == [f"signal:{signal_id}"]
            await anyio.wait_all_tasks_blocked()
        tasks.cancel_scope.cancel()


async def test_a_ring_wakes_the_worker(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(passed_on, "LOOK_SECONDS", 3600.0)
    with anyio.fail_after(30):
        await passes(tmp_path)


async def test_one_whose_ring_cannot_be_heard_waits_for_a_look(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(waking, "ring", lambda where: None)
    with anyio.fail_after(30):
        await passes(tmp_path)


async def test_a_worker_whose_bell_is_another_ones_looks_often(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(passed_on, "LOOK_SECONDS", 3600.0)
    with waking.listening(waking.address(tmp_path, NAME)) as bell, anyio.fail_after(30):
        assert bell is not None
        await passes(tmp_path)
