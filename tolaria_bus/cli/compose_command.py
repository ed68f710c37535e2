"""A command built from the words of a command line. Pure: no clock, no server, no terminal.

One function for each kind of command gives its payload; ``circumstances.annotate`` then adds what
every command has (who, when, its id, at which fence, until when). What only the run can judge (is
there such a seed, is the rate allowed) is left to the run; refused here is what could mean nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

from tolaria_bus.cli.words import ComposeError, assignments
from tolaria_bus.leyline import (
    AdaptationCommand,
    CircuitBreakerState,
    CommandCancel,
    CommandCheckpoint,
    CommandCircuitBreaker,
    CommandEmergency,
    CommandLearningRate,
    CommandMode,
    CommandOptimizerAdjustment,
    CommandProfile,
    CommandSeedOperation,
    CommandStructuralPruning,
    CommandType,
    EmergencyLevel,
    SeedOperation,
)
from tolaria_bus.leyline.codec import CodecError, from_json, parse_enum, short_name

SIMPLE: Final = {
    "pause": CommandType.COMMAND_PAUSE,
    "resume": CommandType.COMMAND_RESUME,
    "stop": CommandType.COMMAND_STOP,
}
"""Commands that are their name alone."""
SCOPES: Final = ("run", "pattern", "all")
"""Of an emergency that an operator raises: somebody has to obey it."""


def simple(word: str) -> AdaptationCommand:
    """``pause``, ``resume`` or ``stop``."""
    return AdaptationCommand(command_type=SIMPLE[word])


def checkpoint(label: str | None = None, *, pin: bool = False) -> AdaptationCommand:
    """Make the present state durable; ``pin`` keeps it from retention."""
    return AdaptationCommand(
        command_type=CommandType.COMMAND_CHECKPOINT,
        checkpoint=CommandCheckpoint(label=label or "", pin=pin),
    )


def rollback(
    *,
    to_step: int | None = None,
    to_epoch: int | None = None,
    data: str | None = None,
    lr_factor: float | None = None,
) -> AdaptationCommand:
    """Go back, by default to the newest checkpoint.

    Raises:
        ComposeError: Both targets are given, or ``data`` is neither ``skip`` nor ``replay``.
    """
    if to_step is not None and to_epoch is not None:
        raise ComposeError("rollback: --to-step and --to-epoch exclude each other")
    if data not in (None, "skip", "replay"):
        raise ComposeError(f"rollback: --data {data}: must be skip or replay")
    wanted = {
        "target_step": to_step,
        "target_epoch": to_epoch,
        "data": data,
        "lr_factor": lr_factor,
    }
    command = AdaptationCommand(command_type=CommandType.COMMAND_ROLLBACK)
    # An empty payload is a payload too: it says that the defaults are meant.
    command.rollback_payload.SetInParent()
    command.rollback_payload.update(
        {name: item for name, item in wanted.items() if item is not None}
    )
    return command


def learning_rate(
    rate: float | None = None,
    *,
    factor: float | None = None,
    warmup_steps: int = 0,
    group: str | None = None,
) -> AdaptationCommand:
    """Set the base rate, or multiply it.

    Raises:
        ComposeError: Not exactly one of ``rate`` and ``factor`` is given.
    """
    if (rate is None) == (factor is None):
        raise ComposeError("lr: give a rate (send lr 0.01) or a factor (send lr --factor 0.5)")
    return AdaptationCommand(
        command_type=CommandType.COMMAND_LEARNING_RATE,
        learning_rate=CommandLearningRate(
            learning_rate=rate, factor=factor, warmup_steps=warmup_steps, group=group or ""
        ),
    )


def optimizer(words: Sequence[str], *, group: str | None = None) -> AdaptationCommand:
    """``[NAME] hyperparameter=value ...``, as in ``adamw weight_decay=0.01 betas=0.9,0.95``.

    Raises:
        ComposeError: Nothing is to be changed, or a word is no assignment.
    """
    name = words[0] if words and "=" not in words[0] else ""
    given = assignments("optimizer", words[1:] if name else words)
    if not name and not given:
        raise ComposeError("optimizer: give what to change, as in weight_decay=0.01 betas=0.9,0.95")
    command = AdaptationCommand(
        command_type=CommandType.COMMAND_OPTIMIZER,
        optimizer_adjustment=CommandOptimizerAdjustment(optimizer_id=name, group=group or ""),
    )
    command.optimizer_adjustment.values.update(given)
    return command


def seed(
    operation: str,
    words: Sequence[str] = (),
    *,
    seed_id: str | None = None,
    slot: str | None = None,
    blueprint: str | None = None,
) -> AdaptationCommand:
    """``OPERATION [SEED] [parameter=value ...]``, as in ``cull s1``.

    Raises:
        ComposeError: The operation is unknown, the seed isn't named or named twice, or an option
            belongs to another operation.
    """
    kind = _enum("seed: operation", SeedOperation, operation.replace("-", "_"))
    first = words[0] if words and "=" not in words[0] else None
    given = assignments("seed", words[1:] if first is not None else words)
    if first is not None and seed_id is not None and first != seed_id:
        raise ComposeError(f"seed: two seeds are named, {first} and --seed-id {seed_id}")
    target = seed_id or first or ""
    germinate = kind == SeedOperation.SEED_OP_GERMINATE
    if not germinate and not target:
        raise ComposeError(f"seed {operation}: name the seed, as in: send seed {operation} s1")
    for option, value in (("--slot", slot), ("--blueprint", blueprint)):
        if value is not None and not germinate:
            raise ComposeError(f"seed {operation}: {option} goes with germinate only")
    command = AdaptationCommand(
        command_type=CommandType.COMMAND_SEED,
        target_seed_id=target,
        seed_operation=CommandSeedOperation(
            operation=kind, blueprint_id=blueprint or "", slot=slot or ""
        ),
    )
    if given:
        command.seed_operation.values.update(given)
    return command


def emergency(
    level: str, *, scope: str | None = None, runs: str | None = None
) -> AdaptationCommand:
    """Raise an emergency in the run (scope ``run``), or in many at once (``pattern``, ``all``).

    Raises:
        ComposeError: Level or scope is unknown, or a glob of runs and its scope don't go together.
    """
    kind = _enum("emergency: level", EmergencyLevel, level)
    if scope is None and runs is not None:
        scope = "pattern"
    if scope not in (None, *SCOPES):
        raise ComposeError(f"emergency: --scope {scope}: must be one of {', '.join(SCOPES)}")
    if (scope == "pattern") != (runs is not None):
        raise ComposeError("emergency: --scope pattern and --runs GLOB go together")
    return AdaptationCommand(
        command_type=CommandType.COMMAND_EMERGENCY,
        emergency=CommandEmergency(level=kind, scope=scope or "", runs=runs or ""),
    )


def breaker(name: str, state: str, *, rationale: str | None = None) -> AdaptationCommand:
    """Open, half-open or close a circuit breaker.

    Raises:
        ComposeError: The state is unknown.
    """
    kind = _enum("breaker: state", CircuitBreakerState, state.replace("-", "_"))
    return AdaptationCommand(
        command_type=CommandType.COMMAND_CIRCUIT_BREAKER,
        circuit_breaker=CommandCircuitBreaker(
            breaker=name, desired_state=kind, rationale=rationale or ""
        ),
    )


def prune(target: str, fraction: float, words: Sequence[str] = ()) -> AdaptationCommand:
    """Remove a share of a layer's channels or heads, as in ``prune body 0.25 impact=0.02``.

    Raises:
        ComposeError: The fraction isn't between 0 and 1, or a word is no assignment.
    """
    if not 0.0 < fraction < 1.0:
        raise ComposeError(f"prune: fraction {fraction:g}: must be above 0 and below 1")
    command = AdaptationCommand(
        command_type=CommandType.COMMAND_STRUCTURAL_PRUNING,
        structural_pruning=CommandStructuralPruning(target=target, fraction=fraction),
    )
    if given := assignments("prune", words):
        command.structural_pruning.values.update(given)
    return command


def profile(steps: int) -> AdaptationCommand:
    """Record a trace of so many steps."""
    return AdaptationCommand(
        command_type=CommandType.COMMAND_PROFILE, profile=CommandProfile(steps=steps)
    )


def mode(word: str) -> AdaptationCommand:
    """``conservative`` enters conservative mode, ``normal`` leaves it.

    Raises:
        ComposeError: Another word.
    """
    if word not in ("conservative", "normal"):
        raise ComposeError(f"mode {word}: must be conservative or normal")
    return AdaptationCommand(
        command_type=CommandType.COMMAND_MODE, mode=CommandMode(conservative=word == "conservative")
    )


def cancel(command_id: str) -> AdaptationCommand:
    """Withdraw a command that waits for a later fence."""
    return AdaptationCommand(
        command_type=CommandType.COMMAND_CANCEL, cancel=CommandCancel(command_id=command_id)
    )


def parse_json(text: str) -> AdaptationCommand:
    """A command written as protobuf JSON, as with ``redis-cli``.

    Raises:
        ComposeError: It isn't one.
    """
    try:
        command = from_json(text, AdaptationCommand)
    except CodecError as error:
        raise ComposeError(f"--json: {error.detail}") from None
    assert isinstance(command, AdaptationCommand)
    if command.command_type == CommandType.COMMAND_UNKNOWN:
        raise ComposeError('--json: command_type is missing, as in {"commandType": "PAUSE"}')
    return command


def _enum(subject: str, kind: Any, word: str) -> Any:
    """The number of an enum's value; its zero (unknown, unspecified) is no choice."""
    try:
        number = parse_enum(kind, word)
    except ValueError:
        number = 0
    if not number:
        names = (short_name(kind, item) for item in kind.values() if item)
        allowed = ", ".join(name.lower().replace("_", "-") for name in names)
        raise ComposeError(f"{subject} {word!r}: must be one of {allowed}")
    return number
