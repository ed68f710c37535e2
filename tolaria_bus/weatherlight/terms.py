"""How a worker is treated, as its settings have it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import timedelta
from typing import Self

from tolaria_bus.settings import Settings


@dataclass(frozen=True, slots=True)
class Terms:
    """How a worker is treated.

    Attributes:
        hang: How long it may get no further.
        start: Likewise until its first step.
        drain: How long it takes to leave in good order, at most.
        restarts: In a row without progress, before it is given up.
        first_wait: Before the first of them.
        environment: Of its process.
        inherit: It writes where we do, and not into its run's folder.
    """

    hang: timedelta
    start: timedelta
    drain: timedelta
    restarts: int
    first_wait: timedelta
    environment: Mapping[str, str]
    inherit: bool = False

    @classmethod
    def of(cls, settings: Settings, environment: Mapping[str, str], *, inherit: bool) -> Self:
        """As a worker's settings have it."""
        return cls(
            hang=timedelta(seconds=settings.hang_seconds),
            start=timedelta(seconds=settings.start_seconds),
            drain=timedelta(seconds=settings.drain_seconds),
            restarts=settings.restart_limit,
            first_wait=timedelta(seconds=settings.restart_seconds),
            environment=environment,
            inherit=inherit,
        )
