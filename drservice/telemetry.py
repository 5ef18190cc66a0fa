"""Logs are events with fields, written to stderr; secrets are unprintable by construction."""

from __future__ import annotations

import logging
import sys

import structlog
from structlog.typing import FilteringBoundLogger


def get_logger(name: str) -> FilteringBoundLogger:
    """Return a logger whose events carry the module's name."""
    logger: FilteringBoundLogger = structlog.get_logger(logger_name=name)
    return logger


def configure(*, level: str = "warning", json_lines: bool = False) -> None:
    """Set up logging once, in the process's entry point.

    Args:
        level: ``debug``, ``info``, ``warning`` or ``error``.
        json_lines: one JSON object per line instead of text for people.
    """
    number = logging.getLevelNamesMapping()[level.upper()]
    renderer: structlog.typing.Processor = (
        structlog.processors.JSONRenderer()
        if json_lines
        else structlog.dev.ConsoleRenderer(colors=sys.stderr.isatty())
    )
    structlog.configure(
        processors=[
            structlog.contextvars.merge_contextvars,
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            structlog.processors.format_exc_info,
            renderer,
        ],
        wrapper_class=structlog.make_filtering_bound_logger(number),
        logger_factory=structlog.PrintLoggerFactory(file=sys.stderr),
        cache_logger_on_first_use=False,
    )
