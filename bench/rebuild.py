"""Changing the optimizer of 25 million parameters at a fence."""

from __future__ import annotations

import time
from collections.abc import Callable

import torch
from torch import nn

from bench.harness import Result, interleave, single
from tolaria_bus.tolaria.engine.optimizer import OptimizerManager

ROUNDS = 9
WIDTH = 2500
LAYERS = 4


def run() -> Result:
    """Let a seed's parameters join and leave; change the class and back."""
    model = nn.Sequential(*(nn.Linear(WIDTH, WIDTH) for _ in range(LAYERS)))
    manager = OptimizerManager(None, model)
    for parameter in model.parameters():
        parameter.grad = torch.full_like(parameter, 1e-3)
    manager.optimizer.step()
    seed = dict(nn.Linear(WIDTH, 64).named_parameters())
    count = sum(parameter.numel() for parameter in model.parameters())

    def groups() -> float:
        def work() -> None:
            manager.add_parameters("seed:s", seed)
            manager.remove_group("seed:s")

        return _milliseconds(work)

    def family() -> float:
        return _milliseconds(lambda: manager.rebuild(manager.plan_rebuild("Adam", {})))

    def momentum() -> float:
        plan = manager.plan_rebuild("SGD", {"momentum": 0.9})
        meta = manager.export()
        took = _milliseconds(lambda: manager.rebuild(plan))
        manager.load(*meta)
        return took

    timings = interleave(
        {
            "groups join and leave": groups,
            "AdamW to Adam, state carried": family,
            "Adam to SGD, momentum mapped": momentum,
        },
        ROUNDS,
    )
    result = Result("rebuild", f"optimizer of {count / 1e6:.0f} M parameters, with its state")
    for what, values in timings.items():
        goal = "<= 10 ms" if what.startswith("groups") else ""
        result.figures.append(single(what, values, "ms", goal=goal))
    return result


def _milliseconds(work: Callable[[], object]) -> float:
    start = time.perf_counter()
    kept = work()
    seconds = time.perf_counter() - start
    del kept
    return seconds * 1e3
