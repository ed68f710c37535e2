"""What counts as a number where a value comes from outside."""

import math
from typing import TypeGuard


def is_number(value: object) -> TypeGuard[float]:
    """Whether ``value`` is a finite int or float; a truth value is no number."""
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


def is_whole(value: object, least: int) -> TypeGuard[int]:
    """Whether ``value`` is an int of at least ``least``."""
    return isinstance(value, int) and not isinstance(value, bool) and value >= least
