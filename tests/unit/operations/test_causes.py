"""What ended an environment is told before what that led to."""

from __future__ import annotations

import errno
from typing import cast

import pytest

from drservice.environments.interface import Environment
from drservice.errors import DrError, EnvironmentFailedError, EnvironmentLimitError, PostgresUnreachableError
from drservice.operations.causes import naming_the_cause


class Ended:
    """An environment whose end is known, if it is."""

    def __init__(self, problem: DrError | None) -> None:
        self._problem = problem

    def require_within_limits(self) -> None:
        if self._problem is not None:
            raise self._problem


def heard(problem: DrError | None, error: Exception) -> BaseException:
    with (
        pytest.raises(type(error) if problem is None else DrError) as caught,
        naming_the_cause(cast("Environment", Ended(problem))),
    ):
        raise error
    return caught.value


def test_a_broken_limit_is_told_and_not_the_connection_that_it_took_along() -> None:
    limit, broke = EnvironmentLimitError("8 MB of disk"), PostgresUnreachableError("the connection broke")
    assert heard(limit, broke) is limit
    assert limit.__cause__ is broke


def test_what_no_limit_explains_stays_as_it_is() -> None:
    broke = PostgresUnreachableError("the connection broke")
    assert heard(None, broke) is broke
    assert heard(EnvironmentFailedError("its folder is gone"), broke) is broke
    assert isinstance(heard(None, KeyError("a mistake of ours")), KeyError)


def test_a_disk_without_space_is_told_in_words_and_no_other_error_of_a_disk_is_taken_for_it() -> None:
    full = OSError(errno.ENOSPC, "No space left on device")
    with (
        pytest.raises(EnvironmentFailedError, match="no space left") as caught,
        naming_the_cause(cast("Environment", Ended(None))),
    ):
        raise full
    assert (caught.value.__cause__, "state_dir" in caught.value.hint) == (full, True)
    broken = OSError(errno.EIO, "Input/output error")
    assert heard(None, broken) is broken
