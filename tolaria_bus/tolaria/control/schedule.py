"""At which fence a command takes effect: its annotations ``at_step``, ``at_epoch``, ``late_ok``."""

from __future__ import annotations

from dataclasses import dataclass

from tolaria_bus.leyline import AdaptationCommand
from tolaria_bus.tolaria.control.commands import CommandRefused
from tolaria_bus.tolaria.recovery.state import TrainingState

_YES = frozenset({"1", "true", "yes"})
_NO = frozenset({"", "0", "false", "no"})


@dataclass(frozen=True, slots=True)
class Due:
    """A later fence: after so many optimizer steps, or at the end of an epoch (1, 2, ...)."""

    step: int | None = None
    epoch: int | None = None

    def __str__(self) -> str:
        """``step 1200`` or ``epoch 3``."""
        return f"epoch {self.epoch}" if self.step is None else f"step {self.step}"


def due_fence(
    command: AdaptationCommand, state: TrainingState, epoch_ended: int | None
) -> Due | None:
    """The later fence that a command names; ``None``: it is due at this one.

    Args:
        command: With or without annotations.
        state: Where the run is.
        epoch_ended: The epoch that ends at this fence, if one does.

    Raises:
        CommandRefused: ``bad_annotation``, or ``too_late``: the fence has passed.
    """
    annotations = command.annotations
    at_step = _count(annotations.get("at_step"), "at_step")
    at_epoch = _count(annotations.get("at_epoch"), "at_epoch")
    late_ok = annotations.get("late_ok", "").lower()
    if late_ok not in _YES | _NO:
        raise CommandRefused("bad_annotation", f"late_ok = {late_ok!r}: must be true or false")
    if at_step is not None and at_epoch is not None:
        raise CommandRefused("bad_annotation", "at_step and at_epoch exclude each other")
    if at_step is not None:
        if at_step > state.step:
            return Due(step=at_step)
        late = at_step < state.step
        wanted, here = f"at_step = {at_step}", f"step {state.step}"
    elif at_epoch is not None:
        if at_epoch < 1:
            raise CommandRefused("bad_annotation", "at_epoch = 0: epochs are counted from 1")
        if at_epoch > state.epoch:
            return Due(epoch=at_epoch)
        late = at_epoch != epoch_ended
        wanted, here = f"at_epoch = {at_epoch}", f"epoch {state.epoch}"
    else:
        return None
    if late and late_ok not in _YES:
        raise CommandRefused("too_late", f"{wanted}: the run is past it, at {here}")
    return None


def _count(text: str | None, name: str) -> int | None:
    if text is None:
        return None
    # isdecimal alone lets other scripts' digits pass.
    if not (text.isascii() and text.isdecimal()) or len(text) > 16:
        raise CommandRefused("bad_annotation", f"{name} = {text!r}: must be a whole number from 0")
    return int(text)
