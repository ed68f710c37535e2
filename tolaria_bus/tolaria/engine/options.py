"""What a run wants of its step beyond the plain loop, and what of that is on here, and why.

Each wish is a setting. What can't be had on a device is off, and says why; nothing is switched on
that wasn't asked for, but what changes no number (pinned memory) and TF32 where the device has it.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch

Amp = Literal["off", "auto", "bf16", "fp16"]

_DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16}
_AMPERE = 8  # The major compute capability from which CUDA devices have bf16 and TF32.


@dataclass(frozen=True, slots=True)
class StepOptions:
    """What the step is asked to do.

    Attributes:
        compile: ``off``, ``on`` (TorchInductor), or the name of another backend of torch.compile.
        amp: Autocast: ``off``, ``bf16``, ``fp16`` (with a GradScaler), or ``auto``: what is fast.
        tf32: Let CUDA multiply matrices of float32 in TF32.
        accumulate: Batches whose gradients make one optimizer step.
        clip_norm: Gradients of a larger 2-norm, over all parameters, are scaled down to it.
        channels_last: Keep convolutions' weights and images in channels-last format.
        aggregation: Handler of conflicts between the gradients of host and seeds, or ``none``.
        activation_checkpointing: Modules (glob of qualified names) that keep no activations.
    """

    compile: str = "off"
    amp: Amp = "off"
    tf32: bool = True
    accumulate: int = 1
    clip_norm: float | None = None
    channels_last: bool = False
    aggregation: str = "none"
    activation_checkpointing: str = ""

    def changes_numbers(self) -> dict[str, str]:
        """Return what is set to something that changes a run's bits, for the record of them."""
        plain = StepOptions()
        return {
            f"engine.{name}": str(getattr(self, name))
            for name in sorted(set(self.__slots__) - {"activation_checkpointing"})
            if getattr(self, name) != getattr(plain, name)
        }


class Feature(NamedTuple):
    """One feature of the step: whether it is on, as what, and why not where it is off."""

    name: str
    on: bool
    value: str
    why: str

    def __str__(self) -> str:
        state = self.value if self.on else "off"
        return f"{self.name} {state} ({self.why})" if self.why else f"{self.name} {state}"


def amp_dtype(options: StepOptions, device: torch.device) -> tuple[torch.dtype | None, str]:
    """Return the type to autocast to, None for no autocast; and why it is that."""
    if options.amp == "off":
        return None, "not asked for"
    if options.amp == "auto":
        if device.type != "cuda":
            return None, f"auto: a {device.type} gains nothing by it"
        if torch.cuda.get_device_capability(device)[0] >= _AMPERE:
            return torch.bfloat16, "auto: the device has it"
        return torch.float16, "auto: the device has no bf16"
    if options.amp == "bf16" and device.type == "cuda" and not torch.cuda.is_bf16_supported():
        return None, "the device has no bf16"
    return _DTYPES[options.amp], ""


def has_tf32(device: torch.device) -> bool:
    """Whether the device multiplies in TF32."""
    return (
        device.type == "cuda"
        and torch.version.hip is None
        and torch.cuda.get_device_capability(device)[0] >= _AMPERE
    )


def features(
    options: StepOptions,
    device: torch.device,
    *,
    optimizer: torch.optim.Optimizer,
    sample_losses: bool = False,
    prefetch: Feature | None = None,
    fallen: Mapping[str, str] | None = None,
) -> list[Feature]:
    """Return every feature, on or off, and why.

    Args:
        options: What is asked for.
        device: Where the run trains.
        optimizer: The one in use.
        sample_losses: Whether the job gives the losses of single samples.
        prefetch: How the batches come, which isn't the step's; None: nothing is said of it.
        fallen: Features that failed before and are off since, and why.
    """
    dtype, why = amp_dtype(options, device)
    tf32 = options.tf32 and has_tf32(device)
    cuda = device.type == "cuda"
    asked = "not asked for"
    none = f"the device is a {device.type}"
    no_tf32 = "the device has none"
    backend = "inductor" if options.compile == "on" else options.compile
    form = next((f for f in ("fused", "foreach") if optimizer.param_groups[0].get(f)), "")
    clip = options.clip_norm
    modules = options.activation_checkpointing
    handler = options.aggregation
    # What is compiled frees its memory behind the first of several backward passes.
    but = "" if handler == "none" else f"eager while {handler} handles seeds' gradients"
    found = [
        _feature("compile", options.compile != "off", backend, asked, but),
        Feature("amp", dtype is not None, str(dtype).removeprefix("torch."), why),
        _feature("scaler", dtype is torch.float16, "on", "fp16 alone needs it"),
        _feature("tf32", tf32, "on", (no_tf32 if cuda else none) if options.tf32 else "not wanted"),
        _feature("pinned memory", cuda, "on, copies don't block", none),
        *(() if prefetch is None else (prefetch,)),
        _feature("optimizer", bool(form), form, "the job made it so"),
        _feature("accumulate", options.accumulate > 1, f"{options.accumulate} batches", asked),
        _feature("clip", clip is not None, f"norm {clip:g}" if clip is not None else "", asked),
        _feature("channels last", options.channels_last, "on", asked),
        _feature("attribution", sample_losses, "by sample", "the job gives no losses of samples"),
        _feature("aggregation", handler != "none", handler, asked),
        _feature("activation checkpointing", bool(modules), modules, asked),
    ]
    off = fallen or {}
    return [
        Feature(each.name, False, "", f"it failed: {off[each.name]}") if each.name in off else each
        for each in found
    ]


def _feature(name: str, on: bool, value: str, why_off: str, but: str = "") -> Feature:
    return Feature(name, on, value if on else "", but if on else why_off)


def line(found: Iterable[Feature]) -> str:
    """Return the features in one line: those that are on first."""
    ordered = sorted(found, key=lambda feature: not feature.on)
    return "; ".join(str(feature) for feature in ordered)
