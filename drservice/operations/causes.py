"""Why something went wrong in an environment: the cause, not what it led to."""

from __future__ import annotations

import errno
from collections.abc import Iterator
from contextlib import contextmanager

from drservice.environments.interface import Environment
from drservice.errors import DrError, EnvironmentFailedError, EnvironmentLimitError

_FULL = frozenset({errno.ENOSPC, errno.EDQUOT})


@contextmanager
def naming_the_cause(environment: Environment) -> Iterator[None]:
    """Let a broken limit that the environment was ended for be the error of the block, whatever the block has heard.

    A server that is ended takes its connections with it: whoever asked it something hears of that first.

    A disk that is full is said in words, whoever wrote to it last.

    Raises:
        EnvironmentLimitError: that is so, from the error of the block.
        EnvironmentFailedError: there is no space left where the environment lies.
    """
    try:
        yield
    except EnvironmentLimitError:
        raise
    except OSError as error:
        if error.errno not in _FULL:
            raise
        raise EnvironmentFailedError(
            "no space left for the environment", hint="Free space below state_dir and run again."
        ) from error
    except DrError as error:
        limit = _broken_limit(environment)
        if limit is None:
            raise
        raise limit from error


def _broken_limit(environment: Environment) -> EnvironmentLimitError | None:
    try:
        environment.require_within_limits()
    except EnvironmentLimitError as limit:
        return limit
    except DrError:
        return None  # nothing can be learned of it; the error of the block stands
    return None
