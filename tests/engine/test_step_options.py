"""What a step does beyond the plain loop, against the same thing in a plain loop."""

import json
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import TensorDataset

from tests.engine.test_step import CPU, batches, equal, mse, net, weights
from tolaria_bus.tolaria.engine import (
    BatchStream,
    LearningRateController,
    OptimizerManager,
    StepOptions,
    StepState,
    TrainStep,
)
from tolaria_bus.tolaria.engine.activation import checkpoint_activations
from tolaria_bus.tolaria.engine.options import features, line
from tolaria_bus.tolaria.engine.step import clip_gradients


def plain_net() -> Any:
    torch.default_generator.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 1))


def adamw(model: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.AdamW(model.parameters(), lr=1e-3, fused=True)


def stepper(model: nn.Module, state: StepState | None = None, **options: Any) -> TrainStep:
    manager = OptimizerManager(None, model)
    return TrainStep(model, mse, manager, CPU, 3, options=StepOptions(**options), state=state)


def stream(count: int = 8) -> BatchStream:
    generator = torch.Generator().manual_seed(1)
    data = TensorDataset(
        torch.randn(4 * count, 4, generator=generator),
        torch.randn(4 * count, 1, generator=generator),
    )
    return BatchStream(data, 4, 0, timeline=1)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_autocast_is_torchs_with_a_scaler_for_fp16(dtype):
    model, bare = plain_net(), plain_net()
    step = stepper(model, amp="bf16" if dtype is torch.bfloat16 else "fp16")
    optimizer = adamw(bare)
    scaler = torch.amp.GradScaler("cpu", enabled=dtype is torch.float16)
    for position, batch in enumerate(batches(6)):
        optimizer.zero_grad()
        with torch.autocast("cpu", dtype):
            loss = mse(bare, batch)
        scaler.scale(loss).backward()  # type: ignore[no-untyped-call]
        scaler.step(optimizer)
        scaler.update()
        assert torch.equal(step(batch, position, 1), loss.detach())
    assert equal(weights(model), weights(bare))


def test_gradients_that_overflow_skip_the_step_and_lower_the_scale_which_survives():
    def run(model: Any, state: StepState, start: int, stop: int) -> None:
        step = stepper(model, state, amp="fp16")
        for position, batch in list(enumerate(batches(6)))[start:stop]:
            x = batch[0] * (1e4 if position == 1 else 1.0)
            step((x, batch[1]), position, 1)

    model, state = plain_net(), StepState(CPU, fp16=True)
    run(model, state, 0, 6)
    before = plain_net()
    again, saved = plain_net(), StepState(CPU, fp16=True)
    run(again, saved, 0, 1)
    scale = saved.state_dict()["scaler"]["scale"]
    before.load_state_dict(again.state_dict())
    run(again, saved, 1, 2)
    assert equal(weights(again), weights(before))
    written = json.loads(json.dumps(saved.state_dict()))
    assert written["scaler"]["scale"] == scale / 2
    other = StepState(CPU, fp16=True)
    other.load_state_dict(written)
    assert other.state_dict() == written
    assert state.state_dict()["scaler"]["scale"] == scale / 2
    other.load_state_dict({})
    assert other.state_dict()["scaler"]["scale"] == 2.0**16


def test_accumulated_gradients_are_those_of_the_plain_loop_and_no_step_goes_over_an_epoch():
    model, bare = plain_net(), plain_net()
    step, optimizer = stepper(model, accumulate=3), adamw(bare)
    ours, theirs = stream(), stream()
    for count in (3, 3, 2, 3, 3, 2):
        optimizer.zero_grad()
        total: Any = 0.0
        for _ in range(count):
            loss = mse(bare, theirs.next())
            (loss * (1.0 / count)).backward()  # type: ignore[no-untyped-call]
            total = total + loss.detach()
        optimizer.step()
        assert torch.equal(step.advance(ours, 1), total / count)
        assert ours.position == theirs.position
    assert equal(weights(model), weights(bare))


def test_a_batch_at_a_time_is_a_step_too():
    model, bare = plain_net(), plain_net()
    one, other = stepper(model), stepper(bare)
    ours, theirs = stream(), stream()
    for position in range(5):
        one.advance(ours, 1)
        other(theirs.next(), position, 1)
    assert equal(weights(model), weights(bare))


def test_clipping_is_torchs() -> None:
    model, bare = plain_net(), plain_net()
    step = TrainStep(
        model, mse, OptimizerManager(None, model), CPU, 3, options=StepOptions(clip_norm=0.1)
    )
    optimizer = adamw(bare)
    for position, batch in enumerate(batches(4)):
        optimizer.zero_grad()
        mse(bare, batch).backward()  # type: ignore[no-untyped-call]
        nn.utils.clip_grad_norm_(bare.parameters(), 0.1)
        optimizer.step()
        step(batch, position, 1)
    assert equal(weights(model), weights(bare))


def test_a_seed_that_learns_is_clipped_by_itself_and_a_fossil_with_the_host() -> None:
    def group(name: str, *gradients: float) -> dict[str, Any]:
        parameters = [nn.Parameter(torch.zeros(1)) for _ in gradients]
        for parameter, gradient in zip(parameters, gradients, strict=True):
            parameter.grad = torch.tensor([gradient])
        return {"name": name, "params": parameters}

    groups = [
        group("host", 2.0),
        group("host.1", 3.0),
        group("seed:f", 6.0),
        group("seed:s.1", 9.0),
    ]
    clip_gradients(groups, 1.4, ["seed:s.1"])
    found = [float(p.grad.item()) for each in groups for p in each["params"]]
    # 2, 3 and 6 have a norm of 7.
    assert found == pytest.approx([0.4, 0.6, 1.2, 1.4])


def test_a_rate_that_the_jobs_own_loss_sets_is_put_right_before_the_update():
    model, bare = plain_net(), plain_net()
    manager = OptimizerManager(None, model)
    rates = LearningRateController(manager, None, 10)
    found: list[Any] = []

    def loss(model: nn.Module, batch: Any) -> Tensor:
        manager.param_groups[0]["lr"] = 5.0
        return mse(model, batch)

    step = TrainStep(
        model, loss, manager, CPU, 3, before_update=lambda: found.extend(rates.apply(len(found)))
    )
    other = stepper(bare)
    for position, batch in enumerate(batches(3)):
        step(batch, position, 1)
        other(batch, position, 1)
    assert [correction.found for correction in found] == [5.0] * 3
    assert equal(weights(model), weights(bare))


def test_channels_last_reaches_the_images():
    seen: list[bool] = []

    def loss(model: nn.Module, batch: Any) -> Tensor:
        seen.append(batch[0].is_contiguous(memory_format=torch.channels_last))
        out: Tensor = model(batch[0]).square().mean()
        return out

    model = nn.Conv2d(3, 4, 3)
    model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    step = TrainStep(
        model, loss, OptimizerManager(None, model), CPU, 3, options=StepOptions(channels_last=True)
    )
    step((torch.randn(2, 3, 8, 8), torch.zeros(2)), 0, 1)
    assert seen == [True]


def test_activation_checkpointing_gives_the_same_bits_and_keeps_the_names():
    def dropping() -> Any:
        torch.default_generator.manual_seed(0)
        blocks = [nn.Sequential(nn.Linear(4, 4), nn.Dropout(0.5), nn.Tanh()) for _ in range(3)]
        return nn.Sequential(nn.Sequential(*blocks), nn.Linear(4, 1))

    model, bare = dropping(), dropping()
    assert checkpoint_activations(model, "0.*") == 3
    runs = [(model, stepper(model)), (bare, stepper(bare))]
    for position, batch in enumerate(batches(4)):
        losses = [step(batch, position, 1) for _, step in runs]
        assert torch.equal(*losses)
    assert equal(weights(model), weights(bare))
    model.eval()
    model(batches(1)[0][0])


@pytest.mark.parametrize(
    ("pattern", "words"), [("x.*", "at its top are 0, 1, 2, 3"), ("*", "names 1, in which a Batch")]
)
def test_activation_checkpointing_that_cannot_be_is_refused(pattern, words):
    with pytest.raises(ValueError, match=words):
        checkpoint_activations(net(), pattern)


def test_one_line_says_what_is_on_and_why_the_rest_is_off():
    optimizer = adamw(plain_net())
    text = line(features(StepOptions(amp="auto", clip_norm=1.0), CPU, optimizer=optimizer))
    assert text == (
        "optimizer fused; clip norm 1; compile off (not asked for); "
        "amp off (auto: a cpu gains nothing by it); scaler off (fp16 alone needs it); "
        "tf32 off (the device is a cpu); pinned memory off (the device is a cpu); "
        "accumulate off (not asked for); channels last off (not asked for); "
        "attribution off (the job gives no losses of samples); aggregation off (not asked for); "
        "activation checkpointing off (not asked for)"
    )
    fallen = features(
        StepOptions(compile="on"), CPU, optimizer=optimizer, fallen={"compile": "no compiler"}
    )
    assert "compile off (it failed: no compiler)" in line(fallen)


def test_the_line_says_how_seeds_are_told_apart_and_what_that_means_for_compile():
    options = StepOptions(aggregation="pcgrad", compile="on")
    text = line(features(options, CPU, optimizer=adamw(plain_net()), sample_losses=True))
    assert text.startswith(
        "compile inductor (eager while pcgrad handles seeds' gradients); optimizer fused; "
        "attribution by sample; aggregation pcgrad; "
    )


def test_only_what_changes_a_runs_numbers_counts_as_another_environment():
    assert StepOptions(activation_checkpointing="*").changes_numbers() == {}
    assert StepOptions(amp="bf16", accumulate=2).changes_numbers() == {
        "engine.accumulate": "2",
        "engine.amp": "bf16",
    }


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("amp", ["off", "bf16", "fp16"])
def test_on_cuda_a_step_is_the_plain_loops_too(amp):
    device = torch.device("cuda", 0)
    model, bare = plain_net().to(device), plain_net().to(device)
    manager = OptimizerManager(None, model)
    options = StepOptions(amp=amp, accumulate=1, clip_norm=1.0)
    step = TrainStep(model, mse, manager, device, 3, options=options)
    optimizer = adamw(bare)
    dtype = {"bf16": torch.bfloat16, "fp16": torch.float16}.get(amp)
    scaler = torch.amp.GradScaler("cuda", enabled=amp == "fp16")
    for position, batch in enumerate(batches(4)):
        moved = tuple(t.to(device) for t in batch)
        optimizer.zero_grad()
        with torch.autocast("cuda", dtype or torch.bfloat16, enabled=dtype is not None):
            loss = mse(bare, moved)
        scaler.scale(loss).backward()  # type: ignore[no-untyped-call]
        scaler.unscale_(optimizer)
        nn.utils.clip_grad_norm_(bare.parameters(), 1.0)
        scaler.step(optimizer)
        scaler.update()
        assert torch.equal(step(batch, position, 1), loss.detach())
    assert equal(weights(model), weights(bare))
