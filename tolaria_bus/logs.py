"""Logging of a worker or a supervisor: readable lines on a terminal, JSON lines in a container."""

from __future__ import annotations

import logging
import sys
from typing import Literal

import orjson
import structlog


def configure(log: Literal["console", "json"], level: int = logging.INFO) -> None:
    """Set structlog up for this process. Lines go to standard error."""
    shared: list[structlog.typing.Processor] = [
        structlog.contextvars.merge_contextvars,
        structlog.processors.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        structlog.processors.format_exc_info,
    ]
    if log == "json":
        structlog.configure(
            processors=[
                *shared,
                structlog.processors.EventRenamer("message"),
                structlog.processors.JSONRenderer(
                    serializer=lambda value, **_: orjson.dumps(value, default=str)
                ),
            ],
            wrapper_class=structlog.make_filtering_bound_logger(level),
            logger_factory=structlog.BytesLoggerFactory(sys.stderr.buffer),
            cache_logger_on_first_use=False,
        )
        return
    structlog.configure(
        processors=[*shared, structlog.dev.ConsoleRenderer(colors=sys.stderr.isatty())],
        wrapper_class=structlog.make_filtering_bound_logger(level),
        logger_factory=structlog.PrintLoggerFactory(sys.stderr),
        cache_logger_on_first_use=False,
    )
