"""What keeps a run safe: signals that outlive their writer, breakers, budgets, a health page.

Knows the contracts (``leyline``) and nothing else of tolaria-bus; used by everything above.
"""

from tolaria_bus.safety.layout import Phase, WorkerState, may_take_as_a_start
from tolaria_bus.safety.signals import Signals
from tolaria_bus.safety.watching import SignalView

__all__ = ["Phase", "SignalView", "Signals", "WorkerState", "may_take_as_a_start"]
