"""Forward and backward, guarded: torch.compile and autocast may fail, the step may not.

``torch.compile`` does nothing when it is called; it fails in the first forward, or only in the
first backward. So the first pass after the start, after a change of structure and for batches of
another shape is *guarded*: what a pass changes beside gradients (buffers, generators) is put aside;
if it fails, it is done again without compile, then without autocast, then without both. What works
shows which of them was at fault; that one is off from then on, which is a decision of the run and
goes into its journal. If even the plain pass fails, the fault is the job's.
"""

from collections.abc import Callable, Hashable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from tolaria_bus.tolaria.engine.batch import map_tensors
from tolaria_bus.tolaria.engine.job_errors import in_one_line
from tolaria_bus.tolaria.engine.precision import AMP, COMPILE, StepState
from tolaria_bus.tolaria.engine.seeding import GlobalGenerators

MESSAGE_LENGTH = 300
"""Characters of an error that are told: compilers' are pages long."""

Pass = Callable[[Any, float], Tensor]
"""Forward and backward on (batch, share of the step): adds to gradients, returns the loss."""


class Fallback(NamedTuple):
    """A feature that failed and is off from now on."""

    feature: str
    why: str


class Passes:
    """Runs passes over one model with compile and autocast as far as they work.

    Args:
        model: In train mode.
        run: Forward and backward of one batch, eager and without autocast.
        state: Which features have failed before; kept up to date.
        device: Where the model is.
        backend: torch.compile's; empty: don't compile.
        amp: The type to autocast to; None: don't.

    Attributes:
        fallbacks: Those that nobody has taken note of yet.
    """

    def __init__(
        self,
        model: nn.Module,
        run: Pass,
        state: StepState,
        device: torch.device,
        *,
        backend: str = "",
        amp: torch.dtype | None = None,
    ) -> None:
        self.fallbacks: list[Fallback] = []
        self._model = model
        self._run = run
        self._state = state
        self._device = device
        self._backend = backend
        self._amp = amp
        self._plain = not backend and amp is None
        self._compiled = False
        # Kept: torch.compile would compile anew for another of its own callables.
        self._callable: Any = None
        self._key: Hashable = None
        self._proven: set[Any] = set()
        self._proven_under: Any = None
        self._armed = 0

    def __call__(
        self,
        batch: Any,
        share: float,
        reseed: Callable[[], object],
        *,
        conservative: bool,
        key: Hashable,
    ) -> Tensor:
        """Run forward and backward and return the loss.

        Args:
            batch: On the device.
            share: Of the step: what the loss is multiplied by.
            reseed: Seeds the generators as they were before the pass.
            conservative: Don't compile: in conservative mode, or for another reason.
            key: Of the model's structure; a pass under another is guarded, and compiled anew.

        Raises:
            Exception: what the job's loss raised without compile and autocast.
        """
        if self._plain:
            return self._run(batch, share)
        fallen = self._state.fallen
        wanted = (
            bool(self._backend) and COMPILE not in fallen and not conservative,
            self.autocasts,
        )
        under = (wanted, key, self._state.version, self._armed)
        if under != self._proven_under:
            self._proven.clear()
            self._proven_under = under
            self._forget(key)
        shapes = _shapes(batch)
        if shapes in self._proven or wanted == (False, False):
            return self._attempt(wanted, batch, share)
        loss = self._guarded(wanted, batch, share, reseed)
        if not self.fallbacks:
            self._proven.add(shapes)
        return loss

    def rearm(self) -> None:
        """Guard the next pass: at a fence the model may have changed in any way."""
        self._armed += 1

    @property
    def autocasts(self) -> bool:
        """Is autocast on?"""
        return self._amp is not None and AMP not in self._state.fallen

    def autocast(self) -> AbstractContextManager[Any]:
        """Return the context in which the model runs, for validation too."""
        if not self.autocasts:
            return nullcontext()
        return torch.autocast(self._device.type, self._amp)

    @contextmanager
    def eager(self) -> Iterator[None]:
        """Run the model uncompiled inside the block."""
        was = self._compiled
        self._compile(False)
        try:
            yield
        finally:
            self._compile(was)

    def _guarded(
        self, wanted: tuple[bool, bool], batch: Any, share: float, reseed: Callable[[], object]
    ) -> Tensor:
        kept = _Kept(self._model)
        first: Exception | None = None
        for attempt in _weaker(wanted):
            try:
                loss = self._attempt(attempt, batch, share)
            except Exception as error:
                plain = attempt == (False, False)
                if plain or isinstance(error, torch.OutOfMemoryError):
                    raise
                first = first or error
                kept.put_back()
                reseed()
            else:
                self._note(wanted, attempt, first)
                return loss
        raise AssertionError("the plain pass returns or raises")

    def _note(
        self, wanted: tuple[bool, bool], worked: tuple[bool, bool], error: Exception | None
    ) -> None:
        why = "" if error is None else in_one_line(error, MESSAGE_LENGTH)
        for feature, asked, on in zip((COMPILE, AMP), wanted, worked, strict=True):
            if asked and not on:
                self._state.fall_back(feature, why)
                self.fallbacks.append(Fallback(feature, why))

    def _attempt(self, on: tuple[bool, bool], batch: Any, share: float) -> Tensor:
        compiled, amp = on
        self._compile(compiled)
        if not amp:
            return self._run(batch, share)
        with torch.autocast(self._device.type, self._amp):
            return self._run(batch, share)

    def _compile(self, wanted: bool) -> None:
        if wanted == self._compiled:
            return
        if wanted and self._callable is not None:
            self._model._compiled_call_impl = self._callable
        elif wanted:
            # Static shapes: else what was seen before decides which kernels a batch gets, and a
            # resumed run has seen less.
            self._callable = torch.compile(
                _inlined(self._model), backend=self._backend, dynamic=False
            )
            self._model._compiled_call_impl = self._callable
        else:
            # In place, as torch has no way back; the keys of the state dict never change.
            self._model._compiled_call_impl = None
        self._compiled = wanted

    def _forget(self, key: Hashable) -> None:
        """Compile anew after a change of structure, without what was compiled for the old one."""
        if self._callable is not None and key != self._key:
            self._compile(False)
            self._callable = None
            torch.compiler.reset()
        self._key = key


def _inlined(model: nn.Module) -> Callable[..., Any]:
    """The model's call, from a frame that is ours.

    ``model.compile()`` starts from a frame of torch.nn, which the compiler leaves alone: of a model
    that is itself an ``nn.Sequential`` it would compile nothing, and say nothing.
    """
    call: Callable[..., Any] = model._call_impl

    def run(*args: Any, **kwargs: Any) -> Any:
        return call(*args, **kwargs)

    return run


class _Kept:
    """What a pass changes: buffers, gradients, global generators."""

    def __init__(self, model: nn.Module) -> None:
        self._buffers = [(buffer, buffer.clone()) for buffer in model.buffers()]
        self._gradients = [
            (p, None if p.grad is None else p.grad.clone()) for p in model.parameters()
        ]
        self._generators = GlobalGenerators()

    def put_back(self) -> None:
        """Make it as it was."""
        with torch.no_grad():
            for buffer, value in self._buffers:
                buffer.copy_(value)
        for parameter, gradient in self._gradients:
            parameter.grad = None if gradient is None else gradient.clone()
        self._generators.put_back()


def _weaker(wanted: tuple[bool, bool]) -> list[tuple[bool, bool]]:
    """What is tried, in order: as wanted, without compile, without autocast, without both."""
    compiled, amp = wanted
    return list(dict.fromkeys([wanted, (False, amp), (compiled, False), (False, False)]))


def _shapes(batch: Any) -> tuple[Any, ...]:
    found: list[Any] = []
    map_tensors(batch, lambda t: found.append((t.shape, t.dtype)) or t)  # type: ignore[func-returns-value]
    return tuple(found)
