"""What an operator may think of: commands of every kind, legal and not, at random but by a seed."""

from __future__ import annotations

import itertools
import json
import random
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from infra.torture.orders import BLUEPRINTS, LIFE, REFUSED
from tolaria_bus.leyline import AdaptationCommand
from tolaria_bus.leyline.codec import from_json

ISSUER = "soak"
GROWN = {
    "digits": BLUEPRINTS["digits"],
    "bytes": BLUEPRINTS["bytes_lm"],
    "moons": ("residual_mlp",),
}
"""Blueprints, by run."""
KINDS: dict[str, int] = {
    "learning rate": 5,
    "optimizer": 4,
    "seed": 6,
    "checkpoint": 2,
    "rollback": 2,
    "pause": 1,
    "mode": 1,
    "breaker": 1,
    "emergency": 2,
    "continue": 1,
    "cancel": 1,
    "refused": 3,
}
"""How often each comes, in parts."""


@dataclass(frozen=True)
class Order:
    """A command for one run.

    Attributes:
        kind: For the report.
        command: It.
        undo: What has to be sent a while later, so that the run goes on as it should.
    """

    kind: str
    command: AdaptationCommand
    undo: Order | None = None


@dataclass
class Writer:
    """Makes orders up; what it knows of a run is a guess, good enough to be legal often.

    Args:
        run: The run.
        chance: Decides.
    """

    run: str
    chance: random.Random
    seed: str = ""
    stage: int = 0
    deferred: str = ""
    numbers: Iterator[int] = field(default_factory=lambda: itertools.count(1))

    def any(self, step: int) -> Order:
        """Any order, for a run that is at this step."""
        kind = self.chance.choices(list(KINDS), list(KINDS.values()))[0]
        make = {
            "learning rate": self._rate,
            "optimizer": self._optimizer,
            "seed": self._seed,
            "checkpoint": self._checkpoint,
            "rollback": self._rollback,
            "pause": self._pause,
            "mode": self._mode,
            "breaker": self._breaker,
            "emergency": self._emergency,
            "continue": self._continue,
            "cancel": self._cancel,
            "refused": self._refused,
        }[kind]
        return make(step)

    def rate(self) -> Order:
        """A learning rate, which is legal in every mode."""
        return self._make("learning rate", "LEARNING_RATE", self._a_rate())

    def resume(self) -> Order:
        """Whatever holds the run, it shall go on."""
        return self._make("resume", "RESUME")

    def _a_rate(self) -> dict[str, Any]:
        values: dict[str, Any] = {"learningRate": self.chance.uniform(0.0005, 0.002)}
        if self.chance.random() < 0.3:
            values["warmupSteps"] = self.chance.randint(1, 50)
        return {"learningRate": values}

    def _rate(self, step: int) -> Order:
        return self._make("learning rate", "LEARNING_RATE", self._a_rate(), self._soon(step))

    def _optimizer(self, step: int) -> Order:
        values = self.chance.choice(
            [
                {"weight_decay": self.chance.uniform(0.0, 0.1)},
                {"betas": [0.85, 0.99]},
                {"eps": 1e-7},
            ]
        )
        payload = {"optimizerAdjustment": {"values": values}}
        return self._make("optimizer", "OPTIMIZER", payload, self._soon(step))

    def _seed(self, _: int) -> Order:
        if not self.seed:
            self.seed, self.stage = f"{self.run}-{next(self.numbers)}", 0
            return self._operate("GERMINATE", self.chance.choice(GROWN[self.run]))
        if self.stage >= len(LIFE) - 2 or self.chance.random() < 0.15:
            # Never FOSSILIZE: a model that grows for ever would look like a leak.
            order = self._operate(self.chance.choice(["CULL", "CULL", "CANCEL"]))
            self.seed = ""
            return order
        self.stage += 1
        return self._operate(LIFE[self.stage - 1])

    def _operate(self, name: str, blueprint: str = "") -> Order:
        operation: dict[str, Any] = {"operation": name, "blueprintId": blueprint}
        if name == "START_GRAFTING":
            operation["values"] = {"blend_steps": self.chance.randint(1, 50)}
        elif name == "CULL":
            operation["values"] = {"embargo_steps": 0}
        payload = {"targetSeedId": self.seed, "seedOperation": operation}
        return self._make(f"seed {name.lower().replace('_', '-')}", "SEED", payload)

    def _checkpoint(self, step: int) -> Order:
        return self._make("checkpoint", "CHECKPOINT", {"checkpoint": {}}, self._soon(step))

    def _rollback(self, step: int) -> Order:
        values: dict[str, Any] = {"data": self.chance.choice(["skip", "replay"])}
        if self.chance.random() < 0.7:
            values["target_step"] = max(0, step - self.chance.randint(20, 400))
        return self._make("rollback", "ROLLBACK", {"rollbackPayload": values})

    def _pause(self, step: int) -> Order:
        return self._make("pause", "PAUSE", at_step=self._soon(step), undo=self.resume())

    def _mode(self, _: int) -> Order:
        normal = self._make("mode", "MODE", {"mode": {"conservative": False}})
        return self._make("mode", "MODE", {"mode": {"conservative": True}}, undo=normal)

    def _breaker(self, _: int) -> Order:
        name = self.chance.choice(["kasmina", "optimizer", "checkpoint", "timing", "tamiyo"])
        opened, closed = (
            {"circuitBreaker": {"breaker": name, "desiredState": state, "rationale": "a soak"}}
            for state in ("OPEN", "CLOSED")
        )
        undo = self._make("breaker", "CIRCUIT_BREAKER", closed)
        return self._make("breaker", "CIRCUIT_BREAKER", opened, undo=undo)

    def _emergency(self, _: int) -> Order:
        level = self.chance.choice(["NOTICE", "ELEVATED", "CONSERVATIVE", "HALT"])
        undo = self.resume() if level == "HALT" else None
        return self._make("emergency", "EMERGENCY", {"emergency": {"level": level}}, undo=undo)

    def _continue(self, _: int) -> Order:
        return self._make("continue", "CONTINUE")

    def _cancel(self, _: int) -> Order:
        wanted = self.deferred or "nothing"
        return self._make("cancel", "CANCEL", {"cancel": {"commandId": wanted}})

    def _refused(self, _: int) -> Order:
        kind, values, late = self.chance.choice(REFUSED)
        return self._make("refused", kind, values, 1 if late else None)

    def _soon(self, step: int) -> int | None:
        return step + self.chance.randint(5, 200) if self.chance.random() < 0.3 else None

    def _make(
        self,
        kind: str,
        command_type: str,
        values: dict[str, Any] | None = None,
        at_step: int | None = None,
        undo: Order | None = None,
    ) -> Order:
        command = from_json(
            json.dumps({"version": 1, "commandType": command_type, **(values or {})}),
            AdaptationCommand,
        )
        command.command_id = f"{self.run}-c{next(self.numbers)}"
        command.issued_by = ISSUER
        command.annotations["reason"] = f"drill {command.command_id}"
        if at_step is not None:
            command.annotations["at_step"] = str(at_step)
            self.deferred = command.command_id
        if command.execution_deadline_ms:
            command.issued_at.FromSeconds(1_000_000_000)
        return Order(kind, command, undo)
