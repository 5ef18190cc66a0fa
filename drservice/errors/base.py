"""What every error has: a code, an exit status, a hint."""

from __future__ import annotations

from enum import IntEnum


class ExitStatus(IntEnum):
    """Exit statuses of the command line (a contract)."""

    OK = 0
    FAILED = 1
    USAGE = 2
    PARTIAL = 3
    BREACHED = 4
    INTEGRITY = 5
    BUSY = 6
    NOT_AUTHORISED = 7
    UNREACHABLE = 8
    INTERRUPTED = 130


class DrError(Exception):
    """Base of every error that is meant for a person.

    Args:
        message: what happened, with the names and numbers of the moment.
        hint: overrides the class's hint where the place of failure knows better.
    """

    code = "DR000"
    exit_status = ExitStatus.FAILED
    hint = "Run again with --log-level debug and read the lines before this one."

    def __init__(self, message: str, *, hint: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        if hint is not None:
            self.hint = hint

    def __reduce__(self) -> tuple[object, ...]:
        """Survive the trip from a worker process with the hint."""
        return (_rebuild, (type(self), self.message, self.hint))


def _rebuild(kind: type[DrError], message: str, hint: str) -> DrError:
    return kind(message, hint=hint)
