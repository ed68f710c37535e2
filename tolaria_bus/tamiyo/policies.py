"""Which policies there are, and which one a run has: by name, by entry point, by module:attribute.

A policy is made by a *factory*: called with options, it returns a :class:`~.advice.Policy`. A
package adds one through the entry-point group ``tolaria_bus.policies``. ``module:attribute`` is for
who starts Tamiyo: what comes over the bus names a policy that is known, and never code to load.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable, Mapping
from functools import cache
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any, Final

import orjson

from tolaria_bus.leyline import AdaptationCommand, PolicyUpdate, SystemStatePacket
from tolaria_bus.tamiyo.advice import Policy
from tolaria_bus.tamiyo.heuristic import Heuristic
from tolaria_bus.tamiyo.history import History

ENTRY_POINTS: Final = "tolaria_bus.policies"
DEFAULT: Final = "heuristic"

Factory = Callable[..., Policy]


class PolicyRefused(ValueError):
    """There is no such policy, or it can't be made; one line says why."""


class Named:
    """A policy with its name and options, as answers and people see it."""

    def __init__(self, name: str, policy: Policy, options: Mapping[str, Any]) -> None:
        self.policy = policy
        given = ",".join(f"{key}={value}" for key, value in sorted(options.items()))
        self.label = f"{name}({given})" if given else name
        self.ours = name in LIBRARY


def _continue() -> Policy:
    def decide(packet: SystemStatePacket, history: History) -> AdaptationCommand | None:
        del packet, history
        return None

    return decide


LIBRARY: Final[Mapping[str, Factory]] = {DEFAULT: Heuristic, "continue": _continue}
"""Those that are shipped; ``continue`` changes nothing."""


@cache
def _added() -> Mapping[str, Any]:
    return {entry.name: entry for entry in entry_points(group=ENTRY_POINTS)}


def make(name: str, options: Mapping[str, Any], *, load: bool = False) -> Named:
    """A policy by its name.

    Args:
        name: One of the library's, of an entry point; or ``module:attribute`` where that is loaded.
        options: For its factory.
        load: Whether ``module:attribute`` is loaded, from the current folder too.

    Raises:
        PolicyRefused: See there.
    """
    factory: Any = LIBRARY.get(name)
    try:
        if factory is None and name in _added():
            factory = _added()[name].load()
        elif factory is None and load and ":" in name:
            here = str(Path.cwd())
            if here not in sys.path:
                # As Python does for a script.
                sys.path.insert(0, here)
            module, _, attribute = name.partition(":")
            factory = getattr(importlib.import_module(module), attribute)
    except Exception as error:
        raise PolicyRefused(f"policy {name!r}: {_line(error)}") from error
    if factory is None:
        known = ", ".join((*LIBRARY, *_added()))
        raise PolicyRefused(f"policy {name[:80]!r} is not known; known: {known}")
    try:
        policy = factory(**options)
    except Exception as error:
        raise PolicyRefused(f"policy {name!r} with {dict(options)}: {_line(error)}") from error
    if not callable(policy):
        raise PolicyRefused(f"policy {name!r} is a {type(policy).__name__}, and can't be called")
    return Named(name, policy, options)


class PolicyBook:
    """Which policy each run has.

    Args:
        default: Of runs for which nothing else was said.
    """

    def __init__(self, default: Named) -> None:
        self._default = default
        self._runs: dict[str, Named] = {}
        # By name, also one that was loaded at the start.
        self._started = default

    def of(self, run: str) -> Named:
        """The run's."""
        return self._runs.get(run, self._default)

    def update(self, update: PolicyUpdate) -> Named:
        """Switch a run's policy; of all runs where the update names none.

        Raises:
            PolicyRefused: See there; all stays as it is.
        """
        options: Any = {}
        if update.payload:
            try:
                options = orjson.loads(update.payload)
            except orjson.JSONDecodeError as error:
                raise PolicyRefused(f"payload isn't JSON: {error}") from None
        if not isinstance(options, dict) or not all(key.isidentifier() for key in options):
            raise PolicyRefused("payload must be a JSON object of options by name")
        if update.policy_id == self._started.label and not options:
            named = self._started
        else:
            named = make(update.policy_id, options)
        if update.training_run_id:
            self._runs[update.training_run_id] = named
        else:
            self._default = named
            self._runs.clear()
        return named


def _line(error: BaseException) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())}"
