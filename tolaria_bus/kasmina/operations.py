"""What an operation on a seed may be given, beside the seed."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from tolaria_bus.kasmina.lifecycle import operation_name
from tolaria_bus.kasmina.parameters import Parameter, settled
from tolaria_bus.leyline import SeedOperation as Operation

_STEPS = 1_000_000_000

# The values that an operation takes; one that isn't here takes none.
VALUES: Mapping[Operation.ValueType, Mapping[str, Parameter]] = {
    # Over how many steps alpha goes from 0 to 1.
    Operation.SEED_OP_START_GRAFTING: {"blend_steps": Parameter(default=100, least=1, most=_STEPS)},
    # Fold a linear seed into the layer that it stands behind, where that can be done.
    Operation.SEED_OP_FOSSILIZE: {"fold": Parameter(default=1, least=0, most=1)},
    # After how many steps the slot is free again.
    Operation.SEED_OP_CULL: {"embargo_steps": Parameter(default=100, least=0, most=_STEPS)},
}


@dataclass(frozen=True)
class Moment:
    """The state of the run at the fence where an operation is done, as far as gates need it.

    Attributes:
        step: Steps done.
        epoch: Epochs done.
        loss: Running mean of the training loss; 0 before the first.
        held_out: Measures the loss of the model, as it is when this is called, on held-out data,
            in eval mode, the same data each time, drawing from no generator that training uses.
    """

    step: int
    epoch: int = 0
    loss: float = 0.0
    held_out: Callable[[], float] | None = None


def settle(operation: Operation.ValueType, values: Mapping[str, Any]) -> dict[str, float | int]:
    """Return an operation's values, checked and with the defaults filled in.

    Raises:
        SeedRefused: ``bad_parameter``, naming it, its value and what is allowed.
    """
    return settled(f"the operation {operation_name(operation)}", VALUES.get(operation, {}), values)
