"""Trying again, and telling about it: each trouble once, and its end."""

from __future__ import annotations

import time
from collections.abc import Mapping

from redis.exceptions import AuthenticationError, ResponseError

from tolaria_bus.oona.backoff import Backoff
from tolaria_bus.oona.events import OnEvent, reason_of


class Attempts:
    """Waits and events of one connection.

    Events: ``disconnected`` (connection, error), ``reconnected`` (connection, seconds), ``refused``
    (connection, error, times), ``accepted`` (connection, seconds): nothing is refused any more.

    Args:
        connection: What events call it.
        on_event: Told of troubles.

    Attributes:
        reconnects: How often it was lost and came back.
    """

    def __init__(self, connection: str, on_event: OnEvent) -> None:
        self.reconnects = 0
        self._connection = connection
        self._on_event = on_event
        self._backoff = Backoff()
        self._lost_at: float | None = None
        self._refused: set[str] = set()
        self._refused_at = 0.0

    @property
    def connected(self) -> bool:
        """The last attempt reached the server."""
        return self._lost_at is None

    def failed(self, error: Exception) -> float:
        """The server wasn't reached, or answered with an error; seconds to wait."""
        refusal = _refusal(error)
        if refusal is not None:
            return self.answered({reason_of(refusal): 1})
        if self._lost_at is None:
            self._lost_at = time.monotonic()
            self._tell("disconnected", error=reason_of(error))
        return self._backoff.next()

    def answered(self, refused: Mapping[str, int] | None = None) -> float:
        """The server answered; seconds to wait if it refused something, else 0.

        Args:
            refused: What it said, and how often.
        """
        self.reached()
        if refused:
            self.refused(refused)
            return self._backoff.next()
        self.accepted()
        return 0.0

    def refused(self, refused: Mapping[str, int]) -> None:
        """It refused something: tell what wasn't told yet of this trouble."""
        if refused and not self._refused:
            self._refused_at = time.monotonic()
        for error in refused.keys() - self._refused:
            self._tell("refused", error=error, times=str(refused[error]))
        self._refused |= refused.keys()

    def accepted(self) -> None:
        """Nothing is refused any more."""
        if self._refused:
            self._tell("accepted", seconds=f"{time.monotonic() - self._refused_at:.3f}")
            self._refused.clear()
        self._backoff.reset()

    def reached(self) -> None:
        """The server answered; whether it takes all that it is asked for isn't known yet."""
        if self._lost_at is not None:
            self._tell("reconnected", seconds=f"{time.monotonic() - self._lost_at:.3f}")
            self._lost_at = None
            self.reconnects += 1
            self._backoff.reset()

    def _tell(self, name: str, **detail: str) -> None:
        self._on_event(name, {"connection": self._connection, **detail})


def _refusal(error: BaseException) -> BaseException | None:
    """What the server said, if it was reached."""
    if isinstance(error, ResponseError | AuthenticationError):
        return error
    # redis-py makes a refused password a lost connection.
    return error.__cause__ if isinstance(error.__cause__, AuthenticationError) else None
