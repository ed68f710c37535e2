"""Batches from a loader of the user's own that can't be taken apart and indexed by position.

A loader with ``state_dict()`` and ``load_state_dict()`` (torchdata's ``StatefulDataLoader`` has
them) is asked for its state at each checkpoint and given it back. Any other is gone through again:
a resumed run starts the pass that it was in and throws away the batches that it had. That takes as
long as reading them, and comes to the same batches only if the loader gives the same ones again,
given the same seeds.

A *pass* is what one ``iter(loader)`` gives, to its end; of a loader without a state no more than
``len(loader)`` batches, so that a run resumed between two epochs has nothing to go through. An
epoch is ``len(loader)`` batches. The two agree for a loader that tells its true length.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import torch

from tolaria_bus.tolaria.engine.batch import page_locked
from tolaria_bus.tolaria.engine.job_errors import JobError, user_error
from tolaria_bus.tolaria.engine.seeding import Domain, mix, seed_globals, seeded


class LoaderStream:
    """The training batches of a run, as a loader gives them.

    The global generators are seeded before each batch, from (seed, timeline, position); before the
    first of a pass from (seed, pass), so that a shuffle has its order from there. Generators that a
    loader without a state of its own holds are seeded likewise, and ``set_epoch`` of the loader,
    its samplers and its dataset is called with the number of the pass.

    Args:
        loader: Gives batches, as often as it is gone through.
        seed: The run's seed.
        timeline: The run's timeline.
        pin_memory: Give batches in page-locked memory.

    Attributes:
        is_stateful: The loader tells its state.
        steps_per_epoch: ``len(loader)``.

    Raises:
        JobError: The loader has no length, or a length of 0.
    """

    def __init__(
        self,
        loader: Iterable[Any],
        seed: int,
        *,
        timeline: int = 0,
        pin_memory: bool = False,
    ) -> None:
        self._loader: Any = loader
        self._seed = seed
        self._fetch_key = mix(seed, Domain.FETCH)
        self._pin = pin_memory and torch.accelerator.is_available()
        self.is_stateful = is_stateful(loader)
        self.steps_per_epoch = _length(loader)
        self._timeline = timeline
        self._position = 0
        self._pass = 0
        self._drawn = 0  # Of this pass.
        self._behind = 0  # Batches to throw away before the next one.
        self._iterator: Iterator[Any] | None = None
        self._saved: Any = None  # State to give to the loader before it is gone through.

    @property
    def position(self) -> int:
        """How many batches have been drawn since the start of the run."""
        return self._position

    @property
    def timeline(self) -> int:
        """The timeline whose augmentations are drawn."""
        return self._timeline

    @property
    def caution(self) -> str:
        """What a user should know about resuming with this loader, or empty."""
        kind = type(self._loader).__name__
        if self.is_stateful and getattr(self._loader, "num_workers", 0) > 0:
            return (
                f"the training data's {kind} has worker processes: what they draw at random after "
                "a resume in the middle of an epoch is as it was only if its state has that in it "
                "(torchdata's has not)"
            )
        if self.is_stateful:
            return ""
        return (
            f"the training data's {kind} tells no state "
            "(state_dict, load_state_dict): a resumed run goes through its batches again from the "
            "start of the epoch, and is exact only if they come in the same order"
        )

    def next(self) -> Any:
        """Return the next batch.

        Raises:
            JobError: The loader raised, or gave no batch.
        """
        while self._behind:
            self._behind -= 1
            self._draw(self._position - self._behind - 1)
        batch = self._draw(self._position)
        self._position += 1
        return page_locked(batch) if self._pin else batch

    def seek(self, position: int, timeline: int | None = None) -> None:
        """Go forward to ``position``, and to another timeline if one is given.

        The batches on the way are read, at the next :meth:`next`, and thrown away.

        Raises:
            ValueError: ``position`` lies behind: only :meth:`restore` goes back.
        """
        if position < self._position:
            raise ValueError(
                f"position is {position}; allowed: {self._position} or more, as a loader of the "
                "user's own goes back only with its state"
            )
        self._behind += position - self._position
        self._position = position
        self._timeline = self._timeline if timeline is None else timeline

    def own_state(self) -> dict[str, Any]:
        """Where the loader is, for :meth:`restore`; not copied.

        Raises:
            JobError: The loader's ``state_dict()`` raised.
        """
        state: dict[str, Any] = {"pass": self._pass, "drawn": self._drawn, "behind": self._behind}
        if self._saved is not None:
            state["loader"] = self._saved
        elif self.is_stateful and self._iterator is not None:
            # Loaders may draw when asked, torchdata's for one.
            with seeded(mix(self._seed, Domain.LOADER)):
                state["loader"] = _call(self._loader.state_dict)
        return state

    def restore(self, position: int, timeline: int, own: Mapping[str, Any]) -> None:
        """Go to where the loader was when :meth:`own_state` gave ``own``.

        Args:
            position: Of then.
            timeline: From here on.
            own: The state; empty for one from before the first batch.

        Raises:
            JobError: The state is of a loader with a state of its own, and this one has none; or
                the other way round.
        """
        drawn = own.get("drawn", position)
        saved = own.get("loader")
        if saved is None and self.is_stateful and drawn:
            raise JobError(
                "the saved state has none of the training data's loader, which now tells one"
            )
        if saved is not None and not self.is_stateful:
            raise JobError(
                "the saved state has one of the training data's loader, which now takes none"
            )
        self.close()
        self._position, self._timeline = position, timeline
        self._pass, self._saved = own.get("pass", 0), saved
        self._behind = own.get("behind", 0)
        self._drawn = drawn
        if saved is None:
            self._drawn = 0
            self._behind += drawn

    def close(self) -> None:
        """Let go of the pass that goes on, and so of the loader's worker processes."""
        self._iterator = None

    def _draw(self, position: int) -> Any:
        begun = self._iterator is None and self._saved is None
        if self._iterator is None:
            self._iterator = self._begin()
        if not begun:
            seed_globals(mix(self._fetch_key, self._timeline, position))
        batch = self._next(self._iterator)
        if batch is _END:
            self._pass, self._drawn = self._pass + 1, 0
            self._iterator = self._begin()
            batch = self._next(self._iterator)
            if batch is _END:
                raise JobError("the training data's loader gave no batch at all in a pass")
        self._drawn += 1
        if self._drawn == self.steps_per_epoch and not self.is_stateful:
            self._iterator = None
            self._pass, self._drawn = self._pass + 1, 0
        return batch

    def _begin(self) -> Iterator[Any]:
        key = mix(self._seed, Domain.ORDER, self._pass)
        for part in _parts(self._loader):
            generator = getattr(part, "generator", None)
            if isinstance(generator, torch.Generator) and not self.is_stateful:
                generator.manual_seed(key)
            if hasattr(part, "set_epoch"):
                part.set_epoch(self._pass)
        seed_globals(key)
        saved, self._saved = self._saved, None
        if saved is not None:
            _call(self._loader.load_state_dict, saved)
        iterator: Iterator[Any] = _call(iter, self._loader)
        return iterator

    def _next(self, iterator: Iterator[Any]) -> Any:
        return _call(next, iterator, _END)


_END = object()


def is_stateful(loader: object) -> bool:
    """Does a loader tell its state and take it back?"""
    return callable(getattr(loader, "state_dict", None)) and callable(
        getattr(loader, "load_state_dict", None)
    )


def _parts(loader: Any) -> list[Any]:
    batch_sampler = getattr(loader, "batch_sampler", None)
    found = [
        loader,
        getattr(loader, "dataset", None),
        getattr(loader, "sampler", None),
        batch_sampler,
        getattr(batch_sampler, "sampler", None),
    ]
    parts: list[Any] = []
    for part in found:
        if part is not None and not any(part is other for other in parts):
            parts.append(part)
    return parts


def _length(loader: Any) -> int:
    try:
        length = len(loader)
    except TypeError:
        raise JobError(
            f"the training data's {type(loader).__name__} has no length, and epochs are counted by "
            "it; give it, or its dataset, a __len__"
        ) from None
    if length < 1:
        raise JobError(f"the training data's {type(loader).__name__} has a length of {length}")
    return length


def _call(function: Any, *arguments: Any) -> Any:
    try:
        return function(*arguments)
    except Exception as error:
        raise user_error("the training data", "reading a batch", error) from error
