"""Buffers that a model only makes, or makes larger, as it runs come back like any other state."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from tests.trainer.conftest import Moons


class Remembers(nn.Module):
    """Keeps the mean of each sample of the last batch, and a list of all batches' means."""

    last: Tensor | None
    means: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("last", None)
        self.register_buffer("means", torch.zeros(0), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        before = x.new_zeros(()) if self.last is None else self.last.mean()
        if self.training:
            self.last = x.detach().mean(1)
            self.means = torch.cat([self.means, before.reshape(1)])
        return x + 0.1 * before + 0.01 * self.means.sum()


class Stateful(Moons):
    def model(self) -> nn.Module:
        return nn.Sequential(Remembers(), super().model())


def test_a_resumed_run_has_the_buffers_that_came_and_grew(make_run) -> None:
    reference = make_run("reference", job=Stateful()).train()
    make_run("run", job=Stateful(), steps=9).train()
    run = make_run("run", job=Stateful())
    assert run.train().weights_sha256 == reference.weights_sha256


def test_a_rollback_gives_them_back_at_their_size_of_then(make_run) -> None:
    run = make_run(job=Stateful(), snapshot_every_steps=4)
    run.send("""{"commandId": "back", "commandType": "ROLLBACK"}""", at_step=18)
    run.train()
    assert ("back", "APPLIED", 16) in run.outcomes()
