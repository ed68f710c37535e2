"""A run that draws its batches ahead is, in every bit that stays of it, one that does not.

On the CPU there is nothing to gain by it, so that its logic is tried with copies that are none; on
CUDA it is the real thing.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import Dataset

from tests.engine.test_prefetch import Clones
from tests.trainer.conftest import STEPS_PER_EPOCH, Moons, Run
from tests.trainer.lives import Power
from tests.trainer.test_recovery import FailsAtOutcome, OwnLoader
from tolaria_bus.tolaria import start
from tolaria_bus.tolaria.engine.prefetch import PrefetchedBatches
from tolaria_bus.tolaria.engine.seeding import seed_globals
from tolaria_bus.tolaria.summary import RunSummary

CUDA = pytest.param(
    "cuda",
    marks=pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
)


class Noisy(Dataset[tuple[Tensor, Tensor]]):
    """Read in this process, a sample at a time, with noise from each of the global generators."""

    def __init__(self, data: Any) -> None:
        self.tensors = data.tensors
        self.read = 0

    def __len__(self) -> int:
        return len(self.tensors[0])

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        self.read += 1
        noise = random.random() + float(np.random.rand()) + float(torch.rand(()))  # noqa: NPY002
        return self.tensors[0][index] + 0.1 * noise, self.tensors[1][index]


class DrawingMoons(Moons):
    """Its loss draws from Python's and numpy's generators, which reading its batches lets alone."""

    def loss(self, model: nn.Module, batch: Any) -> Tensor:
        noise = random.random() + float(np.random.rand())  # noqa: NPY002
        return super().loss(model, batch) * (1.0 + 0.1 * noise)


class NoisyMoons(DrawingMoons):
    """Its loss draws from them as the reading of the batch left them."""

    def __init__(self) -> None:
        super().__init__()
        self.data: list[Noisy] = []

    def train_data(self) -> Any:
        self.data.append(Noisy(super().train_data()))
        return self.data[-1]


@pytest.fixture
def make(make_run: Callable[..., Run], monkeypatch: pytest.MonkeyPatch) -> Callable[..., Run]:
    """Make a run with prefetch (or without: ``prefetch=False``), on either device."""

    def without_a_stream(batches: Any, device: torch.device, *, wanted: bool) -> Any:
        return PrefetchedBatches(batches, Clones()) if wanted else batches

    def made(folder: str, device: str, **settings: Any) -> Run:
        run = make_run(folder, **settings)
        if device == "cpu":
            monkeypatch.setattr(start, "prefetched", without_a_stream)
        run.settings = run.settings.model_copy(update={"device": device})
        # A run begins with Python's and numpy's as it finds them.
        seed_globals(7)
        return run

    return made


def end(summary: RunSummary) -> dict[str, Any]:
    """What a run came to, without where and how fast."""
    apart = {"folder", "seconds", "steps_per_second"}
    return {name: value for name, value in summary.to_json().items() if name not in apart}


def steer(run: Run) -> Run:
    """Let it go back twice: on with the next data, and over the same again."""
    for name, data, at_step in (("skip", "skip", 21), ("replay", "replay", 36)):
        run.send(
            f"""{{"commandId": "{name}", "commandType": "ROLLBACK",
            "rollbackPayload": {{"data": "{data}", "target_step": 16}}}}""",
            at_step=at_step,
        )
    return run


@pytest.mark.parametrize("device", ["cpu", CUDA])
@pytest.mark.parametrize("job", [NoisyMoons, DrawingMoons])
@pytest.mark.parametrize("accumulate", [1, 3])
def test_weights_are_those_of_a_run_without_also_where_it_is_stopped_and_goes_back(
    make, device: str, job: Any, accumulate: int
) -> None:
    settings = {"job": job(), "accumulate": accumulate}
    if accumulate > 1:
        settings["epochs"] = 12
    plain = steer(make("plain", device, prefetch=False, **settings)).train()
    assert plain.timeline == 3
    assert end(steer(make("through", device, **settings)).train()) == end(plain)
    for steps in (5, 16, 17, 33, 40, None):
        stopped = steer(make("stopped", device, **settings))
        if steps is not None:
            stopped.send(f'{{"commandId": "s{steps}", "commandType": "STOP"}}', at_step=steps)
        summary = stopped.train()
    assert summary.weights_sha256 == plain.weights_sha256
    assert summary.timeline == 3


@pytest.mark.parametrize("device", ["cpu", CUDA])
@pytest.mark.parametrize("job", [NoisyMoons, DrawingMoons])
def test_power_lost_ends_in_the_same_bits(make, tmp_path, device: str, job: Any) -> None:
    settings = {"job": job(), "checkpoint_every_steps": 5, "checkpoint_keep": 99}
    run = steer(make("run", device, **settings))
    run.outbound = FailsAtOutcome(Power(run.path, tmp_path / "copy"), 1)
    through = run.train()
    assert steer(make("copy", device, **settings)).train().weights_sha256 == through.weights_sha256
    plain = steer(make("plain", device, prefetch=False, **settings))
    assert plain.train().weights_sha256 == through.weights_sha256


@pytest.mark.parametrize("device", ["cpu", CUDA])
@pytest.mark.parametrize("stateful", [True, False])
def test_a_loader_of_the_users_own_comes_to_the_same_too(make, device: str, stateful: bool) -> None:
    plain = steer(make("plain", device, prefetch=False, job=OwnLoader(stateful))).train()
    assert end(steer(make("run", device, job=OwnLoader(stateful))).train()) == end(plain)


@pytest.mark.parametrize(
    ("settings", "batches"),
    [({}, 4 * STEPS_PER_EPOCH), ({"steps": 21}, 21), ({"steps": 2}, 2)],
)
def test_no_batch_is_read_that_is_not_trained_on(make, settings: Any, batches: int) -> None:
    job = NoisyMoons()
    make("run", "cpu", job=job, **settings).train()
    assert [data.read for data in job.data] == [batches * job.batch_size]


def test_a_run_that_stops_has_read_one_batch_more(make) -> None:
    job = NoisyMoons()
    run = make("run", "cpu", job=job)
    run.send('{"commandId": "s", "commandType": "STOP"}', at_step=5)
    run.train()
    assert [data.read for data in job.data] == [6 * job.batch_size]


def test_it_is_told_that_the_device_has_no_memory_for_it(make, monkeypatch) -> None:
    plain = make("plain", "cpu", prefetch=False).train()
    run = make("run", "cpu")

    class Full(Clones):
        without_memory = 0

        def begin(self, batch: Any) -> Any:
            self.without_memory = self.copies == 9
            return super().begin(batch)

    monkeypatch.setattr(
        start, "prefetched", lambda batches, device, wanted: PrefetchedBatches(batches, Full())
    )
    assert end(run.train()) == end(plain)
    (event,) = [
        event
        for packet, _ in run.outbound.packets
        for event in packet.events
        if event.event_id == "prefetch_off"
    ]
    assert event.description.endswith("CUDA out of memory. Tried to allocate much.")
    points = [
        point.value
        for packet, _ in run.outbound.packets
        for point in packet.metrics
        if point.name == "tolaria.engine.prefetch"
    ]
    assert points == [1.0, 0.0]


def test_it_is_a_phase_of_its_own(make) -> None:
    run = make("run", "cpu")
    run.train()
    found = {
        point.attributes["phase"]: point.histogram.count
        for packet, _ in run.outbound.packets
        for point in packet.metrics
        if point.name == "tolaria.phase_ms"
    }
    assert found["prefetch"] == 4 * STEPS_PER_EPOCH - 1
