"""What one optimizer's state means to another, where a run changes its class.

=========================  ====================  ===================================================
from                       to                    carried over
=========================  ====================  ===================================================
any                        the same class        everything, bit for bit; ``max_exp_avg_sq`` begins
                                                 at ``exp_avg_sq`` where amsgrad is turned on
Adam, AdamW, RAdam, NAdam  Adam, AdamW, RAdam    ``step``, ``exp_avg``, ``exp_avg_sq``, bit for bit:
                                                 all four keep the same two running means
Adam, AdamW, RAdam, NAdam  SGD with momentum     ``momentum_buffer`` is ``exp_avg`` times
                                                 ``(1 - dampening) / (1 - beta1)``: both are fading
                                                 sums of past gradients, Adam's a weighted mean
others                     others                nothing
=========================  ====================  ===================================================

Not carried, because it would mean something else: SGD's momentum to Adam (it would be divided by a
second moment that doesn't exist yet, and by a bias correction that starts at 1 - beta1), RMSprop's
momentum (of normalised gradients), and sums of squares (Adagrad) to running means of them.
"""

from collections.abc import Mapping
from typing import Any, NamedTuple

from torch import Tensor, nn
from torch.optim import Optimizer

_MEANS = ("step", "exp_avg", "exp_avg_sq")
_GIVES_MEANS = frozenset({"Adam", "AdamW", "RAdam", "NAdam"})
_TAKES_MEANS = frozenset({"Adam", "AdamW", "RAdam"})
# Options that decide which tensors the state has.
_SHAPING = ("amsgrad", "centered", "capturable")


class Carried(NamedTuple):
    """What became of the state: keys carried over, and keys of the old state that were left."""

    kept: tuple[str, ...]
    left: tuple[str, ...]


def carry_over(old: Optimizer, new: Optimizer) -> Carried:
    """Give ``new`` what of ``old``'s state means the same there; ``old`` is not changed.

    The tensors that are carried bit for bit are the same tensors. Both have the same groups of the
    same parameters.
    """
    kept: dict[str, None] = {}
    seen: dict[str, None] = {}
    for before, after in zip(old.param_groups, new.param_groups, strict=True):
        for parameter in after["params"]:
            state = old.state.get(parameter)
            if not state:
                continue
            seen.update(dict.fromkeys(state))
            found = _mapped(type(old).__name__, type(new).__name__, before, after, state)
            if found:
                _place_step(found, after, parameter)
                new.state[parameter] = found
                kept.update(dict.fromkeys(found))
    return Carried(tuple(kept), tuple(key for key in seen if key not in kept))


def _mapped(
    old: str,
    new: str,
    before: Mapping[str, Any],
    after: Mapping[str, Any],
    state: Mapping[str, Any],
) -> dict[str, Any]:
    """Return one parameter's state for the class ``new``; empty: it begins anew."""
    if old in _GIVES_MEANS and new in _TAKES_MEANS:
        found = {key: state[key] for key in _MEANS}
        if after.get("amsgrad"):
            largest = state.get("max_exp_avg_sq")
            found["max_exp_avg_sq"] = state["exp_avg_sq"].clone() if largest is None else largest
        return found
    if old in _GIVES_MEANS and new == "SGD":
        if not after["momentum"]:
            return {}
        factor = (1.0 - after["dampening"]) / (1.0 - before["betas"][0])
        return {"momentum_buffer": state["exp_avg"] * factor}
    if old == new == "SGD":
        return dict(state) if after["momentum"] else {}
    same = all(before.get(key) == after.get(key) for key in _SHAPING)
    same = same and bool(before.get("momentum")) == bool(after.get("momentum"))
    return dict(state) if old == new and same else {}


def _place_step(state: dict[str, Any], group: Mapping[str, Any], parameter: nn.Parameter) -> None:
    """Put the step count where the optimizer's form looks for it."""
    step = state.get("step")
    if isinstance(step, Tensor):
        on_device = group.get("fused") or group.get("capturable")
        state["step"] = step.to(parameter.device if on_device else "cpu")
