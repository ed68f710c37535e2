"""Copies beside the device's work: they are beside it, and what trains sees them whole."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import TensorDataset

from tests.engine.test_step import equal, mse, net, weights
from tolaria_bus.tolaria.engine import BatchStream, OptimizerManager, TrainStep
from tolaria_bus.tolaria.engine.copy_stream import CopyStream
from tolaria_bus.tolaria.engine.data import training_batches
from tolaria_bus.tolaria.engine.prefetch import PrefetchedBatches, feature, prefetched

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")

DEVICE = torch.device("cuda", 0)
LONG = 200_000_000
"""Cycles for which a stream is kept busy: a tenth of a second and more."""
SIZE = 1 << 20
BATCHES = 24


def busy(cycles: int = LONG) -> None:
    """Keep the current stream busy; the host goes on."""
    torch.cuda._sleep(cycles)  # type: ignore[no-untyped-call]


def numbers() -> TensorDataset:
    """Each sample is its own number, a million times: 4 MB."""
    return TensorDataset(torch.arange(BATCHES, dtype=torch.float32)[:, None].expand(-1, SIZE))


def stream() -> BatchStream:
    return BatchStream(numbers(), 1, 3, timeline=1, pin_memory=True)


def extremes(batch: Any) -> Tensor:
    """Queue a look at every value of a batch."""
    values = batch[0]
    return torch.stack([values.min(), values.max()])


def expected() -> list[list[float]]:
    plain = BatchStream(numbers(), 1, 3, timeline=1)
    firsts = [float(plain.next()[0][0, 0]) for _ in range(BATCHES)]
    return [[first, first] for first in firsts]


@pytest.mark.parametrize("ahead", [True, False])
@pytest.mark.parametrize("cycles", [0, 2_000_000])
def test_every_step_sees_its_batch_whole_though_the_device_is_far_behind(
    ahead: bool, cycles: int
) -> None:
    batches = PrefetchedBatches(stream(), CopyStream(DEVICE))
    seen = []
    for _ in range(BATCHES):
        # The host lets go of each batch long before the device has come to it.
        busy(cycles)
        seen.append(extremes(batches.next()))
        if ahead:
            batches.draw_ahead()
    assert [each.tolist() for each in seen] == expected()


def test_memory_that_what_trains_still_reads_is_not_given_to_the_next_copy() -> None:
    copies = CopyStream(DEVICE)
    source = [torch.full((SIZE,), 1.0).pin_memory()]
    batch = copies.take(copies.begin(source))
    busy()
    seen = extremes(batch)
    del batch
    for value in range(2, 6):
        copies.wait()
        later = copies.take(copies.begin([torch.full((SIZE,), float(value)).pin_memory()]))
        del later
    assert seen.tolist() == [1.0, 1.0]


def test_a_copy_is_done_while_the_device_is_busy_and_waits_for_nothing() -> None:
    copies = CopyStream(DEVICE)
    copies.take(copies.begin([torch.ones(SIZE).pin_memory()]))
    torch.cuda.synchronize(DEVICE)
    copies.wait()
    source = [torch.ones(SIZE).pin_memory()]
    busy(5 * LONG)
    passed = torch.cuda.Event()  # type: ignore[no-untyped-call]
    passed.record()
    torch.cuda.set_sync_debug_mode("error")
    try:
        moved = copies.begin(source)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    copies.wait()
    assert not passed.query()  # type: ignore[no-untyped-call]
    assert extremes(copies.take(moved)).tolist() == [1.0, 1.0]


class OneBuffer:
    """Gives each batch in the same page-locked memory."""

    def __init__(self) -> None:
        self.buffer = torch.empty(SIZE).pin_memory()

    def __len__(self) -> int:
        return BATCHES

    def __iter__(self) -> Iterator[Any]:
        for number in range(BATCHES):
            yield [self.buffer.fill_(float(number))]


def test_a_loader_may_use_its_memory_again() -> None:
    copies = CopyStream(DEVICE)
    batches = PrefetchedBatches(training_batches(OneBuffer(), 1, 3, pin_memory=True), copies)
    seen = []
    for _ in range(BATCHES):
        with torch.cuda.stream(copies._stream):
            busy(2_000_000)  # The copy comes late.
        seen.append(extremes(batches.next()))
    assert [each.tolist() for each in seen] == [[float(n), float(n)] for n in range(BATCHES)]


def test_what_is_on_the_device_already_or_is_no_plain_tensor_stays_as_it_is() -> None:
    copies = CopyStream(DEVICE)
    there = torch.ones(4, device=DEVICE)
    batch = {"there": there, "sparse": torch.eye(2).to_sparse(), "text": "a", "here": torch.ones(3)}
    moved = copies.take(copies.begin(batch))
    assert moved["there"] is there
    assert moved["sparse"] is batch["sparse"]
    assert moved["text"] == "a"
    assert moved["here"].tolist() == [1.0, 1.0, 1.0]
    assert moved["here"].device == DEVICE
    data = TensorDataset(torch.arange(8, device=DEVICE))
    held = BatchStream(data, 4, 3, pin_memory=True)
    assert PrefetchedBatches(held, copies).next()[0].device == DEVICE


def test_steps_are_those_of_a_run_without_also_after_going_back() -> None:
    generator = torch.Generator().manual_seed(1)
    x, y = torch.randn(256, 4, generator=generator), torch.randn(256, 1, generator=generator)

    def trained(*, ahead: bool) -> tuple[dict[str, Tensor], int]:
        plain = training_batches(TensorDataset(x, y), 16, 3, timeline=1, pin_memory=True)
        batches = prefetched(plain, DEVICE, wanted=ahead)
        model: nn.Module = net().to(DEVICE)
        step = TrainStep(model, mse, OptimizerManager(None, model), DEVICE, 3)
        for count, position, timeline in ((20, 7, 2), (30, 37, 3), (9, 0, 4)):
            for _ in range(count):
                step.advance(batches, batches.timeline)
                if isinstance(batches, PrefetchedBatches):
                    batches.draw_ahead()
            batches.seek(position, timeline)
        return weights(model), batches.position

    one, other = trained(ahead=True), trained(ahead=False)
    assert one[1] == other[1] == 0
    assert equal(one[0], other[0])


def test_it_is_on_by_itself_and_off_where_it_is_not_wanted() -> None:
    plain = stream()
    on = prefetched(plain, DEVICE, wanted=True)
    assert str(feature(on, DEVICE, wanted=True)).startswith("prefetch 1 batch ahead")
    off = prefetched(plain, DEVICE, wanted=False)
    assert off is plain
    assert str(feature(off, DEVICE, wanted=False)) == "prefetch off (not wanted)"
