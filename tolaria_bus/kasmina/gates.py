"""What must hold before a seed may enter its next stage: six gates, each with its measure.

A gate looks at numbers and changes nothing. What it measured is in its reading, whether it let the
seed pass or not, and is published. Every number follows from the state of the run, so that a run
that is recovered or replayed comes to the same verdicts.
"""

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor, nn

from tolaria_bus.kasmina.errors import SeedRefused
from tolaria_bus.kasmina.slot import SlotKind
from tolaria_bus.leyline import SeedLifecycleGate as Gate

PARAMETER_LIMIT = 50_000_000

_PROBE_SHAPES: dict[SlotKind, tuple[int, ...]] = {
    "conv2d": (2, -1, 8, 8),
    "linear": (2, -1),
    "sequence": (2, 4, -1),
}


@dataclass(frozen=True)
class Limits:
    """Where the gates are set. Every one can be set otherwise for a whole garden.

    Attributes:
        parameters: G0: of one seed, at most.
        side_steps: G1: TRAINING steps, at least.
        gradient_norm: G1: mean norm of the seed's gradient, at most.
        loss_increase: G2: how much the running training loss may have risen while the seed was
            blended in, as a share of what it was.
        scale: G3: how much larger or smaller than its input a seed's output may be.
        impact: G4: how much higher the held-out loss may be with the seed than without it, as a
            share of that without.
    """

    parameters: int = PARAMETER_LIMIT
    side_steps: int = 10
    gradient_norm: float = 1e3
    loss_increase: float = 0.5
    scale: float = 10.0
    impact: float = 0.01


class GateReading(NamedTuple):
    """What a gate measured: ``why`` is empty where it lets the seed pass."""

    gate: Gate.ValueType
    measures: Mapping[str, float]
    why: str

    @property
    def passed(self) -> bool:
        """Whether the seed may go on."""
        return not self.why

    @property
    def name(self) -> str:
        """``G0_SANITY``."""
        return Gate.Name(self.gate).removeprefix("SEED_GATE_")

    def require(self) -> "GateReading":
        """Return the reading itself.

        Raises:
            SeedRefused: ``gate_failed``, with the reading.
        """
        if self.why:
            raise SeedRefused("gate_failed", f"gate {self.name}: {self.why}", self)
        return self


def sanity(module: nn.Module, kind: SlotKind, features: int, limits: Limits) -> GateReading:
    """G0, into GERMINATED: the seed is a sane module for its slot.

    Measured on a probe of fixed random numbers from a generator of its own: ``parameters``, their
    number, which has a limit; ``deviation``, the largest difference between output and input (0:
    it is the identity), which must be finite and of the input's shape. A module on the meta device
    has shapes only.
    """
    count = sum(parameter.numel() for parameter in module.parameters())
    measures = {"parameters": float(count)}
    if not 0 < count <= limits.parameters:
        allowed = f"1 to {limits.parameters}"
        return GateReading(
            Gate.SEED_GATE_G0_SANITY,
            measures,
            f"the seed has {count} parameters; allowed: {allowed}",
        )
    weight = next(module.parameters())
    shape = [features if size < 0 else size for size in _PROBE_SHAPES[kind]]
    probe = torch.randn(shape, generator=torch.Generator().manual_seed(0)).to(weight)
    training = module.training
    module.eval()
    with torch.no_grad():
        output = module(probe)
    module.train(training)
    why = ""
    if output.shape != probe.shape:
        why = f"the seed makes {tuple(output.shape)} of {tuple(probe.shape)}; allowed: that shape"
    elif not output.is_meta:
        measures["deviation"] = float((output - probe).abs().max())
        if not math.isfinite(measures["deviation"]):
            why = "the seed's output isn't finite"
    return GateReading(Gate.SEED_GATE_G0_SANITY, measures, why)


def gradient_health(
    steps: float, not_finite: float, norm: float, loss: float, limits: Limits
) -> GateReading:
    """G1, into BLENDING: the seed has learned on the side, with gradients that are sound.

    ``steps``, how many it has learned for; ``not_finite``, in how many of them its gradient or loss
    wasn't finite, which must be none; ``gradient_norm`` and ``side_loss``, exponential means (decay
    0.9) of its gradient's norm, above 0 and at most the limit, and of its loss on the side.
    """
    measures = {
        "steps": steps,
        "not_finite": not_finite,
        "gradient_norm": norm,
        "side_loss": loss,
    }
    why = ""
    if steps < limits.side_steps:
        why = f"trained for {steps:g} steps; needed: {limits.side_steps}"
    elif not_finite:
        why = f"its gradient wasn't finite in {not_finite:g} of {steps:g} steps; allowed: none"
    elif not 0 < norm <= limits.gradient_norm:
        why = f"gradient_norm is {norm:g}; allowed: above 0 and at most {limits.gradient_norm:g}"
    return GateReading(Gate.SEED_GATE_G1_GRADIENT_HEALTH, measures, why)


def stability(alpha: float, before: float, now: float, limits: Limits) -> GateReading:
    """G2, into SHADOWING: the seed is blended in, and the run has stayed stable over it.

    ``alpha``, its share, must be 1; ``loss_before`` and ``loss_now``, the running mean of the
    training loss when blending began and now; ``increase`` = (now - before) / |before|, at most the
    limit.
    """
    increase = (now - before) / max(abs(before), 1e-12)
    measures = {"alpha": alpha, "loss_before": before, "loss_now": now, "increase": increase}
    why = ""
    if alpha < 1.0:
        why = f"alpha is {alpha:g}: blending goes on; needed: 1"
    elif not increase <= limits.loss_increase:
        why = f"the loss rose from {before:g} to {now:g}; allowed: by {limits.loss_increase:.0%}"
    return GateReading(Gate.SEED_GATE_G2_STABILITY, measures, why)


def interface(passes: Iterable[tuple[Tensor, Tensor]], limits: Limits) -> GateReading:
    """G3, into PROBATIONARY: on held-out data the seed's output fits where the host's was.

    ``scale``, the root mean square of the output over that of the features that went in, within the
    limit either way; ``passes``, how often the slot was used, at least once; every output finite
    and of the features' shape.
    """
    found = [(x.detach().double(), out.detach().double()) for x, out in passes]
    gate = Gate.SEED_GATE_G3_INTERFACE
    measures = {"passes": float(len(found))}
    if not found:
        return GateReading(gate, measures, "the host didn't use the slot on the held-out data")
    for x, out in found:
        if out.shape != x.shape:
            return GateReading(
                gate, measures, f"it makes {tuple(out.shape)} of {tuple(x.shape)}: another shape"
            )
    size_in = math.sqrt(sum(float(x.square().mean()) for x, _ in found) / len(found))
    size_out = math.sqrt(sum(float(out.square().mean()) for _, out in found) / len(found))
    measures["scale"] = scale = size_out / max(size_in, 1e-12)
    why = ""
    if not 1 / limits.scale <= scale <= limits.scale:
        least, most = 1 / limits.scale, limits.scale
        why = f"scale is {scale:g}; allowed: {least:g} to {most:g}"
    return GateReading(gate, measures, why)


def system_impact(
    with_seed: float, without: float, limits: Limits, *, what: str = "the seed"
) -> GateReading:
    """G4, into FOSSILIZED: the model is better with the seed than without, on held-out data.

    ``loss_with`` and ``loss_without``: the held-out loss of the model as it is, and with the slot
    passing its input through; ``impact`` = (with - without) / |without|, at most the limit.
    Pruning is judged in the same way: with and without the removal.
    """
    impact = (with_seed - without) / max(abs(without), 1e-12)
    measures = {"loss_with": with_seed, "loss_without": without, "impact": impact}
    why = ""
    if not impact <= limits.impact:
        why = (
            f"the held-out loss is {with_seed:g} with {what} and {without:g} without it; "
            f"allowed: higher by {limits.impact:.3g} of that"
        )
    return GateReading(Gate.SEED_GATE_G4_SYSTEM_IMPACT, measures, why)


def reset(left: Mapping[str, int]) -> GateReading:
    """G5, into DORMANT: nothing of the seed is left.

    ``modules``, ``grafts`` and ``owned``: modules of it in the model, ways into the host's output,
    parameters in the registry. All must be 0.
    """
    measures = {name: float(count) for name, count in left.items()}
    rest = ", ".join(f"{count} {name}" for name, count in left.items() if count)
    return GateReading(Gate.SEED_GATE_G5_RESET, measures, rest and f"left of the seed: {rest}")
