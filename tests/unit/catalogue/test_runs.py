"""The moves of runs and what is kept of errors; no server is asked."""

from __future__ import annotations

from itertools import product

import pytest

from drservice.catalogue.runs import _move, error_document
from drservice.errors import BusyError
from drservice.model.runs import MOVES, RunState


@pytest.mark.parametrize(("before", "after"), list(product(RunState, RunState)))
def test_a_state_changes_only_along_the_moves(before: RunState, after: RunState) -> None:
    if after in MOVES[before]:
        compiled = str(_move(before, after).compile(compile_kwargs={"literal_binds": True}))
        assert f"SET state='{after.value}'" in compiled
        assert f"WHERE run.state = '{before.value}'" in compiled
    else:
        with pytest.raises(ValueError, match=f"from {before.value} to {after.value}"):
            _move(before, after)


def test_of_an_error_is_kept_what_a_page_shows() -> None:
    document = error_document(BusyError("another backup runs"))
    assert document == {
        "code": "DR110",
        "message": "another backup runs",
        "hint": BusyError.hint,
        "exit_status": 6,
    }
