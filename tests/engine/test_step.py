from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812

from tolaria_bus.tolaria.engine import JobError, OptimizerManager, StepOptions, TrainStep

CPU = torch.device("cpu")


def net(seed: int = 0) -> Any:
    torch.default_generator.manual_seed(seed)
    return nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.Dropout(0.3), nn.Linear(8, 1))


def mse(model: nn.Module, batch: Any) -> Tensor:
    x, y = batch
    return F.mse_loss(model(x), y)


def batches(count: int):
    generator = torch.Generator().manual_seed(1)
    return [
        (torch.randn(16, 4, generator=generator), torch.randn(16, 1, generator=generator))
        for _ in range(count)
    ]


def weights(model: nn.Module) -> dict[str, torch.Tensor]:
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


def equal(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def trained(steps, *, disturb: bool = False, timeline: int = 0) -> dict[str, torch.Tensor]:
    model = net()
    step = TrainStep(model, mse, OptimizerManager(None, model), CPU, seed=3)
    for position, batch in enumerate(steps):
        if disturb:
            torch.rand(position + 1)
        step(batch, position, timeline)
    return weights(model)


def test_a_step_is_the_bare_loops_step():
    model, bare = net(), net()
    bare[2].p = model[2].p = 0.0  # The bare loop draws its dropout elsewhere.
    optimizer = torch.optim.AdamW(bare.parameters(), lr=1e-3)
    step = TrainStep(model, mse, OptimizerManager(lambda p: torch.optim.AdamW(p), model), CPU, 0)
    for position, batch in enumerate(batches(5)):
        optimizer.zero_grad()
        loss = mse(bare, batch)
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        assert torch.equal(step(batch, position, 0), loss.detach())
    assert equal(weights(model), weights(bare))


def test_steps_are_a_pure_function_of_state_and_position():
    data = batches(6)
    assert equal(trained(data), trained(data, disturb=True))
    assert not equal(trained(data), trained(data, timeline=1))


def test_the_loss_is_detached_and_no_gradient_is_left_from_the_step_before():
    model = net()
    step = TrainStep(model, mse, OptimizerManager(None, model), CPU, 0)
    batch = batches(1)[0]
    assert not step(batch, 0, 0).requires_grad
    first = model[0].weight.grad
    step(batch, 1, 0)
    assert model[0].weight.grad is not first


@pytest.mark.parametrize(
    ("loss", "words"),
    [
        (lambda model, batch: 1.5, "returned a float"),
        (lambda model, batch: (model(batch[0]) - batch[1]) ** 2, r"tensor of shape \(16, 1\)"),
        (lambda model, batch: torch.tensor(1.0), "needs no gradient"),
        (lambda model, batch: model(batch[1]).mean(), r"failed at .*test_step.py:\d+: Runtime"),
        (lambda model, batch: batch[2], "IndexError: tuple index out of range"),
    ],
)
def test_a_wrong_loss_is_one_line_and_changes_no_weight(loss, words):
    model = net()
    before = weights(model)["0.weight"]
    step = TrainStep(model, loss, OptimizerManager(None, model), CPU, 0)
    with pytest.raises(JobError, match=words) as error:
        step(batches(1)[0], 0, 0)
    assert "\n" not in str(error.value)
    assert torch.equal(model[0].weight, before)


def test_an_optimizer_made_anew_between_two_steps_is_used():
    model = net()
    manager = OptimizerManager(None, model)
    step = TrainStep(model, mse, manager, CPU, 0)
    manager.optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
    before = model[3].bias.detach().clone()
    step(batches(1)[0], 0, 0)
    assert torch.equal(model[3].bias, before - model[3].bias.grad)


@pytest.mark.parametrize("clip", [None, 1.0])
def test_gradients_that_the_optimizer_cannot_take_are_one_line(clip) -> None:
    model = nn.Sequential(nn.EmbeddingBag(9, 4, sparse=True), nn.Linear(4, 1))
    manager = OptimizerManager(lambda p: torch.optim.AdamW(p), model)
    step = TrainStep(
        model,
        lambda model, batch: model(batch).sum(),
        manager,
        CPU,
        3,
        options=StepOptions(clip_norm=clip),
    )
    with pytest.raises(JobError, match="the job: the step of AdamW failed: ") as failed:
        step(torch.zeros(2, 3, dtype=torch.int64), 0, 1)
    assert len(str(failed.value)) < 800
