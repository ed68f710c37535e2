"""Processes that are forked from one that has imported torch and what trains: at once, and cheaply.

One for all of a test session; it is started by the first process that is asked for.
"""

from __future__ import annotations

import multiprocessing

PROCESSES = multiprocessing.get_context("forkserver")
PROCESSES.set_forkserver_preload(
    [
        "tests.trainer.lives",
        "tests.recovery.states",
        "torch._dynamo",  # The first optimizer of a process imports it, for more than a second.
    ]
)
