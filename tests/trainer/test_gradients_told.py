"""What a state packet says of gradients: those of the epoch's last step, as they were used."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import nn

from tests.trainer.conftest import Moons, Run
from tests.trainer.test_aggregation import Sampled, figures
from tests.trainer.test_seeds import live
from tolaria_bus.leyline import SystemStatePacket
from tolaria_bus.tolaria.control.mailbox import RecordingOutbound


class Kept(Moons):
    """Keeps its model, so that its gradients can be looked at."""

    made: nn.Module

    def model(self) -> nn.Module:
        self.made = super().model()
        return self.made


class Norms(RecordingOutbound):
    """Measures the gradients that are there when a state packet is sent."""

    def __init__(self, job: Kept) -> None:
        super().__init__()
        self.job = job
        self.norms: list[float] = []

    def state(self, packet: SystemStatePacket) -> None:
        super().state(packet)
        gradients = [p.grad.flatten() for p in self.job.made.parameters() if p.grad is not None]
        self.norms.append(float(torch.cat(gradients).norm()))


def told(run: Run, name: str) -> list[dict[str, float]]:
    """``gradient.NAME`` of each state packet, by whose it is."""
    head = f"gradient.{name}."
    return [
        {
            key.removeprefix(head): value
            for key, value in packet.training_metrics.items()
            if key.startswith(head)
        }
        for packet in run.outbound.states
    ]


@pytest.mark.parametrize("clip", [None, 0.01])
def test_the_packet_has_the_norm_of_the_gradient_that_the_last_step_used(
    make_run, clip: float | None
) -> None:
    job = Kept()
    run = make_run(job=job, clip_norm=clip)
    run.outbound = Norms(job)
    run.train()
    norms = run.outbound.norms
    assert len(norms) == job.epochs
    assert told(run, "norm") == [{"host": pytest.approx(norm)} for norm in norms]
    assert (max(norms) <= 0.0101) == (clip is not None)


def test_with_seeds_it_has_theirs_too_and_with_a_handler_what_that_found(make_run) -> None:
    run = make_run(job=Sampled(), aggregation="pcgrad")
    live(run)
    run.train()
    norms, shares = told(run, "norm"), told(run, "share")
    with_seeds = [place for place, share in enumerate(shares) if len(share) > 1]
    assert with_seeds
    for place in with_seeds:
        tasks = shares[place].keys()
        assert "host" in tasks
        assert sum(shares[place].values()) == pytest.approx(1.0, abs=1e-5)
        assert tasks <= norms[place].keys()
        for name in ("shared_norm", "conflicts", "left_out"):
            assert told(run, name)[place].keys() == tasks
        assert all(math.isfinite(value) for value in told(run, "shared_norm")[place].values())
    last = with_seeds[-1]
    for name in ("conflicts", "left_out"):
        for task, count in told(run, name)[last].items():
            assert count in figures(run, name)[task]


def test_without_a_handler_it_says_nothing_of_conflicts(make_run) -> None:
    run = make_run(job=Sampled())
    live(run)
    run.train()
    assert any(len(share) > 1 for share in told(run, "share"))
    assert not any(told(run, "conflicts"))
    assert not any(told(run, "shared_norm"))


class Sparse(Moons):
    """Its first layer is a table of which a batch uses some rows."""

    name = "sparse"

    def model(self) -> nn.Module:
        class Table(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.rows = nn.Embedding(50, 2, sparse=True)
                self.rest = nn.Linear(2, 2)

            def forward(self, x: Any) -> Any:
                return self.rest(self.rows((x[:, 0] * 10).long().clamp(0, 49)))

        return Table()

    def optimizer(self, params: Any) -> torch.optim.Optimizer:
        return torch.optim.SGD(params, lr=self.lr)


def test_sparse_gradients_count_too(make_run) -> None:
    run = make_run(job=Sparse(), epochs=1)
    run.train()
    ((norm,),) = (found.values() for found in told(run, "norm"))
    assert norm > 0
