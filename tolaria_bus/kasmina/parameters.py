"""Numbers that a command may give, each with its default and what is allowed."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from tolaria_bus.kasmina.errors import SeedRefused


@dataclass(frozen=True)
class Parameter:
    """A number that may be given; ``whole`` ones must be integers, ``odd`` ones odd too."""

    default: float
    least: float
    most: float
    whole: bool = True
    odd: bool = False

    @property
    def allowed(self) -> str:
        """Say in words what is allowed."""
        word = "an odd whole number" if self.odd else "a whole number" if self.whole else "a number"
        return f"{word} from {self.least:g} to {self.most:g}"


def settled(
    owner: str, specs: Mapping[str, Parameter], values: Mapping[str, Any]
) -> dict[str, float | int]:
    """Return ``values`` checked against ``specs``, what is left out with its default.

    Raises:
        SeedRefused: ``bad_parameter``, naming it, its value and what is allowed; ``owner`` says
            whose parameters these are.
    """
    for name in values:
        if name not in specs:
            allowed = ", ".join(specs) or "none"
            raise SeedRefused(
                "bad_parameter", f"{name!r} is no parameter of {owner}; allowed: {allowed}"
            )
    return {
        name: _checked(name, values.get(name, spec.default), spec) for name, spec in specs.items()
    }


def _checked(name: str, value: object, spec: Parameter) -> float | int:
    number = isinstance(value, (int, float)) and not isinstance(value, bool)
    if number and math.isfinite(value) and spec.least <= value <= spec.most:  # type: ignore[arg-type, operator]
        # A protobuf Struct has no integers: 3.0 is a whole number.
        if not spec.whole:
            return float(value)  # type: ignore[arg-type]
        if value == int(value) and (not spec.odd or int(value) % 2):  # type: ignore[call-overload]
            return int(value)  # type: ignore[call-overload, no-any-return]
    raise SeedRefused("bad_parameter", f"{name} is {value!r}; allowed: {spec.allowed}")
