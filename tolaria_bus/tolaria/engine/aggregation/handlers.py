"""Conflict handlers by name: ``pcgrad``, and the aggregators of TorchJD.

A name may have numbers behind it for the aggregator's constructor: ``cagrad:c=0.5``.
"""

import importlib
import inspect
import re
from types import ModuleType
from typing import Any, Protocol

import torch
from torch import Tensor

from tolaria_bus.tolaria.engine.aggregation.pcgrad import orders, project
from tolaria_bus.tolaria.engine.seeding import seeded

NONE = "none"
PCGRAD = "pcgrad"
_TORCHJD = "torchjd.aggregation"
_NAME = re.compile(r"([a-z][a-z0-9_]*)(?::(.+))?")


class UnknownHandler(ValueError):
    """No handler of that name can be had here; one line says why."""


class Weighs(Protocol):
    """A handler whose aggregate is a combination of the gradients, told by their Gramian.

    Attributes:
        name: As in the setting.
        scales: Gradients that are all twice as large have twice as large an aggregate.
    """

    name: str
    scales: bool

    def coefficients(self, gram: Tensor, seed: int) -> Tensor:
        """Return how much of each gradient goes into the aggregate, shape (tasks,), float64.

        Args:
            gram: (tasks, tasks), float64.
            seed: Of what is drawn.
        """


class PCGrad:
    """``pcgrad``: the sum of the projected gradients. Waits for no device."""

    name = PCGRAD
    scales = True

    def __init__(self) -> None:
        # Of its own: drawing from it moves no other. Seeded at each step, it has no state to save.
        self._generator = torch.Generator()

    def coefficients(self, gram: Tensor, seed: int) -> Tensor:
        """Return the sums of the projections' coefficients."""
        self._generator.manual_seed(seed)
        return project(gram, orders(len(gram), self._generator)).sum(0)


class TorchJDWeights:
    """An aggregator of TorchJD that weighs gradients by their Gramian: it gets ours, in float64.

    Many solve their problem on the CPU, and wait for the device for that.

    Args:
        name: As in the setting.
        weighting: A ``torchjd.aggregation.Weighting`` of Gramians.
    """

    scales = False

    def __init__(self, name: str, weighting: Any) -> None:
        self.name = name
        self._weighting = weighting

    @torch.no_grad()
    def coefficients(self, gram: Tensor, seed: int) -> Tensor:
        """Return its weights."""
        # What it draws, it draws from the global generators.
        with seeded(seed):
            found: Tensor = self._weighting(gram)
        return found


class TorchJDMatrix:
    """Any other aggregator of TorchJD: it gets all gradients as one matrix, a copy of them.

    Args:
        name: As in the setting.
        aggregator: A ``torchjd.aggregation.Aggregator``.
    """

    scales = False

    def __init__(self, name: str, aggregator: Any) -> None:
        self.name = name
        self._aggregator = aggregator

    @torch.no_grad()
    def combine(self, rows: Tensor, seed: int) -> Tensor:
        """Return the aggregate (elements,) of gradients (tasks, elements)."""
        with seeded(seed):
            found: Tensor = self._aggregator(rows)
        return found


Handler = Weighs | TorchJDMatrix


def find(text: str) -> Handler | None:
    """Return the handler that a setting names; None for ``none``.

    Raises:
        UnknownHandler: there is none of that name, TorchJD isn't installed, or it can't be made of
            what is given.
    """
    if text == NONE:
        return None
    if text == PCGRAD:
        return PCGrad()
    match = _NAME.fullmatch(text)
    if match is None:
        raise UnknownHandler("expected a name, or name:argument=number[,argument=number...]")
    name, given = match[1], match[2] or ""
    known, stateful = _aggregators(_torchjd())
    if name in stateful:
        raise UnknownHandler(
            "it keeps a state between steps that no checkpoint has, so a run could not be resumed "
            "bit for bit"
        )
    if name not in known:
        raise UnknownHandler(
            f"there are {', '.join([NONE, PCGRAD, *sorted(known.keys() - {PCGRAD})])}"
        )
    try:
        made = known[name](**_arguments(given))
    except (ImportError, TypeError, ValueError) as error:
        takes = ", ".join(inspect.signature(known[name]).parameters) or "nothing"
        raise UnknownHandler(f"{' '.join(str(error).split())} (it takes: {takes})") from error
    weighting = getattr(made, "gramian_weighting", None)
    return TorchJDMatrix(text, made) if weighting is None else TorchJDWeights(text, weighting)


def _torchjd() -> ModuleType:
    try:
        return importlib.import_module(_TORCHJD)
    except ImportError as error:
        raise UnknownHandler(
            f"there are {NONE} and {PCGRAD}; others are TorchJD's, which is not installed "
            "(pip install 'tolaria-bus[aggregators]')"
        ) from error


def _aggregators(module: Any) -> tuple[dict[str, Any], set[str]]:
    """TorchJD's aggregators by lower-case name; and those that have a state."""
    stateful = importlib.import_module("torchjd").Stateful
    bases = {module.Aggregator, module.WeightedAggregator, module.GramianWeightedAggregator}
    found = {
        name.lower(): each
        for name, each in vars(module).items()
        if isinstance(each, type) and issubclass(each, module.Aggregator) and each not in bases
    }
    kept = {name for name, each in found.items() if issubclass(each, stateful)}
    return {name: each for name, each in found.items() if name not in kept}, kept


def _arguments(text: str) -> dict[str, float]:
    found: dict[str, float] = {}
    for part in filter(None, text.split(",")):
        name, equals, value = part.partition("=")
        if not equals:
            raise ValueError(f"{part!r} is not argument=number")
        number = float(value)
        found[name.strip()] = int(number) if value.strip().lstrip("-").isdigit() else number
    return found
