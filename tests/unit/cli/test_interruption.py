"""An interruption stays one, whatever objects while the program unwinds."""

from __future__ import annotations

import pytest

from drservice.cli.main import StoppedError, _translate
from drservice.errors import ExitStatus


class Objecting:
    """Objects to being closed in the middle of a call, as a database driver does."""

    def __enter__(self) -> None:
        pass

    def __exit__(self, *_: object) -> None:
        raise RuntimeError("connection in transaction status ACTIVE")


def interrupt(interruption: KeyboardInterrupt) -> None:
    with Objecting():
        raise interruption


@pytest.mark.parametrize("interruption", [KeyboardInterrupt(), StoppedError("stopped by SIGTERM")])
def test_a_library_that_objects_while_an_interrupted_program_unwinds_does_not_hide_that(
    interruption: KeyboardInterrupt,
) -> None:
    with pytest.raises(RuntimeError) as caught:
        interrupt(interruption)
    assert _translate(caught.value).exit_status is ExitStatus.INTERRUPTED


def test_a_defect_is_not_taken_for_an_interruption() -> None:
    assert _translate(RuntimeError("no")).code == "DR000"
