"""Why something went wrong in an environment: the cause, not what it led to."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from drservice.environments.interface import Environment
from drservice.errors import DrError, EnvironmentLimitError


@contextmanager
def naming_the_cause(environment: Environment) -> Iterator[None]:
    """Let a broken limit that the environment was ended for be the error of the block, whatever the block has heard.

    A server that is ended takes its connections with it: whoever asked it something hears of that first.

    Raises:
        EnvironmentLimitError: that is so, from the error of the block.
    """
    try:
        yield
    except EnvironmentLimitError:
        raise
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
