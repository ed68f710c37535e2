"""A measured number on its way into telemetry."""

from collections.abc import Mapping
from typing import NamedTuple


class Figure(NamedTuple):
    """One number: its full metric name, what it is measured in, and what it is about."""

    name: str
    value: float
    unit: str = ""
    attributes: Mapping[str, str] | None = None
