"""Telling seeds apart in the gradient, against plain backward passes over the same losses."""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import partial
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812

from bench.harness import Result, compare, interleave
from tolaria_bus.kasmina import Garden, SeedSlot
from tolaria_bus.kasmina.records import SeedRecord
from tolaria_bus.leyline import SeedLifecycleStage as Stage
from tolaria_bus.tolaria.engine import OptimizerManager, TrainStep
from tolaria_bus.tolaria.engine.aggregation import TaskGradients, find

ROUNDS = 15
CPU = torch.device("cpu")
BATCH = 128
WIDTHS = (1024, 1792, 1536, 1024)
SMALL = (32, 32, 32, 32)


def run() -> Result:
    """PCGrad with two and four tasks; the weighted loss; a step without seeds."""
    result = Result("aggregation", f"perceptrons of {WIDTHS} (6 M parameters) and {SMALL}")
    for seeds in (1, 3):
        scene = _Scene(WIDTHS, seeds)
        found = interleave(
            {"ours": partial(scene.handled, scene.tasks("pcgrad")), "plain": scene.passes}, ROUNDS
        )
        what = f"pcgrad, {seeds + 1} tasks; baseline: {seeds + 1} backward passes, summed"
        result.figures.append(compare(what, found["ours"], found["plain"], "ms", goal="<= 1.10"))
    scene = _Scene(WIDTHS, 3)
    found = interleave(
        {"ours": partial(scene.step, scene.tasks("none")), "plain": scene.one_pass}, ROUNDS
    )
    what = "weighted losses of 4 tasks, probe and all; baseline: forward, backward of the mean"
    result.figures.append(compare(what, found["ours"], found["plain"], "ms"))
    scene = _Scene(SMALL, 0)
    steps = {"ours": scene.steps(told_apart=True), "plain": scene.steps(told_apart=False)}
    found = interleave(steps, ROUNDS)
    what = "whole step where no seed has a say; baseline: the same without aggregation"
    result.figures.append(compare(what, found["ours"], found["plain"], "ms", goal="1.00"))
    return result


class _Scene:
    """A perceptron, with seeds that are all blended in behind its layers, and a batch."""

    def __init__(self, widths: tuple[int, ...], seeds: int) -> None:
        torch.manual_seed(0)
        layers: list[nn.Module] = []
        for width, after in pairwise(widths):
            layers += [nn.Linear(width, after), nn.ReLU(), SeedSlot(after, kind="linear")]
        self.model = nn.Sequential(*layers, nn.Linear(widths[-1], 10))
        self.garden = Garden(self.model)
        slots = [name for name, module in self.model.named_modules() if type(module) is SeedSlot]
        self.garden.rebuild(
            {"version": 2, "seeds": [_seed(slot).to_json() for slot in slots[:seeds]]}
        )
        self.manager = OptimizerManager(None, self.model)
        self.batch = torch.randn(BATCH, widths[0]), torch.arange(BATCH) % 10
        self.shares = torch.rand(BATCH, 1 + seeds).softmax(1)

    def losses(self, model: nn.Module, batch: Any) -> Tensor:
        return F.cross_entropy(model(batch[0]), batch[1], reduction="none")

    def tasks(self, handler: str) -> TaskGradients:
        return TaskGradients(
            self.garden, self.manager, self.model, self.losses, CPU, 0, handler=find(handler)
        )

    def handled(self, tasks: TaskGradients) -> float:
        """Milliseconds from the losses to the gradients."""
        self.manager.optimizer.zero_grad()
        handled = tasks.begin(conservative=False)
        stamps: list[float] = []
        tasks.backward(
            self.batch,
            1.0,
            None,
            handled=handled,
            forward_done=lambda: stamps.append(time.perf_counter()),
        )
        tasks.settle(1, 0, scaled=False)
        return (time.perf_counter() - stamps[0]) * 1e3

    def passes(self) -> float:
        """The same for a loop that sums the tasks' gradients."""
        self.manager.optimizer.zero_grad()
        losses = self.losses(self.model, self.batch)
        start = time.perf_counter()
        parts = [(losses * column).mean() for column in self.shares.unbind(1)]
        for part in parts:
            part.backward(retain_graph=part is not parts[-1])  # type: ignore[no-untyped-call]
        return (time.perf_counter() - start) * 1e3

    def step(self, tasks: TaskGradients) -> float:
        """Milliseconds of forward and backward with tasks."""
        self.manager.optimizer.zero_grad()
        start = time.perf_counter()
        handled = tasks.begin(conservative=False)
        tasks.backward(self.batch, 1.0, None, handled=handled)
        return (time.perf_counter() - start) * 1e3

    def one_pass(self) -> float:
        """The same of a plain loop."""
        self.manager.optimizer.zero_grad()
        start = time.perf_counter()
        self.losses(self.model, self.batch).mean().backward()  # type: ignore[no-untyped-call]
        return (time.perf_counter() - start) * 1e3

    def steps(self, *, told_apart: bool, count: int = 500) -> Callable[[], float]:
        """Milliseconds of a whole step."""
        step = TrainStep(
            self.model,
            lambda model, batch: self.losses(model, batch).mean(),
            self.manager,
            CPU,
            0,
            tasks=self.tasks("pcgrad") if told_apart else None,
        )

        def many() -> float:
            start = time.perf_counter()
            for position in range(count):
                step(self.batch, position, 1)
            return (time.perf_counter() - start) / count * 1e3

        return many


def _seed(slot: str) -> SeedRecord:
    return SeedRecord(
        seed_id=f"s{slot}",
        slot=slot,
        blueprint_id="low_rank",
        parameters={"rank": 8},
        init_seed=1,
        stage=Stage.SEED_STAGE_SHADOWING,
        born_step=0,
        born_epoch=0,
        alpha=1.0,
    )
