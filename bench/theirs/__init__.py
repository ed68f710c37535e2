"""Programs on other frameworks, each run by :mod:`bench.rivals` in an environment of their own.

Nothing here imports anything of the project: in that environment there is none of it.
"""

from pathlib import Path
from typing import Final

ENVIRONMENT: Final = Path(".venv-rivals")
"""Made by ``make rivals`` from ``requirements/rivals.txt``."""
