"""A step that finds no memory ends its process with an alert; the next one goes on, to the bit."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tests.trainer.conftest import Moons
from tolaria_bus.tolaria.recovery.journal import read_records


class Hungry(Moons):
    """Finds no memory in a step of a process, once: its 23rd."""

    def __init__(self, error: BaseException, at: int = 23) -> None:
        super().__init__()
        self.error: BaseException | None = error
        self.at = at
        self.calls = 0

    def loss(self, model: nn.Module, batch: Any) -> Tensor:
        loss: Tensor = super().loss(model, batch)
        self.calls += model.training
        if self.calls == self.at and self.error is not None:
            error, self.error = self.error, None
            raise error
        return loss


@pytest.mark.parametrize(
    "error", [MemoryError("no memory"), torch.OutOfMemoryError("CUDA out of memory")]
)
def test_a_run_without_memory_says_so_and_ends_with_the_bits_of_one_that_had_some(
    make_run, error: BaseException
) -> None:
    run = make_run(job=Hungry(error))
    with pytest.raises(Exception, match="memory"):
        run.train()
    (alert,) = run.outbound.alerts()
    assert alert.events[0].event_id == "training_failed"
    assert str(error) in alert.events[0].description
    summary = make_run().train()
    assert summary.weights_sha256 == make_run("whole").train().weights_sha256
    assert sum(record.HasField("started") for record in read_records(run.path)) == 2


def test_one_that_fails_while_it_makes_steps_again_says_so_as_loudly(make_run) -> None:
    run = make_run(job=Hungry(MemoryError("no memory")))
    run.send('{"commandId": "a", "commandType": "CONTINUE"}', at_step=22)
    with pytest.raises(Exception, match="memory"):
        run.train()
    # From the checkpoint of the epoch's end, step 16, on; the command is yet to be done again.
    again = make_run(job=Hungry(MemoryError("none yet"), at=3))
    with pytest.raises(Exception, match="none yet"):
        again.train()
    (alert,) = again.outbound.alerts()
    assert alert.events[0].event_id == "training_failed"
    assert "none yet" in alert.events[0].description
