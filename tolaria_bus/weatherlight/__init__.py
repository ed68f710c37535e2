"""Weatherlight: the supervisor. Starts workers, watches them, and speaks for those that can't.

A process of its own that imports no torch and knows workers only by their signal blocks, their
processes and the bus: what takes a worker down leaves it standing, and the other way round.
"""

from tolaria_bus.weatherlight.fleet import Planned, plan
from tolaria_bus.weatherlight.supervisor import Watch, supervise

__all__ = ["Planned", "Watch", "plan", "supervise"]
