"""What must hold before a seed may enter its next stage. In this version: G0, sanity."""

import torch
from torch import nn

from tolaria_bus.kasmina.errors import SeedRefused
from tolaria_bus.kasmina.slot import SlotKind

PARAMETER_LIMIT = 50_000_000

_PROBE_SHAPES: dict[str, tuple[int, ...]] = {"conv2d": (2, -1, 8, 8), "linear": (2, 4, -1)}


def check_sanity(module: nn.Module, kind: SlotKind, features: int, parameter_limit: int) -> None:
    """G0: the seed isn't too big, and gives for a probe a finite output of the probe's shape.

    The probe's numbers come from a generator of its own.

    Raises:
        SeedRefused: ``bad_parameter`` if it is too big, else ``gate_failed``.
    """
    count = sum(parameter.numel() for parameter in module.parameters())
    if count > parameter_limit:
        raise SeedRefused(
            "bad_parameter", f"the seed has {count} parameters; allowed: at most {parameter_limit}"
        )
    weight = next(module.parameters())
    shape = [features if size < 0 else size for size in _PROBE_SHAPES[kind]]
    probe = torch.randn(shape, generator=torch.Generator().manual_seed(0)).to(weight)
    training = module.training
    module.eval()
    with torch.no_grad():
        output = module(probe)
    module.train(training)
    if output.shape != probe.shape:
        raise SeedRefused(
            "gate_failed",
            f"gate G0_SANITY: the seed makes {tuple(output.shape)} of {tuple(probe.shape)}; "
            "allowed: the same shape",
        )
    # A draft on the meta device has shapes only.
    if not output.is_meta and not bool(torch.isfinite(output).all()):
        raise SeedRefused("gate_failed", "gate G0_SANITY: the seed's output isn't finite")
