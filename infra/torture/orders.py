"""What is sent to a run: commands of every kind, each at a step that is known beforehand.

A script is a pure function of its seed. It is a row of windows. While one is sent the run is held
at a known step, by a PAUSE or a HALT of the window before; so a command without ``at_step`` takes
effect at that step, and those with it are there in time. Two runs that get the same script must
therefore come to the same bits, whatever happens to one of them.
"""

from __future__ import annotations

import itertools
import json
import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from enum import Enum
from typing import Any

from infra.torture.jobs import TRAP
from tolaria_bus.leyline import AdaptationCommand, CommandType, EmergencySignal
from tolaria_bus.leyline.codec import from_json

SPACING = 45
"""Steps between two holds."""
WINDOWS = 4
SAVED_EVERY = 20
"""Steps between two checkpoints, beside those at the end of each epoch."""
FIRST = 60
"""The first hold comes as soon as the worker reads it; it must be read before this step."""
INITIAL = "hold-0"
TRAPPED = "trap"
"""Ids of commands that kill their process begin so."""
SPIKE = 50.0
"""A learning rate that no training survives."""


class Way(Enum):
    """How an order gets to the run."""

    CONTROL = "the run's control stream"
    HAND = "the run's control stream, as JSON"
    FLEET = "the fleet's control stream"
    SIGNAL = "the emergency stream"
    RUBBISH = "rubbish"


@dataclass(frozen=True)
class Order:
    """One thing to send.

    Attributes:
        kind: For the report.
        message: What; nothing for rubbish.
        way: Where.
        alone: All that was sent before it must be answered when it is sent, and itself before
            the next one is: it may overtake others, or comes from another source.
        only_tortured: The run that is never killed doesn't get it.
    """

    kind: str
    message: AdaptationCommand | EmergencySignal | None
    way: Way = Way.CONTROL
    alone: bool = False
    only_tortured: bool = False


@dataclass(frozen=True)
class Window:
    """What is sent while the run is held by ``held_by``, the id of a command."""

    held_by: str
    orders: tuple[Order, ...]

    @property
    def disk_may_fill(self) -> bool:
        """Nothing in it is answered otherwise where the disk is full: it all waits."""
        return not any(order.kind == "checkpoint now" for order in self.orders)


@dataclass(frozen=True)
class Script:
    """All windows of a run, and how many steps it makes."""

    windows: tuple[Window, ...]
    steps: int = FIRST + SPACING * WINDOWS + 20


@dataclass
class _Writer:
    """Makes up one script; what it knows of the run is a guess, good enough to be legal often."""

    chance: random.Random
    blueprints: tuple[str, ...]
    signed: bool
    trapped_in: int
    held_by: str = INITIAL
    step: int = 0
    seed: str = ""
    stage: int = 0
    pinned: int = 0
    conservative: bool = False
    deferred: list[str] = field(default_factory=list)
    numbers: Iterator[int] = field(default_factory=lambda: itertools.count(1))

    def window(self, number: int) -> Window:
        low = max(self.step + 1, FIRST)
        high = FIRST + SPACING * (number + 1)
        self.deferred = []
        # Distinct, with a few steps before the hold for what a spike needs to be seen.
        steps = sorted(self.chance.sample(range(low, high - 6), self.chance.randint(4, 7)))
        orders = [self._later(step) for step in steps]
        if number == 1:
            orders.append(self._make("spike", "LEARNING_RATE", steps[-1] + 1, rate(SPIKE)))
        if number == self.trapped_in:
            orders.append(self._trap(self.chance.choice([None, steps[-1] + 2])))
        if number == 2:
            orders.append(self._make("stop", "STOP", steps[-1] + 3))
        if number:
            orders += [self._now() for _ in range(self.chance.randint(2, 5))]
        self.chance.shuffle(orders)
        if number:
            orders += self._afterwards(orders)
        held_by, self.held_by = self.held_by, f"hold-{number + 1}"
        if number + 1 < WINDOWS:
            orders.append(self._hold(high))
        self.step = high
        return Window(held_by, tuple(orders))

    def _hold(self, step: int) -> Order:
        if self.chance.random() < 0.25:
            self.conservative = True
            return self._make(
                "halt", "EMERGENCY", step, {"emergency": {"level": "HALT"}}, self.held_by
            )
        return self._make("pause", "PAUSE", step, {}, self.held_by)

    def _later(self, step: int) -> Order:
        make = self.chance.choice(
            [self._rate, self._rate, self._optimizer, self._seed, self._seed, self._seed,
             self._seed, self._rollback, self._rollback, self._checkpoint, self._mode, self._rest,
             self._alarm]
        )  # fmt: skip
        return make(step)

    def _now(self) -> Order:
        makers: list[Callable[[None], Order]] = [
            self._rate, self._optimizer, self._seed, self._seed, self._rollback,
            self._checkpoint, self._mode, self._rest, self._refused, self._by_fleet,
            self._by_signal, self._by_hand, self._rubbish,
        ]  # fmt: skip
        return self.chance.choice(makers)(None)

    def _afterwards(self, orders: list[Order]) -> list[Order]:
        """What refers to others of the window: a cancellation, an id used again."""
        found = []
        if self.deferred and self.chance.random() < 0.5:
            wanted = self.chance.choice(self.deferred)
            found.append(self._make("cancel", "CANCEL", None, {"cancel": {"commandId": wanted}}))
        sent = [item for item in orders if item.way is Way.CONTROL and not item.only_tortured]
        again = self.chance.choice(sent)
        assert isinstance(again.message, AdaptationCommand)
        if self.chance.random() < 0.5:
            found.append(Order("sent twice", again.message))
        if self.chance.random() < 0.3:
            other = AdaptationCommand()
            other.CopyFrom(again.message)
            other.issued_by = "somebody else"
            found.append(Order("another's id", other))
        return found

    # Commands

    def _rate(self, step: int | None) -> Order:
        if self.chance.random() < 0.5:
            values = rate(self.chance.uniform(0.0005, 0.004))
        else:
            values = {"learningRate": {"factor": self.chance.choice([0.5, 0.9, 1.25])}}
        if self.chance.random() < 0.4:
            values["learningRate"]["warmupSteps"] = self.chance.randint(1, 12)
        return self._make("learning rate", "LEARNING_RATE", step, values)

    def _optimizer(self, step: int | None) -> Order:
        values = self.chance.choice(
            [{"weight_decay": self.chance.uniform(0.0, 0.3)}, {"betas": [0.85, 0.99]},
             {"beta1": 0.8}, {"eps": 1e-6}, {"weight_decay": 0.05, "lr": 0.002}]
        )  # fmt: skip
        return self._make(
            "optimizer", "OPTIMIZER", step, {"optimizerAdjustment": {"values": values}}
        )

    def _seed(self, step: int | None) -> Order:
        if not self.seed or self.chance.random() < 0.1:
            self.seed, self.stage = f"s{next(self.numbers)}", 0
            return self._operate("GERMINATE", step, self.chance.choice(self.blueprints))
        kind = self.chance.choices(("further", "CULL", "CANCEL", "any"), (65, 15, 10, 10))[0]
        if kind in {"CULL", "CANCEL"}:
            order = self._operate(kind, step)
            self.seed = ""
            return order
        if kind == "any" or self.stage >= len(LIFE):
            return self._operate(self.chance.choice(LIFE), step)
        self.stage += 1
        return self._operate(LIFE[self.stage - 1], step)

    def _operate(self, name: str, step: int | None, blueprint: str = "") -> Order:
        operation: dict[str, Any] = {"operation": name, "blueprintId": blueprint}
        if name == "START_GRAFTING":
            operation["values"] = {"blend_steps": self.chance.randint(1, 12)}
        elif name == "CULL":
            operation["values"] = {"embargo_steps": self.chance.randint(0, 10)}
        kind = f"seed {name.lower().replace('_', '-')}"
        return self._make(
            kind, "SEED", step, {"targetSeedId": self.seed, "seedOperation": operation}
        )

    def _rollback(self, step: int | None) -> Order:
        values: dict[str, Any] = {"data": self.chance.choice(["skip", "replay"])}
        if self.chance.random() < 0.5:
            values["lr_factor"] = self.chance.choice([0.5, 0.8])
        if self.pinned and self.chance.random() < 0.4:
            values["target_step"] = self.pinned
        return self._make("rollback", "ROLLBACK", step, {"rollbackPayload": values})

    def _checkpoint(self, step: int | None) -> Order:
        pin = step is not None and self.chance.random() < 0.4
        if pin:
            self.pinned = step or 0
        kind = "checkpoint" if step is not None else "checkpoint now"
        return self._make(kind, "CHECKPOINT", step, {"checkpoint": {"pin": pin, "label": "asked"}})

    def _mode(self, step: int | None) -> Order:
        self.conservative = not self.conservative
        return self._make("mode", "MODE", step, {"mode": {"conservative": self.conservative}})

    def _rest(self, step: int | None) -> Order:
        return self._make("continue", "CONTINUE", step)

    def _alarm(self, step: int | None) -> Order:
        level = self.chance.choice(["NOTICE", "ELEVATED", "CONSERVATIVE"])
        self.conservative |= level == "CONSERVATIVE"
        return self._make("emergency", "EMERGENCY", step, {"emergency": {"level": level}})

    def _trap(self, step: int | None) -> Order:
        values = {"optimizerAdjustment": {"values": {"weight_decay": TRAP}}}
        name = f"{TRAPPED}-{next(self.numbers)}"
        return self._make("trap", "OPTIMIZER", step, values, name, only_tortured=True)

    def _refused(self, _: None) -> Order:
        kind, values, late = self.chance.choice(REFUSED)
        return self._make("refused", kind, 1 if late else None, values)

    def _by_fleet(self, _: None) -> Order:
        order = self.chance.choice([self._rate, self._optimizer])(None)
        return Order(order.kind, order.message, Way.FLEET, alone=True)

    def _by_signal(self, _: None) -> Order:
        level = self.chance.choice(["ELEVATED", "HALT"])
        signal = from_json(f'{{"level": "{level}", "reason": "a drill"}}', EmergencySignal)
        self.conservative |= level == "HALT"
        signal.attributes["signal_id"] = f"signal-{next(self.numbers)}"
        signal.origin = "operator"
        signal.attributes["scope"] = "all"
        return Order("signal", signal, Way.SIGNAL, alone=True)

    def _by_hand(self, _: None) -> Order:
        order = self._rate(None)
        return order if self.signed else Order(order.kind, order.message, Way.HAND, alone=True)

    def _rubbish(self, _: None) -> Order:
        return Order("rubbish", None, Way.RUBBISH)

    def _make(
        self,
        kind: str,
        command_type: str,
        step: int | None,
        values: dict[str, Any] | None = None,
        name: str = "",
        *,
        only_tortured: bool = False,
    ) -> Order:
        command = from_json(
            json.dumps({"version": 1, "commandType": command_type, **(values or {})}),
            AdaptationCommand,
        )
        command.command_id = name or f"c{next(self.numbers)}"
        command.issued_by = "torture"
        if step is not None:
            command.annotations["at_step"] = str(step)
            if kind in {"learning rate", "optimizer", "rollback"}:
                self.deferred.append(command.command_id)
        if kind == "refused" and command.execution_deadline_ms:
            command.issued_at.FromSeconds(1_000_000_000)
        alone = step is None and kind == "trap"
        return Order(kind, command, alone=alone, only_tortured=only_tortured)


BLUEPRINTS = {
    "digits": ("residual_conv", "depthwise", "norm_scale"),
    "bytes_lm": ("residual_mlp", "low_rank"),
}
"""What can be grown, by job."""
LIFE = ("START_TRAINING", "START_GRAFTING", "STABILIZE", "EVALUATE", "FINE_TUNE", "FOSSILIZE")
"""Of a seed, once it is germinated."""
REFUSED: tuple[tuple[str, dict[str, Any], bool], ...] = (
    ("LEARNING_RATE", {"learningRate": {"learningRate": -1}}, False),
    ("LEARNING_RATE", {}, False),
    ("SEED", {"targetSeedId": "nobody", "seedOperation": {"operation": "CULL"}}, False),
    ("SEED", {"targetSeedId": "x", "seedOperation": {"operation": "GERMINATE"}}, False),
    ("ROLLBACK", {"rollbackPayload": {"target_step": 1_000_000}}, False),
    ("OPTIMIZER", {"optimizerAdjustment": {"values": {"momentum": 2}}}, False),
    ("CANCEL", {"cancel": {"commandId": "nothing"}}, False),
    ("PAUSE", {"executionDeadlineMs": 1}, False),
    ("CONTINUE", {}, True),
    ("STRUCTURAL_PRUNING", {"structuralPruning": {"target": "nothing"}}, False),
)
"""Type, payload, and whether it names a step that has passed."""


def rate(value: float) -> dict[str, Any]:
    """The payload of a LEARNING_RATE command."""
    return {"learningRate": {"learningRate": value}}


def write(seed: str, job: str, *, signed: bool) -> Script:
    """The script of a seed.

    Args:
        seed: Any text.
        job: ``digits`` or ``bytes_lm``.
        signed: Whether messages are signed: then nothing is sent by hand.
    """
    chance = random.Random(seed)
    writer = _Writer(chance, BLUEPRINTS[job], signed, chance.randint(1, WINDOWS - 1))
    return Script(tuple(writer.window(number) for number in range(WINDOWS)))


def hold(name: str = INITIAL) -> Order:
    """A PAUSE that takes effect when it is read."""
    command = AdaptationCommand(
        version=1, command_id=name, command_type=CommandType.COMMAND_PAUSE, issued_by="torture"
    )
    return Order("pause", command)


def go_on(name: str) -> Order:
    """A RESUME that takes effect when it is read."""
    command = AdaptationCommand(
        version=1, command_id=name, command_type=CommandType.COMMAND_RESUME, issued_by="torture"
    )
    return Order("resume", command)


def stop(name: str) -> Order:
    """A STOP that takes effect when it is read."""
    command = AdaptationCommand(
        version=1, command_id=name, command_type=CommandType.COMMAND_STOP, issued_by="torture"
    )
    return Order("stop", command)
