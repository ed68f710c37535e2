"""What the step does beyond the plain loop, in a run that is killed."""

from __future__ import annotations

import os
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tests.engine.test_passes import Backend, named
from tests.trainer.conftest import STEPS_PER_EPOCH, Moons, Run
from tests.trainer.lives import Power
from tests.trainer.test_recovery import FailsAtOutcome, FailsAtState
from tests.trainer.test_seeds import Hooked, Slotted, applied, live
from tolaria_bus.settings import SettingError, load
from tolaria_bus.tolaria.recovery.journal import read_records
from tolaria_bus.tolaria.resuming import InexactResume
from tolaria_bus.tolaria.start import pick_device


def grow(run: Run) -> None:
    run.send(
        """{"commandId": "seed", "commandType": "SEED", "targetSeedId": "s1",
        "seedOperation": {"operation": "GERMINATE", "blueprintId": "residual_mlp"}}""",
        at_step=19,
    )


class BreaksSecond(Backend):
    """Compiles the first structure it is given, and no other."""

    def __call__(self, graph, inputs):
        self.broken = "compile" if self.compiled else ""
        return super().__call__(graph, inputs)


def test_a_compile_that_fails_after_a_seed_grew_is_journaled_and_never_tried_again(
    make_run, tmp_path
) -> None:
    plain = make_run("plain")
    grow(plain)
    reference = plain.train()

    run = make_run("run", compile="probe", checkpoint_every_epochs=3)
    run.outbound = FailsAtState(Power(run.path, tmp_path / "copy"), 3)
    grow(run)
    backend = BreaksSecond()
    with named(backend):
        assert run.train().weights_sha256 == reference.weights_sha256
    assert backend.compiled == 2
    assert run.events().count("engine_fallback") == 1
    decisions = [each for each in read_records(run.path) if each.HasField("decision")]
    (fallback,) = [each for each in decisions if each.decision.kind == "fallback"]
    assert (fallback.step, fallback.decision.values["feature"]) == (19, "compile")

    # From before that step: the journal says when to stop compiling.
    again = make_run("copy", compile="probe", checkpoint_every_epochs=3)
    with named(works := Backend()):
        assert again.train().weights_sha256 == reference.weights_sha256
    assert (works.compiled, "engine_fallback" in again.events()) == (1, False)
    # From behind it: the checkpoint says that it failed.
    later = make_run("run", compile="probe", epochs=5)
    with named(unused := Backend()):
        later.train()
    assert (unused.compiled, "engine_fallback" in later.events()) == (0, False)


@pytest.mark.parametrize(
    "settings", [{"accumulate": 3}, {"amp": "fp16"}, {"amp": "bf16", "clip_norm": 0.5}]
)
def test_power_lost_anywhere_ends_in_the_same_bits(make_run, tmp_path, settings) -> None:
    # All are kept: the copy is taken while a checkpoint may be written.
    settings = {"checkpoint_every_steps": 5, "checkpoint_keep": 99, **settings}
    run = make_run("run", **settings)
    run.outbound = FailsAtOutcome(Power(run.path, tmp_path / "copy"), 2)
    for one in (
        run,
        again := make_run("copy", **settings),
    ):
        grow(one)
    reference = run.train()
    assert again.train().weights_sha256 == reference.weights_sha256
    batches = settings.get("accumulate", 1)
    assert reference.steps == 4 * -(-STEPS_PER_EPOCH // batches)
    assert reference.epochs == 4


@pytest.mark.parametrize("job", [Slotted, Hooked])
def test_what_is_compiled_follows_a_seed_through_its_life(make_run, job) -> None:
    plain = make_run("plain", job=job())
    live(plain)
    reference = plain.train()
    run = make_run("run", job=job(), compile="probe")
    live(run)
    with named(backend := Backend()):
        assert run.train().weights_sha256 == reference.weights_sha256
    assert backend.compiled > 1
    assert applied(run) == applied(plain)
    assert "engine_fallback" not in run.events()


class ValidatesInFloat32(Moons):
    """In eval mode its model can't run under autocast."""

    def loss(self, model: nn.Module, batch: Any) -> Tensor:
        if not model.training and torch.is_autocast_enabled("cpu"):
            raise RuntimeError("no such kernel")
        return super().loss(model, batch)


def test_a_model_that_autocast_fails_in_validation_alone_is_trained_with_it_to_the_end(
    make_run,
) -> None:
    reference = make_run("reference", amp="bf16").train()
    run = make_run("run", job=ValidatesInFloat32(), amp="bf16")
    assert run.train().weights_sha256 == reference.weights_sha256
    told = [event for event in run.events() if event in ("validation_fallback", "engine_fallback")]
    assert told == ["validation_fallback"]


def test_a_run_says_at_its_start_what_is_on_and_why_the_rest_is_off(make_run) -> None:
    run = make_run(steps=2, clip_norm=1.0)
    run.train()
    (event,) = [
        event
        for packet, _ in run.outbound.packets
        for event in packet.events
        if event.event_id == "engine"
    ]
    assert event.description.startswith("clip norm 1; ")
    assert "compile off (not asked for)" in event.description
    points = {
        point.name: point.value for packet, _ in run.outbound.packets for point in packet.metrics
    }
    assert (points["tolaria.engine.clip"], points["tolaria.engine.amp"]) == (1.0, 0.0)


def test_a_resume_with_another_precision_is_not_bit_for_bit_and_is_refused(make_run) -> None:
    make_run(steps=2).train()
    with pytest.raises(InexactResume, match=r"engine\.amp none -> bf16"):
        make_run(steps=4, amp="bf16").train()


def test_a_pattern_that_names_no_module_is_a_wrong_setting(make_run) -> None:
    with pytest.raises(
        SettingError, match=r"activation_checkpointing = 'nothing': names no module"
    ):
        make_run(activation_checkpointing="nothing").train()


@pytest.mark.parametrize(
    ("deterministic", "before", "after"),
    [(True, None, ":4096:8"), (True, ":16:8", ":16:8"), (False, None, None)],
)
def test_a_deterministic_run_asks_cublas_for_the_same_bits(
    monkeypatch, deterministic: bool, before: str | None, after: str | None
) -> None:
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", before or "")
    if before is None:
        monkeypatch.delenv("CUBLAS_WORKSPACE_CONFIG")
    settings, _ = load(device="cpu", deterministic=deterministic)
    pick_device(settings)
    assert os.environ.get("CUBLAS_WORKSPACE_CONFIG") == after
