"""What the gates ask of a run at the fence where a seed is to pass through."""

from tolaria_bus.kasmina import gates
from tolaria_bus.kasmina.errors import SeedRefused
from tolaria_bus.kasmina.gates import GateReading, Limits
from tolaria_bus.kasmina.operations import Moment
from tolaria_bus.kasmina.places import Place
from tolaria_bus.kasmina.records import SeedRecord
from tolaria_bus.kasmina.side import Health
from tolaria_bus.kasmina.slot import Mode
from tolaria_bus.leyline import SeedOperation as Operation


def measure(
    operation: Operation.ValueType,
    record: SeedRecord,
    place: Place,
    health: Health | None,
    moment: Moment,
    limits: Limits,
) -> GateReading | None:
    """Read the gate on the way of an operation, without changing anything; None: there is none.

    Raises:
        SeedRefused: ``gate_failed``: it needs held-out data, and there are none.
    """
    match operation:
        case Operation.SEED_OP_START_GRAFTING:
            steps, not_finite, norm, loss, _ = (health or Health()).numbers()
            return gates.gradient_health(steps, not_finite, norm, loss, limits)
        case Operation.SEED_OP_STABILIZE:
            return gates.stability(record.alpha, record.loss_before, moment.loss, limits)
        case Operation.SEED_OP_EVALUATE:
            return _interface(place, moment, limits)
        case Operation.SEED_OP_FOSSILIZE:
            return _impact(place, moment, limits)
    return None


def _interface(place: Place, moment: Moment, limits: Limits) -> GateReading:
    graft = place.graft
    assert graft is not None
    graft.tap = []
    try:
        _held_out_loss(moment)
        return gates.interface(graft.tap, limits)
    finally:
        graft.tap = None


def _impact(place: Place, moment: Moment, limits: Limits) -> GateReading:
    graft = place.graft
    assert graft is not None
    with_seed = _held_out_loss(moment)
    mode, graft.mode = graft.mode, Mode.BYPASS
    try:
        without = _held_out_loss(moment)
    finally:
        graft.mode = mode
    return gates.system_impact(with_seed, without, limits)


def _held_out_loss(moment: Moment) -> float:
    if moment.held_out is None:
        raise SeedRefused("gate_failed", "this gate measures on held-out data; the run has none")
    return moment.held_out()
