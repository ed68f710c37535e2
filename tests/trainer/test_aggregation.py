"""Gradients of host and seeds in a run: set, told, killed, repeated."""

from __future__ import annotations

import math
from contextlib import closing
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812

from tests.trainer.conftest import STEPS_PER_EPOCH, Run
from tests.trainer.lives import Power
from tests.trainer.test_recovery import FailsAtOutcome, FailsAtState
from tests.trainer.test_seeds import Slotted, live
from tolaria_bus.settings import SettingError, load
from tolaria_bus.tolaria.engine.job import view
from tolaria_bus.tolaria.recovery.recording import Recording
from tolaria_bus.tolaria.recovery.run_folder import RunFolder
from tolaria_bus.tolaria.replay import Replay, recorded_settings
from tolaria_bus.tolaria.resuming import InexactResume


class Sampled(Slotted):
    """Gives the losses of single samples."""

    def loss(self, model: nn.Module, batch: Any, reduction: str = "mean") -> Tensor:
        x, y = batch
        return F.cross_entropy(model(x), y, reduction=reduction)


def figures(run: Run, name: str) -> dict[str, list[float]]:
    """The values of ``tolaria.gradients.NAME``, by task."""
    found: dict[str, list[float]] = {}
    for packet, _ in run.outbound.packets:
        for point in packet.metrics:
            if point.name == f"tolaria.gradients.{name}":
                found.setdefault(point.attributes["task"], []).append(point.value)
    return found


def steer(run: Run) -> None:
    """A seed's whole life; conservative for some steps of it, and a rollback into it."""
    live(run)
    for at, on in ((26, "true"), (30, "false")):
        run.send(
            f'{{"commandId": "m{at}", "commandType": "MODE", "mode": {{"conservative": {on}}}}}',
            at_step=at,
        )
    run.send('{"commandId": "back", "commandType": "ROLLBACK"}', at_step=37)


@pytest.mark.parametrize("aggregation", ["pcgrad", "mgda"])
def test_a_run_with_a_handler_is_another_run_and_repeatable(make_run, aggregation) -> None:
    runs = [
        make_run(name, job=Sampled(), aggregation=handler)
        for name, handler in [("a", aggregation), ("b", aggregation), ("c", "none")]
    ]
    for run in runs:
        live(run)
    first, second, without = (run.train().weights_sha256 for run in runs)
    assert first == second
    assert first != without


# Outcomes: of the mode while the seed is blended in, and of the rollback; ends of epochs.
@pytest.mark.parametrize("power", ["outcome-14", "outcome-16", "state-2", "state-3"])
def test_power_lost_while_seeds_are_tasks_ends_in_the_same_bits(make_run, tmp_path, power) -> None:
    kind, nth = power.split("-")
    settings = {"aggregation": "pcgrad", "checkpoint_every_steps": 5, "checkpoint_keep": 99}
    run = make_run("run", job=Sampled(), **settings)
    fails = {"outcome": FailsAtOutcome, "state": FailsAtState}[kind]
    run.outbound = fails(Power(run.path, tmp_path / "copy"), int(nth))
    steer(run)
    reference = run.train()
    assert reference.timeline == 2
    again = make_run("copy", job=Sampled(), **settings)
    steer(again)
    resumed = again.train()
    assert resumed.resumed_from
    assert resumed.weights_sha256 == reference.weights_sha256


def test_a_steered_run_is_repeated_from_its_journal_with_the_recorded_handler(
    make_run, tmp_path
) -> None:
    run = make_run(job=Sampled(), aggregation="pcgrad")
    steer(run)
    recorded = run.train()
    recording = Recording.read(run.path)
    given, _ = load()
    settings = recorded_settings(recording, given)
    assert settings.aggregation == "pcgrad"
    with closing(RunFolder.open(tmp_path / "again")) as folder:
        repeated = Replay(view(Sampled()), settings, recording, folder).run()
    assert repeated.same_bits
    assert repeated.run.weights_sha256 == recorded.weights_sha256


def test_conservative_mode_turns_the_handler_off(make_run) -> None:
    runs = [
        make_run(name, job=Sampled(), aggregation=handler, steps=40)
        for name, handler in [("pcgrad", "pcgrad"), ("none", "none")]
    ]
    for run in runs:
        live(run, until="START_GRAFTING")
        run.send(
            '{"commandId": "m", "commandType": "MODE", "mode": {"conservative": true}}', at_step=20
        )
    one, other = (run.train() for run in runs)
    assert one.weights_sha256 == other.weights_sha256


def test_telemetry_tells_of_each_task_while_there_are_several(make_run) -> None:
    run = make_run(job=Sampled(), aggregation="pcgrad")
    live(run)
    run.train()
    weights = figures(run, "weight")
    assert weights.keys() == {"host", "s1"}
    assert set(weights["host"]) == {1.0}
    assert weights["s1"][0] < 0.5
    assert weights["s1"][-1] == 1.0  # FINE_TUNE
    alphas = figures(run, "alpha")
    assert alphas.keys() == {"s1"}
    assert alphas["s1"] == sorted(alphas["s1"])
    shares = figures(run, "share")
    for host, seed in zip(shares["host"], shares["s1"], strict=True):
        assert host + seed == pytest.approx(1.0, abs=1e-5)
    assert max(shares["s1"]) > 0
    assert all(norm > 0 for norm in figures(run, "norm")["host"])
    assert all(norm > 0 for norm in figures(run, "own_norm")["s1"])
    conflicts = figures(run, "conflicts")
    assert conflicts["s1"] == sorted(conflicts["s1"])
    assert set(figures(run, "left_out")["s1"]) == {0.0}
    assert figures(run, "mask") == {
        "host": [16 * 2 + 16 + 2 * 16 + 16 * 2 + 2] * len(weights["host"]),
        "s1": [figures(run, "mask")["s1"][0]] * len(weights["s1"]),
    }
    (engine,) = [
        event.attributes
        for packet, _ in run.outbound.packets
        for event in packet.events
        if event.event_id == "engine"
    ]
    assert (engine["aggregation"], engine["attribution"]) == ("pcgrad", "by sample")
    assert run.outbound.alerts() == []


def test_without_losses_of_samples_seeds_are_the_hosts_and_the_run_says_so(make_run) -> None:
    run = make_run(job=Slotted())
    live(run)
    run.train()
    assert figures(run, "weight") == {}
    (engine,) = [
        event
        for packet, _ in run.outbound.packets
        for event in packet.events
        if event.event_id == "engine"
    ]
    assert "attribution off (the job gives no losses of samples)" in engine.description


class Carries(Sampled):
    """Its loader says whose a sample is, and for one in each batch something that can't be."""

    def train_data(self) -> Any:
        x, y = super().train_data().tensors
        share = torch.full((len(x),), 0.25)
        share[:: self.batch_size] = math.nan
        return [{"x": x[i], "y": y[i], "attribution": {"s1": share[i]}} for i in range(len(x))]

    def validation_data(self) -> Any:
        x, y = super().validation_data().tensors
        return [{"x": x[i], "y": y[i]} for i in range(len(x))]

    def loss(self, model: nn.Module, batch: Any, reduction: str = "mean") -> Tensor:
        return super().loss(model, (batch["x"], batch["y"]), reduction)

    def accuracy(self, model: nn.Module, batch: Any) -> Tensor:
        return super().accuracy(model, (batch["x"], batch["y"]))


def test_a_loader_may_carry_the_attribution_and_what_is_wrong_with_it_is_told(make_run) -> None:
    run = make_run(job=Carries(), aggregation="pcgrad", steps=2 * STEPS_PER_EPOCH)
    live(run, until="START_GRAFTING")
    run.train()
    # Of 32 samples some are the host's for what was wrong with them.
    found = set(figures(run, "share")["s1"])
    assert found <= {(32 - wrong) / 128 for wrong in range(17)}
    assert len(found) > 1
    (alert, *_) = run.outbound.alerts()
    assert alert.events[0].event_id == "attribution_refused"
    assert "they count as the host's" in alert.events[0].description


class Spoils(Sampled):
    """Its gradient, and not its loss, is no number in one step."""

    calls = 0

    def loss(self, model: nn.Module, batch: Any, reduction: str = "mean") -> Tensor:
        found = super().loss(model, batch, reduction)
        if reduction == "none" and model.training:
            self.calls += 1
            if self.calls == 5:
                found.register_hook(lambda gradient: gradient * math.nan)  # type: ignore[no-untyped-call]
        return found


def test_a_gradient_that_is_not_finite_is_left_out_with_an_alert(make_run) -> None:
    run = make_run(job=Spoils(), aggregation="pcgrad", steps=30)
    live(run, until="START_GRAFTING")
    summary = run.train()
    assert summary.timeline == 1
    assert math.isfinite(summary.loss)
    told = [alert.events[0] for alert in run.outbound.alerts()]
    assert {event.event_id for event in told} == {"gradient_left_out"}
    assert {event.attributes["task"] for event in told} == {"host", "s1"}


@pytest.mark.parametrize(
    ("job", "settings", "words"),
    [
        (Sampled, {"aggregation": "pcgrap"}, r"aggregation = 'pcgrap': there are none, pcgrad, "),
        (Sampled, {"aggregation": "gradvac"}, "a state between steps that no checkpoint has"),
        (Slotted, {"aggregation": "pcgrad"}, "'moons' gives no losses of single samples"),
        (Sampled, {"aggregation": "mgda", "amp": "fp16"}, "allowed with it: none, pcgrad"),
    ],
)
def test_a_handler_that_cannot_be_had_is_a_wrong_setting(make_run, job, settings, words) -> None:
    with pytest.raises(SettingError, match=words):
        make_run(job=job(), **settings).train()


def test_a_resume_with_another_handler_is_not_bit_for_bit_and_is_refused(make_run) -> None:
    make_run(job=Sampled(), steps=2).train()
    with pytest.raises(InexactResume, match=r"engine\.aggregation none -> pcgrad"):
        make_run(job=Sampled(), steps=4, aggregation="pcgrad").train()
