"""Seeds on the side of a run with fp16, and of a host that changes frozen parameters itself."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tests.trainer.lives import Power
from tests.trainer.test_recovery import FailsAtState
from tests.trainer.test_seeds import Slotted, live, seed
from tolaria_bus.kasmina import SeedSlot


class Momentum(Slotted):
    """A momentum encoder inside the model, updated by its forward."""

    def model(self) -> nn.Module:
        class Pair(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.encoder = nn.Linear(2, 16)
                self.target = nn.Linear(2, 16).requires_grad_(False)
                self.slot = SeedSlot(16, "linear")
                self.head = nn.Linear(16, 2)

            def forward(self, x: Tensor) -> Tensor:
                if self.training:
                    with torch.no_grad():
                        self.target.weight.lerp_(self.encoder.weight, 0.1)
                        self.target.bias.lerp_(self.encoder.bias, 0.1)
                x = torch.relu(self.encoder(x) + self.target(x))
                logits: Tensor = self.head(self.slot(x))
                return logits

        return Pair()


SETTINGS: Any = {"checkpoint_every_steps": 7, "checkpoint_keep": 100}


@pytest.mark.parametrize("amp", ["off", "fp16"])
@pytest.mark.parametrize("job", [Slotted, Momentum])
def test_a_seed_that_was_culled_changed_no_bit(make_run, job, amp) -> None:
    without = make_run("without", job=job(), amp=amp, steps=40).train()
    run = make_run("with", job=job(), amp=amp, steps=40)
    live(run, until="START_TRAINING")
    seed(run, "CULL", 30)
    assert run.train().weights_sha256 == without.weights_sha256
    assert "seed_failed" not in run.events()
    assert run.outcome("CULL-30").code == "ok"


@pytest.mark.parametrize(("job", "amp"), [(Slotted, "fp16"), (Momentum, "off"), (Momentum, "fp16")])
@pytest.mark.parametrize("nth", [1, 2])
def test_power_lost_while_it_learns_ends_in_the_same_bits(
    make_run, tmp_path, job, amp, nth
) -> None:
    run = make_run("run", job=job(), amp=amp, **SETTINGS)
    run.outbound = FailsAtState(Power(run.path, tmp_path / "copy"), nth)
    live(run)
    reference = run.train()
    again = make_run("copy", job=job(), amp=amp, **SETTINGS)
    live(again)
    resumed = again.train()
    assert resumed.resumed_from
    assert resumed.weights_sha256 == reference.weights_sha256


def test_with_fp16_a_seed_comes_through_its_gates(make_run) -> None:
    run = make_run(job=Slotted(), amp="fp16")
    live(run)
    run.train()
    assert run.outcome("START_GRAFTING-20").code == "ok"
    assert run.outcome("FOSSILIZE-50").code == "ok"
