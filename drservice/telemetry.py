"""Logs are events with fields, written to stderr; secrets are unprintable by construction.

structlog is loaded with the first event that is really written: a WAL push pays for what it imports with every
segment.
"""

from __future__ import annotations

import logging
import sys

_level = logging.WARNING


def configure(*, level: str = "warning") -> None:
    """Set from which level on events are written; called once, in the process's entry point.

    Args:
        level: ``debug``, ``info``, ``warning`` or ``error``.
    """
    global _level  # noqa: PLW0603 - one process has one log
    _level = logging.getLevelNamesMapping()[level.upper()]


def info(event: str, **fields: object) -> None:
    """Log something that went as it should."""
    _write(logging.INFO, event, fields)


def warning(event: str, **fields: object) -> None:
    """Log something that a person should look at."""
    _write(logging.WARNING, event, fields)


def _write(level: int, event: str, fields: dict[str, object]) -> None:
    if level < _level:
        return
    import structlog  # noqa: PLC0415 - 90 ms, most of it for rich

    structlog.configure(
        processors=[
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            structlog.dev.ConsoleRenderer(colors=sys.stderr.isatty()),
        ],
        wrapper_class=structlog.make_filtering_bound_logger(_level),
        logger_factory=structlog.PrintLoggerFactory(file=sys.stderr),
        cache_logger_on_first_use=False,
    )
    structlog.get_logger().log(level, event, **fields)
