from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812
from torch.utils.data import TensorDataset

from tolaria_bus.tolaria.engine import JobError, Validation, ValidationBatches, validate, view
from tolaria_bus.tolaria.engine.passes import Passes
from tolaria_bus.tolaria.engine.precision import StepState

from .jobs_for_tests import Line

CPU = torch.device("cpu")


class Judged(Line):
    def __init__(self) -> None:
        super().__init__()
        self.modes: list[tuple[bool, bool]] = []

    def model(self) -> Any:
        return nn.Sequential(nn.Linear(2, 3), nn.BatchNorm1d(3), nn.Dropout(0.5), nn.Linear(3, 1))

    def loss(self, model: nn.Module, batch: Any) -> Tensor:
        self.modes.append((model.training, torch.is_grad_enabled()))
        torch.rand(1)
        return super().loss(model, batch)

    def accuracy(self, model: nn.Module, batch: Any) -> float:
        return float((model(batch[0]) > 0).float().mean())


def measure(job: Line, model: nn.Module, batches: ValidationBatches) -> Validation:
    found = validate(model, view(job), batches, CPU)
    assert found is not None
    return found


def data(count: int) -> TensorDataset:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(count, 2, generator=generator)
    return TensorDataset(x, x.sum(1, keepdim=True))


def test_means_are_over_samples_whatever_the_batch_size():
    job, held_out = Judged(), data(23)
    model = job.model()
    whole, parts = (measure(job, model, ValidationBatches(held_out, size)) for size in (23, 5))
    model.eval()
    x, y = held_out.tensors
    with torch.no_grad():
        output = model(x)
    assert whole.loss == pytest.approx(F.mse_loss(output, y).item())
    assert parts.loss == pytest.approx(whole.loss, rel=1e-6)
    assert parts.accuracy == pytest.approx((output > 0).float().mean().item())


def test_it_runs_in_eval_mode_without_gradients_and_leaves_no_trace():
    job = Judged()
    model = job.model().train()
    model[1].eval()  # As where a user has frozen the statistics.
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    generator = torch.default_generator.get_state()
    batches = ValidationBatches(data(9), 4)
    first = validate(model, view(job), batches, CPU)
    assert set(job.modes) == {(False, False)}
    assert [m.training for m in model] == [True, False, True, True]
    assert model.training
    assert all(torch.equal(before[name], t) for name, t in model.state_dict().items())
    assert torch.equal(torch.default_generator.get_state(), generator)
    assert validate(model, view(job), batches, CPU) == first


def test_a_job_without_accuracy_has_none():
    job = Line()
    assert measure(job, job.model(), ValidationBatches(data(8), 4)).accuracy is None


def test_it_stops_between_two_batches():
    job = Judged()
    asked = iter([False, False, True])
    stopped = validate(
        job.model(), view(job), ValidationBatches(data(40), 4), CPU, stop=lambda: next(asked)
    )
    assert stopped is None
    assert len(job.modes) == 2


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_on_cuda_nothing_waits_until_the_end():
    job, device = Line(), torch.device("cuda", 0)
    model, batches = job.model().to(device), ValidationBatches(data(40), 4)
    left = len(batches)

    def stop() -> bool:
        torch.cuda.set_sync_debug_mode("error")
        return False

    def accuracy(model: nn.Module, batch: Any) -> Tensor:
        nonlocal left
        left -= 1
        if not left:
            torch.cuda.set_sync_debug_mode("default")
        right: Tensor = model(batch[0]) > 0
        return right.float().mean()

    setattr(job, "accuracy", accuracy)  # noqa: B010
    try:
        assert validate(model, view(job), batches, device, stop) is not None
    finally:
        torch.cuda.set_sync_debug_mode("default")


def test_an_error_names_the_users_line_and_restores_the_mode():
    job = Judged()
    setattr(job, "accuracy", lambda model, batch: batch[7])  # noqa: B010
    model = job.model()
    with pytest.raises(JobError, match=r"validation's accuracy.*test_validation.py:\d+: IndexErr"):
        validate(model, view(job), ValidationBatches(data(8), 4), CPU)
    assert model.training


class NotUnderAutocast(nn.Linear):
    """Fails in eval mode as torch's fused transformer layer does on the CPU."""

    error: Exception = RuntimeError("expected scalar type Float but found BFloat16")

    def forward(self, x: Tensor) -> Tensor:
        if not self.training and torch.is_autocast_enabled("cpu"):
            raise self.error
        return super().forward(x)


def autocasting(model: nn.Module) -> Passes:
    def run(batch: Any, share: float) -> Tensor:
        raise AssertionError("validation makes no training pass")

    return Passes(model, run, StepState(CPU), CPU, amp=torch.bfloat16)


def test_what_fails_under_autocast_in_eval_mode_is_measured_without_it() -> None:
    job, told = Line(), list[str]()
    model = NotUnderAutocast(2, 1)
    batches = ValidationBatches(data(23), 5)
    for _ in range(2):
        found = validate(
            model, view(job), batches, CPU, passes=autocasting(model), on_fallback=told.append
        )
        assert found == measure(job, model, batches)
    assert ["found BFloat16" in why for why in told] == [True, True]


def test_where_it_works_it_is_measured_under_autocast() -> None:
    job, told = Line(), list[str]()
    model = nn.Linear(2, 1)
    batches = ValidationBatches(data(23), 5)
    found = validate(
        model, view(job), batches, CPU, passes=autocasting(model), on_fallback=told.append
    )
    assert found is not None
    assert found != measure(job, model, batches)
    assert told == []


@pytest.mark.parametrize(
    "error", [torch.OutOfMemoryError("no memory"), JobError("the job: bad data")]
)
def test_what_fails_for_another_reason_fails(error: Exception) -> None:
    class Fails(NotUnderAutocast):
        def forward(self, x: Tensor) -> Tensor:
            if isinstance(error, JobError) or torch.is_autocast_enabled("cpu"):
                raise error
            return super().forward(x)

    job, told = Line(), list[str]()
    model = Fails(2, 1)
    with pytest.raises(JobError, match=str(error)):
        validate(
            model,
            view(job),
            ValidationBatches(data(9), 4),
            CPU,
            passes=autocasting(model),
            on_fallback=told.append,
        )
    assert told == []
