"""Compile and autocast that fail: the step is taken all the same, and to the same bits."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tests.engine.test_step import CPU, batches, equal, mse, net, weights
from tolaria_bus.tolaria.engine import JobError, OptimizerManager, StepOptions, TrainStep


class BrokenBackward(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> Any:
        raise RuntimeError("no kernel for the backward pass")


class Backend:
    """A backend of torch.compile that runs the graph as it is, or fails when it is told to."""

    def __init__(self) -> None:
        self.compiled = 0
        self.broken = ""

    def __call__(self, graph: torch.fx.GraphModule, inputs: Any) -> Any:
        self.compiled += 1
        if self.broken == "compile":
            raise RuntimeError("the compiler crashed")
        broken = self.broken

        def run(*args: Any) -> Any:
            found = graph.forward(*args)
            if broken == "backward":
                return [BrokenBackward.apply(each) for each in found]  # type: ignore[no-untyped-call]
            return found

        return run


@pytest.fixture
def backend(monkeypatch: pytest.MonkeyPatch) -> Iterator[Backend]:
    """A backend by the name ``probe``."""
    made = Backend()
    with named(made):
        yield made


@contextmanager
def named(made: Backend) -> Iterator[None]:
    from torch._dynamo.backends import registry

    registry.register_backend(made, name="probe")
    try:
        yield
    finally:
        registry._BACKENDS.pop("probe", None)
        registry._COMPILER_FNS.pop("probe", None)
        torch.compiler.reset()


def steps(
    data: Any, loss: Any = mse, conservative: bool = False, **options: Any
) -> tuple[dict[str, Tensor], TrainStep]:
    model = net()
    manager = OptimizerManager(None, model)
    step = TrainStep(model, loss, manager, CPU, seed=3, options=StepOptions(**options))
    for position, batch in enumerate(data):
        step(batch, position, 1, conservative=conservative)
    return weights(model), step


def test_a_compiled_step_is_taken_in_place_and_the_keys_stay(backend):
    plain, _ = steps(batches(4))
    compiled, step = steps(batches(4), compile="probe")
    assert backend.compiled == 1
    assert equal(plain, compiled)  # This backend runs the same kernels.
    assert not step.passes.fallbacks


@pytest.mark.parametrize("broken", ["compile", "backward"])
def test_a_compile_that_fails_at_the_first_forward_or_backward_loses_nothing(backend, broken):
    plain, _ = steps(batches(4))
    backend.broken = broken
    fallen, step = steps(batches(4), compile="probe")
    assert equal(plain, fallen)  # Also the running statistics, which a failed forward changed.
    (fallback,) = step.passes.fallbacks
    assert fallback.feature == "compile"
    assert "crashed" in fallback.why or "no kernel" in fallback.why
    assert backend.compiled == 1


def test_a_backend_that_does_not_exist_is_a_fallback():
    plain, _ = steps(batches(2))
    fallen, step = steps(batches(2), compile="nowhere")
    assert equal(plain, fallen)
    assert step.passes.fallbacks[0].feature == "compile"


def test_a_failure_for_batches_of_another_shape_is_a_fallback_too(backend):
    data = batches(4)
    odd = [tuple(t[:7] for t in batch) for batch in batches(2)]
    plain, _ = steps(data + odd)
    model = net()
    step = TrainStep(
        model, mse, OptimizerManager(None, model), CPU, 3, options=StepOptions(compile="probe")
    )
    for position, batch in enumerate(data + odd):
        backend.broken = "backward" if position >= 4 else ""
        step(batch, position, 1)
    assert equal(plain, weights(model))
    assert [f.feature for f in step.passes.fallbacks] == ["compile"]


def test_a_change_of_structure_is_compiled_anew_and_guarded_again(backend):
    model = net()
    manager = OptimizerManager(None, model)
    step = TrainStep(model, mse, manager, CPU, 3, options=StepOptions(compile="probe"))
    data = batches(4)
    step(data[0], 0, 1)
    step(data[1], 1, 1)
    assert backend.compiled == 1
    model.append(nn.Linear(1, 1))
    manager.add_parameters("seed:s", {f"4.{n}": p for n, p in model[4].named_parameters()})
    step(data[2], 2, 1)
    assert backend.compiled == 2
    backend.broken = "backward"
    manager.remove_group("seed:s")
    step(data[3], 3, 1)
    assert [f.feature for f in step.passes.fallbacks] == ["compile"]


def test_however_often_a_parameter_becomes_smaller_it_is_compiled_anew(backend):
    model = nn.Sequential(nn.Linear(4, 8), nn.Linear(8, 1))
    manager = OptimizerManager(None, model)
    step = TrainStep(model, mse, manager, CPU, 3, options=StepOptions(compile="probe"))
    # The compiler gives up, and says so in its log alone, after so many versions of a function.
    with torch._dynamo.config.patch(recompile_limit=2):
        for width in range(8, 3, -1):
            for name, dim in [("0.weight", 0), ("0.bias", 0), ("1.weight", 1)]:
                parameter = model.get_parameter(name)
                parameter.grad = None
                keep = torch.arange(width)
                parameter.data = parameter.data.index_select(dim, keep)
                manager.narrow(name, dim, keep)
            step(batches(1)[0], 8 - width, 1)
    assert backend.compiled == 5


def test_conservative_mode_does_not_compile(backend):
    steps(batches(2), compile="probe", conservative=True)
    assert backend.compiled == 0


def test_autocast_that_fails_is_off_and_compile_stays(backend):
    def no_bf16(model: nn.Module, batch: Any) -> Tensor:
        if torch.is_autocast_enabled("cpu"):
            raise RuntimeError("not implemented for 'BFloat16'")
        return mse(model, batch)

    plain, _ = steps(batches(3))
    fallen, step = steps(batches(3), no_bf16, amp="bf16", compile="probe")
    assert equal(plain, fallen)
    (fallback,) = step.passes.fallbacks
    assert (fallback.feature, "BFloat16" in fallback.why) == ("amp", True)
    assert backend.compiled > 0


def test_what_is_wrong_with_the_job_is_the_jobs(backend):
    def wrong(model: nn.Module, batch: Any) -> Tensor:
        return mse(model, (batch[0], batch[2]))

    with pytest.raises(JobError, match="tuple index out of range"):
        steps(batches(1), wrong, amp="bf16", compile="probe")


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_inductor_compiles_where_there_is_a_compiler():
    plain, _ = steps(batches(3))
    compiled, step = steps(batches(3), compile="on")
    assert not step.passes.fallbacks
    for name, tensor in plain.items():
        torch.testing.assert_close(compiled[name], tensor, rtol=1e-2, atol=1e-2)
    torch.compiler.reset()
